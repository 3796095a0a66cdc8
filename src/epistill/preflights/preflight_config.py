"""The settings of a preflight. Imports no torch."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from epistill.config import SamplingConfig, TaskConfig
from epistill.errors import did_you_mean
from epistill.metrics.lexicon import PAPER
from epistill.rollouts.engine_settings import EngineSettings
from epistill.settings import Settings
from epistill.teacher.context import NAMED_CONTEXTS


class PreflightConfig(EngineSettings):
    """What is measured, and with which engine.

    Attributes:
        contexts: Named contexts; empty for all that the problems allow. Controls are always added.
        samples: Responses per problem.
        teacher_thinking: The teacher's `enable_thinking`; "same" as the student's.
        fork_quantile: A fork is a position whose entropy exceeds this quantile of the student's.
        dtype: Of the weights; of a server's too, which decides how exact the control must be.
        markers: A lexicon's name or file; its control list is counted beside it.
    """

    of_this_process: ClassVar[tuple[str, ...]] = ("device", "attention")

    task: TaskConfig
    contexts: tuple[str, ...] = ()
    problems: int = Field(default=32, ge=1)
    samples: int = Field(default=8, ge=2)
    sampling: SamplingConfig = SamplingConfig()
    teacher_thinking: bool | Literal["same"] | None = "same"
    allow_mode_mismatch: bool = False
    fork_quantile: float = Field(default=0.8, gt=0.0, lt=1.0)
    markers: str = PAPER
    seed: int = 0

    @model_validator(mode="after")
    def _a_server_can_sample_so(self) -> PreflightConfig:
        self.check_sampling(self.sampling)
        return self

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


class Preflight(Settings):
    """What is measured before training; the page compares it with what the arms then did."""

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    label: str
    settings: PreflightConfig
