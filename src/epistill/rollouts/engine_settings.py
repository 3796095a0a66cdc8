"""Which model and which engine: this process, or vLLM servers. Of whatever asks; no torch."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from epistill.config import SamplingConfig
from epistill.errors import EpistillError
from epistill.settings import Settings

IN_PROCESS = "inprocess"


class EngineSettings(Settings):
    """What `load_engine` opens.

    Attributes:
        model: Directory, hub name, or "lab"; with a server, whose tokenizer it is.
        dtype: Of the weights.
        device: Of the weights.
        attention: transformers' `attn_implementation`; None is its own choice.
        chat_template: A Jinja file, for a base model without a template of its own.
        engine: "inprocess", or addresses of servers (http://..., commas between).
        microbatch_tokens: Tokens per forward pass of scoring.
        top_k: Most likely tokens that a server is asked for where it scores; the full vocabulary in
            process.
        of_this_process: Settings that a server would not be told.
    """

    model: str
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: str = "cpu"
    attention: str | None = None
    chat_template: str | None = None
    engine: str = IN_PROCESS
    microbatch_tokens: int = Field(default=16_384, ge=1)
    top_k: int = Field(default=20, ge=1)

    of_this_process: ClassVar[tuple[str, ...]] = ("dtype", "device", "attention")

    @property
    def urls(self) -> list[str]:
        """Of the servers; none in process."""
        if self.engine == IN_PROCESS:
            return []
        return [url.strip().rstrip("/") for url in self.engine.split(",")]

    @field_validator("engine")
    @classmethod
    def _a_known_engine(cls, engine: str) -> str:
        urls = [url.strip() for url in engine.split(",")]
        if engine != IN_PROCESS and not all(u.startswith(("http://", "https://")) for u in urls):
            raise ValueError(
                f"engine is {engine!r}; expected inprocess or http://HOST:PORT, several with commas"
            )
        return engine

    @model_validator(mode="after")
    def _servers_are_told_nothing(self) -> EngineSettings:
        for name in self.of_this_process if self.urls else ():
            value, default = getattr(self, name), type(self).model_fields[name].default
            if value != default:
                raise ValueError(
                    f"{name} is {value!r} and engine is {self.engine!r}: a vLLM server's is chosen "
                    f"where it is started; expected no {name}, or engine inprocess"
                )
        return self

    def check_sampling(self, sampling: SamplingConfig) -> None:
        """Refuse what a server would not be told of how responses are drawn.

        Raises:
            EpistillError: `batch_rows` with servers.
        """
        rows = sampling.batch_rows
        if self.urls and rows != SamplingConfig.model_fields["batch_rows"].default:
            raise EpistillError(
                f"batch_rows is {rows} and engine is {self.engine!r}: a vLLM server forms its own "
                "batches; expected no batch_rows, or engine inprocess"
            )
