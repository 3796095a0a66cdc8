"""The settings of a preflight. Imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from epistill.config import SamplingConfig, TaskConfig
from epistill.errors import did_you_mean
from epistill.metrics.lexicon import PAPER
from epistill.settings import Settings
from epistill.teacher.context import NAMED_CONTEXTS


class PreflightConfig(Settings):
    """What is measured.

    Attributes:
        model: Directory, hub name, or "lab"; with a server, whose tokenizer it is.
        contexts: Named contexts; empty for all that the problems allow. Controls are always added.
        engine: "inprocess", or addresses of servers (http://..., commas between).
        samples: Responses per problem.
        teacher_thinking: The teacher's `enable_thinking`; "same" as the student's.
        fork_quantile: A fork is a position whose entropy exceeds this quantile of the student's.
        dtype: Of the weights; of a server's too, which decides how exact the control must be.
        top_k: Most likely tokens that a server is asked for; the full vocabulary in process.
        attention: transformers' `attn_implementation`; None is its own choice.
        chat_template: A Jinja file, for a base model without a template of its own.
        markers: A lexicon's name or file; its control list is counted beside it.
    """

    model: str
    task: TaskConfig
    contexts: tuple[str, ...] = ()
    engine: str = "inprocess"
    problems: int = Field(default=32, ge=1)
    samples: int = Field(default=8, ge=2)
    sampling: SamplingConfig = SamplingConfig()
    teacher_thinking: bool | Literal["same"] | None = "same"
    allow_mode_mismatch: bool = False
    fork_quantile: float = Field(default=0.8, gt=0.0, lt=1.0)
    top_k: int = Field(default=20, ge=1)
    markers: str = PAPER
    microbatch_tokens: int = Field(default=16_384, ge=1)
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: str = "cpu"
    attention: str | None = None
    chat_template: str | None = None
    seed: int = 0

    @property
    def teacher_sampling(self) -> SamplingConfig:
        """The student's, in the teacher's mode."""
        asked = self.teacher_thinking
        thinking = self.sampling.thinking if asked == "same" else asked
        return self.sampling.model_copy(update={"thinking": thinking})

    @field_validator("contexts")
    @classmethod
    def _known_contexts(cls, contexts: tuple[str, ...]) -> tuple[str, ...]:
        for name in contexts:
            if name not in NAMED_CONTEXTS:
                raise ValueError(
                    f"no context {name!r}; expected some of {', '.join(NAMED_CONTEXTS)}"
                    f"{did_you_mean(name, NAMED_CONTEXTS)}"
                )
        return contexts

    @field_validator("engine")
    @classmethod
    def _a_known_engine(cls, engine: str) -> str:
        urls = [url.strip() for url in engine.split(",")]
        if engine != "inprocess" and not all(u.startswith(("http://", "https://")) for u in urls):
            raise ValueError(
                f"engine is {engine!r}; expected inprocess or http://HOST:PORT, several with commas"
            )
        return engine


class Preflight(Settings):
    """What is measured before training; the page compares it with what the arms then did."""

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    label: str
    settings: PreflightConfig
