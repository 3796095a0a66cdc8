"""Axis 5, blends: how the teacher's signal and the verifier's are put together. No torch.

A blend decides which rows are distilled, which are reinforced, and with what shares.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from epistill.settings import Choice, Settings
from epistill.shapes import Shape
from epistill.training_rows import Needs, Progress, ScoredRow


class PolicyGradient(Settings):
    """The verifier's side of the blend.

    Attributes:
        normalize_std: Divide advantages by the group's standard deviation (original GRPO).
        clip_low: Lower clip of the ratio.
        clip_high: Upper clip of the ratio (DAPO's clip-higher).
        dual_clip: Bound of the loss where the advantage is negative, in multiples of it; None for
            none.
        drop_uniform_groups: Groups whose rewards are all equal do not count in the mean (DAPO draws
            new ones in their place).
    """

    normalize_std: bool = False
    clip_low: float = Field(default=0.2, gt=0.0, lt=1.0)
    clip_high: float = Field(default=0.28, gt=0.0)
    dual_clip: float | None = Field(default=None, gt=1.0)
    drop_uniform_groups: bool = False


class Blend(Choice):
    """What of a step is distilled and what is reinforced; the base reinforces everything.

    A subclass gives each attribute as a property or a `ClassVar`.

    Attributes:
        one_mean: Distilled and reinforced tokens share one mean; else each has its own.
        needs: Scores that must be known before the step.
        distils: Whether some row may be trained towards the teacher's distribution.
        gradient_share: Weight of the verifier's term in the loss.
        reference_share: Weight of the pull to the start, (log p - log p_start)^2 / 2.
        strength_field: The setting that an alarm may lower; None for none.
    """

    noun: ClassVar[str] = "blend"
    one_mean: ClassVar[bool] = False
    needs: ClassVar[Needs] = Needs()
    distils: ClassVar[bool] = False
    gradient_share: ClassVar[float] = 1.0
    reference_share: ClassVar[float] = 0.0
    strength_field: ClassVar[str | None] = None

    def distillation_share(self, progress: Progress) -> float:
        """Weight of the distillation term in the loss."""
        return 0.0

    def distilled(self, row: ScoredRow) -> bool:
        """Whether this row is trained towards the teacher; only asked where it has a context."""
        return self.distils

    def reinforced(self, row: ScoredRow) -> bool:
        """Whether this row takes part in the verifier's term."""
        return self.gradient_share > 0

    def with_less_teacher(self, factor: float) -> Blend | None:
        """The blend with the teacher's weight multiplied by `factor`; None where it has none.

        (Scaling a loss alone changes nothing under Adam.)
        """
        return _lowered(self, factor) if self.distils else None


class Convex(Blend):
    """loss = distillation L_D + (1 - distillation) L_PG."""

    type: Literal["convex"] = "convex"
    strength_field: ClassVar[str | None] = "distillation"
    distillation: float = Field(default=1.0, ge=0.0, le=1.0)

    @property
    def distils(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.distillation > 0

    @property
    def gradient_share(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        return 1 - self.distillation

    def distillation_share(self, progress: Progress) -> float:
        return self.distillation

    def words(self) -> str:
        return {0.0: "verifier only", 1.0: "distillation only"}.get(
            self.distillation, f"distillation {self.distillation:g}"
        )


class Routed(Blend):
    """Wrong responses with a context are distilled, all others reinforced; one mean over both.

    In it a token counts as any other. Source: SRPO 2604.02288; how its two losses are summed is
    inferred.
    """

    type: Literal["routed"] = "routed"
    one_mean: ClassVar[bool] = True
    needs: ClassVar[Needs] = Needs(verdicts=True)
    distils: ClassVar[bool] = True

    def distillation_share(self, progress: Progress) -> float:
        return 1.0

    def distilled(self, row: ScoredRow) -> bool:
        return row.correct is False

    def reinforced(self, row: ScoredRow) -> bool:
        return not (row.has_context and self.distilled(row))


class Regularised(Blend):
    """loss = L_PG + distillation(k) L_D + reference (log p - log p_start)^2 / 2.

    distillation(k) rises over warmup_steps and falls over the last decay_steps (0: no ramp).
    Source: SDPG 2606.04036 (1e-3, 1e-3).

    Attributes:
        only_positive: Distil only rows with a positive advantage (in the paper's loss, off in its
            code).
    """

    type: Literal["regularised"] = "regularised"
    strength_field: ClassVar[str | None] = "distillation"
    distils: ClassVar[bool] = True
    distillation: float = Field(default=1e-3, gt=0.0)
    reference: float = Field(default=1e-3, ge=0.0)
    warmup_steps: int = Field(default=0, ge=0)
    decay_steps: int = Field(default=0, ge=0)
    only_positive: bool = False

    @property
    def needs(self) -> Needs:  # pyright: ignore[reportIncompatibleVariableOverride]
        return Needs(start_log_probs=self.reference > 0)

    @property
    def reference_share(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.reference

    def distillation_share(self, progress: Progress) -> float:
        up = min(1.0, (progress.step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        left = progress.steps - progress.step
        down = min(1.0, left / self.decay_steps) if self.decay_steps else 1.0
        return self.distillation * (up * down)

    def distilled(self, row: ScoredRow) -> bool:
        return row.advantage > 0 or not self.only_positive


class Shaped(Blend):
    """loss = L_PG with advantages that the teacher's log-probs shape token by token."""

    type: Literal["shaped"] = "shaped"
    shape: Shape

    @property
    def needs(self) -> Needs:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.shape.needs

    def with_less_teacher(self, factor: float) -> Blend | None:
        weaker = _lowered(self.shape, factor)
        return None if weaker is None else self.model_copy(update={"shape": weaker})

    def words(self) -> str:
        return "advantage: " + self.shape.words()


def _lowered(choice: Blend | Shape, factor: float) -> Any:
    """The choice with its strength times the factor; None where it has none."""
    field = choice.strength_field
    if field is None:
        return None
    return choice.model_copy(update={field: getattr(choice, field) * factor})
