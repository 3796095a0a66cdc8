"""The five axes of a method as records, and the record of a method. Imports no torch.

1 context: what the teacher sees     2 teacher weights     3 divergence, support, target
4 token weights                      5 blend with the verifier (`blends.py`)

Defaults are the settings of arXiv 2603.24472 unless a field says otherwise; `methods.py` names the
published points and a test pins them.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from epistill.blends import Blend, ContrastShape, Convex, PolicyGradient, Regularised, Shape, Shaped
from epistill.settings import Settings

# ---- axis 1: what the teacher sees -------------------------------------------------------------

ContextSource = Literal[
    "none", "answer", "wrong_answer", "solution", "regenerated", "sibling", "feedback"
]


class Context(Settings):
    r"""What the teacher sees beyond the question.

    Attributes:
        source: "answer"; "wrong_answer" (control); "solution" of the problem's own record;
            "sibling", a successful rollout of the group that is not the row itself (SDPO);
            "regenerated", a correct response the solution-guided model wrote; "feedback", the
            grader's words on the row itself.
        pick: Which sibling: the first (SDPO) or a random one (RLCSD).
        fallback: Where no sibling succeeded: nothing, or the problem's own solution (AntiSD).
        assessment: Also show the grader's words on the row itself (AntiSD).
        thinking: "remove" cuts the thinking out of a solution: c=s\think.
        problem: "other" takes another problem's context (control).
        fraction: First part of a solution, by words; 1.0 is all.
        shuffled: Shuffle a solution's words (control).
    """

    source: ContextSource = "sibling"
    pick: Literal["first", "random"] = "first"
    fallback: Literal["none", "solution"] = "none"
    assessment: bool = False
    thinking: Literal["keep", "remove"] = "keep"
    problem: Literal["same", "other"] = "same"
    fraction: float = Field(default=1.0, gt=0.0, le=1.0)
    shuffled: bool = False


# ---- axis 2: whose weights the teacher has -----------------------------------------------------


class FrozenWeights(Settings):
    """The weights at the start of training; of a LoRA run, the base with the adapter off."""

    type: Literal["frozen"] = "frozen"


class LiveWeights(Settings):
    """The student's own current weights."""

    type: Literal["live"] = "live"


class EmaWeights(Settings):
    """teacher <- (1 - rate) teacher + rate student after each optimiser step, kept in float32."""

    type: Literal["ema"] = "ema"
    rate: float = Field(default=0.05, gt=0.0, le=1.0)
    """SDPO 2601.20802: .05 (.01 for LiveCodeBench)."""


class SnapshotWeights(Settings):
    """A copy of the student, taken anew every so many optimiser steps."""

    type: Literal["snapshot"] = "snapshot"
    every: int = Field(default=10, ge=1)
    """RLCSD 2606.11709: 10."""


TeacherWeights = Annotated[
    FrozenWeights | LiveWeights | EmaWeights | SnapshotWeights, Field(discriminator="type")
]


# ---- axis 3: divergence, support, target -------------------------------------------------------


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


class TeacherTarget(Settings):
    """The student is trained towards the teacher itself."""

    type: Literal["teacher"] = "teacher"


class PurifiedTarget(Settings):
    """softmax(log p_base + bound tanh((log p_T - log p_reference - mean) / bound) / beta).

    p_reference sees the context without the question, so that what the context says by itself is
    taken out; p_base sees the question alone; both have the frozen weights. The mean is over the
    vocabulary. Source: Purified OPSD 2607.02234.
    """

    type: Literal["purified"] = "purified"
    beta: float = Field(default=1.0, gt=0.0)
    bound: float = Field(default=10.0, gt=0.0)


Target = Annotated[TeacherTarget | PurifiedTarget, Field(discriminator="type")]


