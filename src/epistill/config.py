"""The configuration of a run: pydantic, TOML in, resolved JSON out. Imports no torch.

The axes of a method are in `axes.py`, the published points on them in `methods.py`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from epistill.axes import Method
from epistill.monitor import Monitor, with_less_teacher
from epistill.settings import Settings


class SamplingConfig(Settings):
    """How responses are drawn. `thinking` goes to the chat template as `enable_thinking`."""

    temperature: float = Field(default=1.0, ge=0.0)
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    top_k: int | None = Field(default=None, ge=1)
    max_new_tokens: int = Field(default=1024, ge=1)
    thinking: bool | None = None


class StarSearchTask(Settings):
    """The lab's world: `tasks/star_search.py`."""

    type: Literal["star_search"] = "star_search"
    arms: int = Field(default=5, ge=2)
    depth: int = Field(default=3, ge=1)
    split: str = "train"


class FileTask(Settings):
    """Problems from JSONL, parquet or a Hugging Face dataset name: `tasks/files.py`."""

    type: Literal["file"] = "file"
    path: str
    split: str = "train"
    grader: Literal["math", "choice", "exact"] | None = None


TaskConfig = Annotated[StarSearchTask | FileTask, Field(discriminator="type")]


class EvalSet(Settings):
    """One evaluation: a task, how many problems and samples, and what it stands for.

    Attributes:
        kind: "in_domain" (held out, of the training distribution) or "ood"; sets of one kind are
            pooled where a study compares arms.
        curve_problems: Problems (one sample each) of the small evaluations during training.
    """

    name: str
    task: TaskConfig
    kind: Literal["in_domain", "ood"] = "in_domain"
    problems: int = Field(default=128, ge=1)
    samples: int = Field(default=4, ge=1)
    curve_problems: int = Field(default=64, ge=1)


class Lora(Settings):
    """A low-rank adapter on a frozen base, by peft.

    Attributes:
        rank: Of the two factors.
        alpha: Scale is alpha / rank.
        targets: Names of modules to adapt, or "all-linear" (all but the head).
    """

    rank: int = Field(default=64, ge=1)
    alpha: float = Field(default=128.0, gt=0.0)
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    targets: tuple[str, ...] | Literal["all-linear"] = "all-linear"


class RunConfig(Settings):
    """Everything that decides the numbers of one training run.

    Attributes:
        coverage: Number of distinct training problems; None draws a new one every time where the
            task is endless, and uses all rows of a file.
        steps: Rollout batches. Each is split into `updates_per_batch` optimiser steps.
        eval_every: Evaluate the first `curve_problems` of each set every so many steps; None only
            evaluates at the end.
        eval_sampling: None evaluates with the training's sampling.
        microbatch_tokens: Padded tokens per forward pass; memory, not numbers, beyond rounding.
        monitor: Alarms, and what they do; None for none.
    """

    model: str
    task: TaskConfig
    method: Method
    coverage: int | None = Field(default=None, ge=1)
    sampling: SamplingConfig = SamplingConfig()
    steps: int = Field(default=100, ge=0)
    problems_per_step: int = Field(default=32, ge=1)
    samples_per_problem: int = Field(default=8, ge=1)
    updates_per_batch: int = Field(default=1, ge=1)
    learning_rate: float | None = Field(default=None, gt=0.0)
    warmup_steps: int = Field(default=10, ge=0)
    weight_decay: float = Field(default=0.01, ge=0.0)
    max_grad_norm: float = Field(default=1.0, gt=0.0)
    microbatch_tokens: int = Field(default=16_384, ge=1)
    evaluations: tuple[EvalSet, ...] = ()
    eval_every: int | None = Field(default=None, ge=1)
    eval_sampling: SamplingConfig | None = None
    checkpoint_every: int = Field(default=10, ge=1)
    monitor: Monitor | None = Monitor()
    lora: Lora | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: str = "cpu"
    seed: int = 0

    @model_validator(mode="after")
    def _groups_are_large_enough(self) -> RunConfig:
        method = self.method
        if self.monitor is not None and self.monitor.may_lower:
            method = with_less_teacher(method, self.monitor.lower_factor)
        compares = method.gradient_share > 0 or method.context.source == "sibling"
        if self.method.traces is None and self.samples_per_problem < 2 and compares:
            raise ValueError(
                f"samples_per_problem is {self.samples_per_problem}; expected at least 2: method "
                f"{self.method.name!r} compares responses to the same problem"
            )
        return self
