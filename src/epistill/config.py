"""The configuration of a run: pydantic, TOML in, resolved JSON out. Imports no torch.

The five axes of a method are here as records (`Context`, teacher weights, `Divergence`, token
weights, `Blend`); `methods.py` names the published points. Class defaults are the paper's vetted
settings (2603.24472 unless a field says otherwise) and a test pins them.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Settings(BaseModel):
    """Base of every configuration record: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


# ---- axis 1: what the teacher sees -------------------------------------------------------------

ContextSource = Literal[
    "none", "answer", "wrong_answer", "solution", "regenerated", "sibling", "feedback"
]


class Context(Settings):
    r"""What the teacher sees beyond the question.

    Attributes:
        source: "answer"; "wrong_answer" (control); "solution" of the problem's own record;
            "sibling", the first successful rollout of the group that is not the row itself (SDPO);
            "regenerated", a correct response the solution-guided model wrote; "feedback", the
            grader's words on the row itself.
        thinking: "remove" cuts the thinking out of a solution: c=s\think.
        problem: "other" takes another problem's context (control).
        fraction: First part of a solution, by words; 1.0 is all.
        shuffled: Shuffle a solution's words (control).
    """

    source: ContextSource = "sibling"
    thinking: Literal["keep", "remove"] = "keep"
    problem: Literal["same", "other"] = "same"
    fraction: float = Field(default=1.0, gt=0.0, le=1.0)
    shuffled: bool = False


# ---- axis 2: whose weights the teacher has -----------------------------------------------------


class FrozenWeights(Settings):
    """The weights at the start of training. The paper's finding: no worse than EMA (Fig. 6)."""

    type: Literal["frozen"] = "frozen"


class LiveWeights(Settings):
    """The student's own current weights."""

    type: Literal["live"] = "live"


class EmaWeights(Settings):
    """teacher <- (1 - rate) teacher + rate student after each optimiser step, kept in float32."""

    type: Literal["ema"] = "ema"
    rate: float = Field(default=0.05, gt=0.0, le=1.0)
    """SDPO 2601.20802: .05 (.01 for LiveCodeBench)."""


TeacherWeights = Annotated[FrozenWeights | LiveWeights | EmaWeights, Field(discriminator="type")]


# ---- axis 3: divergence and support ------------------------------------------------------------


class FullVocabulary(Settings):
    """Compare over every token."""

    type: Literal["full"] = "full"


class TopK(Settings):
    """Compare over the top k, with or without the rest as one bucket."""

    type: Literal["top_k"] = "top_k"
    k: int = Field(default=100, ge=1)
    add_tail: bool = True
    chosen_by: Literal["student", "teacher"] = "student"


class SampledToken(Settings):
    """Compare on the sampled token alone (an estimate of reverse KL)."""

    type: Literal["sampled_token"] = "sampled_token"


Support = Annotated[FullVocabulary | TopK | SampledToken, Field(discriminator="type")]


class Divergence(Settings):
    """alpha 0 is KL(T||S), 1 is KL(S||T), between generalised JSD; mind the jump at the ends."""

    alpha: float = Field(default=0.5, ge=0.0, le=1.0)
    support: Support = TopK()
    entry_clip: float | None = Field(default=None, gt=0.0)

    @model_validator(mode="after")
    def _sampled_token_is_reverse_kl(self) -> Divergence:
        if isinstance(self.support, SampledToken) and self.alpha != 1.0:
            raise ValueError(
                f"support sampled_token estimates reverse KL only: found alpha={self.alpha}, "
                "expected 1.0"
            )
        return self


# ---- axis 4: token weights, composed by multiplication -----------------------------------------


class ImportanceClip(Settings):
    """min(p_now / p_when_sampled, clip), detached."""

    type: Literal["importance_clip"] = "importance_clip"
    clip: float = Field(default=2.0, gt=0.0)


class TokenRange(Settings):
    """Keep completion tokens skip_first .. up_to (exclusive); None keeps to the end."""

    type: Literal["token_range"] = "token_range"
    skip_first: int = Field(default=0, ge=0)
    up_to: int | None = Field(default=None, ge=1)


TokenWeight = Annotated[ImportanceClip | TokenRange, Field(discriminator="type")]


# ---- axis 5: blend with the verifier -----------------------------------------------------------


class PolicyGradient(Settings):
    """The verifier's side of the blend.

    Attributes:
        normalize_std: Divide advantages by the group's standard deviation (original GRPO).
        clip_low: Lower clip of the ratio.
        clip_high: Upper clip of the ratio (DAPO's clip-higher).
    """

    normalize_std: bool = False
    clip_low: float = Field(default=0.2, gt=0.0, lt=1.0)
    clip_high: float = Field(default=0.28, gt=0.0)


class Blend(Settings):
    """loss = distillation * L_distillation + (1 - distillation) * L_policy_gradient."""

    distillation: float = Field(default=1.0, ge=0.0, le=1.0)


# ---- a method ----------------------------------------------------------------------------------


class TraceSource(Settings):
    """Off-policy data: correct traces that the tool samples itself before training.

    Attributes:
        context: What the model sees while it writes them.
        count: How many correct traces to keep (the paper: 800).
    """

    context: Context = Context(source="none")
    count: int = Field(default=800, ge=1)


class Method(Settings):
    """A point on the five axes.

    Attributes:
        traces: None trains on the student's own responses; else on these traces (SFT), where every
            kept trace has advantage 1 and the loss is -log p.
        reduction: "token_mean" over all kept tokens of the optimiser step; "sequence_mean", the
            mean over rows of each row's token mean.
        learning_rate: The paper's, for a model of its size; a run may set its own.
        source: Paper and code the defaults come from.
    """

    name: str
    context: Context = Context()
    teacher: TeacherWeights = FrozenWeights()
    divergence: Divergence = Divergence()
    token_weights: tuple[TokenWeight, ...] = ()
    blend: Blend = Blend()
    policy_gradient: PolicyGradient = PolicyGradient()
    traces: TraceSource | None = None
    reduction: Literal["token_mean", "sequence_mean"] = "token_mean"
    learning_rate: float = Field(default=1e-5, gt=0.0)
    source: str = ""

    @model_validator(mode="after")
    def _distillation_needs_a_context(self) -> Method:
        if self.blend.distillation > 0 and self.context.source == "none":
            raise ValueError(
                f"method {self.name!r} distils (blend.distillation={self.blend.distillation}) but "
                "its context is 'none': teacher and student would agree; choose a context, or set "
                "distillation to 0"
            )
        if self.traces is not None and self.blend.distillation > 0:
            raise ValueError(
                f"method {self.name!r} has both traces and distillation; expected one of them"
            )
        return self


# ---- a run -------------------------------------------------------------------------------------


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
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: str = "cpu"
    seed: int = 0

    @model_validator(mode="after")
    def _groups_are_large_enough(self) -> RunConfig:
        if self.method.traces is None and self.samples_per_problem < 2:
            needs = self.method.blend.distillation < 1 or self.method.context.source == "sibling"
            if needs:
                raise ValueError(
                    f"samples_per_problem is {self.samples_per_problem}; expected at least 2: "
                    f"method {self.method.name!r} compares responses to the same problem"
                )
        return self