class Divergence(Settings):
    """alpha 0 is KL(T||S), 1 is KL(S||T), between generalised JSD; mind the jump at the ends.

    Attributes:
        entry_clip: Upper bound on each token's term of the sum (OPSD); None for none.
    """

    alpha: float = Field(default=0.5, ge=0.0, le=1.0)
    support: Support = TopK()
    target: Target = TeacherTarget()
    entry_clip: float | None = Field(default=None, gt=0.0)

    @model_validator(mode="after")
    def _sampled_token_is_reverse_kl(self) -> Divergence:
        if isinstance(self.support, SampledToken) and self.alpha != 1.0:
            raise ValueError(
                f"support sampled_token estimates reverse KL only: found alpha={self.alpha}, "
                "expected 1.0"
            )
        if isinstance(self.support, SampledToken) and self.entry_clip is not None:
            raise ValueError(
                f"support sampled_token has one term per position and entry_clip {self.entry_clip} "
                "bounds terms; expected entry_clip none"
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


class PositionRise(Settings):
    """floor + (1 - floor) sigmoid((f - midpoint) / width), f the place in the kept response.

    f = (t - 1/2) / L for the t-th of L kept tokens. Source: PW-OPSD 2605.21606 (.25, .30, .10).
    """

    type: Literal["position_rise"] = "position_rise"
    floor: float = Field(default=0.25, ge=0.0, le=1.0)
    midpoint: float = 0.30
    width: float = Field(default=0.10, gt=0.0)


class TeacherConfidence(Settings):
    """exp(-beta H_T), divided by its mean over the distilled tokens of the step.

    Source: SRPO 2604.02288 (beta 1). Over what the mean is taken is inferred. Needs the teacher's
    entropies before the step, so one more forward pass.
    """

    type: Literal["teacher_confidence"] = "teacher_confidence"
    beta: float = Field(default=1.0, ge=0.0)


TokenWeight = Annotated[
    ImportanceClip | TokenRange | PositionRise | TeacherConfidence, Field(discriminator="type")
]


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
            mean over rows of each row's token mean; "constant_length", the sum divided by rows
            times max_new_tokens (Dr.GRPO).
        learning_rate: The paper's, for a model of its size; a run may set its own.
        source: Paper and code the defaults come from.
    """

    name: str
    context: Context = Context()
    teacher: TeacherWeights = FrozenWeights()
    divergence: Divergence = Divergence()
    token_weights: tuple[TokenWeight, ...] = ()
    blend: Blend = Convex()
    policy_gradient: PolicyGradient = PolicyGradient()
    traces: TraceSource | None = None
    reduction: Literal["token_mean", "sequence_mean", "constant_length"] = "token_mean"
    learning_rate: float = Field(default=1e-5, gt=0.0)
    source: str = ""

    @property
    def shape(self) -> Shape | None:
        """How advantages are shaped; None where they are not."""
        return self.blend.shape if isinstance(self.blend, Shaped) else None

    @property
    def distils(self) -> bool:
        """Whether some row may be trained towards the teacher's distribution."""
        return not isinstance(self.blend, Shaped) and not (
            isinstance(self.blend, Convex) and self.blend.distillation == 0
        )

    @property
    def gradient_share(self) -> float:
        """Weight of the verifier's term in the loss."""
        return 1 - self.blend.distillation if isinstance(self.blend, Convex) else 1.0

    @property
    def needs_start(self) -> bool:
        """Whether the weights at the start are asked besides the teacher's."""
        return isinstance(self.divergence.target, PurifiedTarget) or (
            isinstance(self.blend, Regularised) and self.blend.reference > 0
        )

    @property
    def needs_teacher(self) -> bool:
        """Whether a teacher is asked at all."""
        return self.distils or isinstance(self.blend, Shaped)

    @model_validator(mode="after")
    def _a_teacher_needs_a_context(self) -> Method:
        if self.needs_teacher and self.context.source == "none":
            raise ValueError(
                f"method {self.name!r} asks a teacher but its context is 'none': teacher and "
                "student would agree; choose a context, or a convex blend with distillation 0"
            )
        if self.traces is not None and self.needs_teacher:
            raise ValueError(
                f"method {self.name!r} has both traces and a teacher; expected one of them"
            )
        return self

    @model_validator(mode="after")
    def _two_means_are_no_reduction(self) -> Method:
        if isinstance(self.shape, ContrastShape) and self.reduction != "token_mean":
            raise ValueError(
                f"method {self.name!r} takes the mean over tokens on each of its two paths; "
                f"reduction {self.reduction!r} would change nothing; leave it out"
            )
        return self
