"""Axis 4: weights of completion tokens in the distillation term, multiplied together.

A token whose weight is 0 leaves the mean; a row without a token left leaves the step. Imports no
torch until a weight is asked to compute.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from epistill.settings import Choice
from epistill.training_rows import Needs, ScoredRow, Tensor


class TokenWeight(Choice):
    """Weights of the tokens of one response; define `weights`, or `while_training`.

    Attributes:
        needs: Scores that `weights` reads.
        mean_one: The product of all weights of this kind is divided by its mean over the tokens
            that the step distils.
        from_step, until_step: Rollout batches in which it counts, the second exclusive (None: to
            the end); in all others it is 1.
    """

    noun: ClassVar[str] = "token weight"
    needs: ClassVar[Needs] = Needs()
    mean_one: ClassVar[bool] = False
    from_step: int = Field(default=0, ge=0)
    until_step: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _counts_somewhere(self) -> TokenWeight:
        _not_empty(self.from_step, self.until_step, ("from_step", "until_step"))
        return self

    def weights(self, row: ScoredRow, kept: Tensor) -> Tensor:
        """[T], before the step, without gradient.

        Args:
            row: The response.
            kept: [T], which of its tokens no weight of the method sets to 0.
        """
        return kept.float()

    def while_training(self, log_probs: Tensor, old_log_probs: Tensor | None) -> Tensor | None:
        """[n], from what is only known in the student's forward pass; None for 1.

        Args:
            log_probs: [n], the student's of each token now.
            old_log_probs: [n], when it was sampled; None where nobody's policy sampled.
        """
        return None


class ImportanceClip(TokenWeight):
    """min(p_now / p_when_sampled, clip), detached."""

    type: Literal["importance_clip"] = "importance_clip"
    clip: float = Field(default=2.0, gt=0.0)

    def while_training(self, log_probs: Tensor, old_log_probs: Tensor | None) -> Tensor | None:
        from epistill.objective import importance_weight

        if old_log_probs is None:
            return None
        return importance_weight(log_probs, old_log_probs, clip=self.clip)


class TokenRange(TokenWeight):
    """1 for completion tokens skip_first .. up_to (exclusive), else 0; None keeps to the end."""

    type: Literal["token_range"] = "token_range"
    skip_first: int = Field(default=0, ge=0)
    up_to: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _keeps_a_token(self) -> TokenRange:
        _not_empty(self.skip_first, self.up_to, ("skip_first", "up_to"))
        return self

    def weights(self, row: ScoredRow, kept: Tensor) -> Tensor:
        inside = kept.float().zero_()
        inside[self.skip_first : self.up_to] = 1
        return inside


class PositionRise(TokenWeight):
    """floor + (1 - floor) sigmoid((f - midpoint) / width), f the place in the kept response.

    f = (t - 1/2) / L for the t-th of L kept tokens; not renormalised; 1 where no token is kept
    anyway. Source: PW-OPSD 2605.21606 (.25, .30, .10).
    """

    type: Literal["position_rise"] = "position_rise"
    floor: float = Field(default=0.25, ge=0.0, le=1.0)
    midpoint: float = 0.30
    width: float = Field(default=0.10, gt=0.0)

    def weights(self, row: ScoredRow, kept: Tensor) -> Tensor:
        found = kept.float()
        place = (found.cumsum(0)[kept] - 0.5) / kept.sum()
        rise = ((place - self.midpoint) / self.width).sigmoid()
        found[kept] = self.floor + (1 - self.floor) * rise
        return found


class TeacherConfidence(TokenWeight):
    """exp(-beta H_T), divided by its mean over the distilled tokens of the step.

    Source: SRPO 2604.02288 (beta 1). Over what the mean is taken is inferred.
    """

    type: Literal["teacher_confidence"] = "teacher_confidence"
    needs: ClassVar[Needs] = Needs(teacher_scores=True, teacher_entropies=True)
    mean_one: ClassVar[bool] = True
    beta: float = Field(default=1.0, ge=0.0)

    def weights(self, row: ScoredRow, kept: Tensor) -> Tensor:
        return (-self.beta * row.teacher_entropies).exp()


class OnlyRows(TokenWeight):
    """1 on the responses that are right (or wrong), 0 on the others: which rows are distilled."""

    type: Literal["only_rows"] = "only_rows"
    needs: ClassVar[Needs] = Needs(verdicts=True)
    that_are: Literal["right", "wrong"] = "wrong"

    def weights(self, row: ScoredRow, kept: Tensor) -> Tensor:
        return kept.float().fill_(row.correct is (self.that_are == "right"))

    def words(self) -> str:
        return f"{self.that_are} rows"


class MarkerProbability(TokenWeight):
    """(1 - p)^power, p the probability that a marker of doubt begins here.

    Unlike a mask on sampled markers it also spares the places where doubt could have been said.
    """

    type: Literal["marker_probability"] = "marker_probability"
    of: Literal["student", "teacher"] = "student"
    power: float = Field(default=1.0, gt=0.0)

    @property
    def needs(self) -> Needs:  # pyright: ignore[reportIncompatibleVariableOverride]
        if self.of == "student":
            return Needs(student_marker_mass=True)
        return Needs(teacher_scores=True, teacher_marker_mass=True)

    def weights(self, row: ScoredRow, kept: Tensor) -> Tensor:
        mass = row.student_marker_mass if self.of == "student" else row.teacher_marker_mass
        return (1 - mass).clamp(min=0.0) ** self.power


class StudentEntropy(TokenWeight):
    """exp(-beta H_S), divided by its mean over the step's distilled tokens; forks if beta < 0."""

    type: Literal["student_entropy"] = "student_entropy"
    needs: ClassVar[Needs] = Needs(student_entropies=True)
    mean_one: ClassVar[bool] = True
    beta: float = 1.0

    def weights(self, row: ScoredRow, kept: Tensor) -> Tensor:
        return (-self.beta * row.student_entropies).exp()


class CertaintyGap(TokenWeight):
    """exp(-beta max(0, H_S - H_T)): little where the teacher is sure of what the student is not.

    That certainty comes from the context, and the student cannot have it.
    """

    type: Literal["certainty_gap"] = "certainty_gap"
    needs: ClassVar[Needs] = Needs(
        teacher_scores=True, teacher_entropies=True, student_entropies=True
    )
    beta: float = Field(default=2.0, gt=0.0)

    def weights(self, row: ScoredRow, kept: Tensor) -> Tensor:
        gap = row.student_entropies - row.teacher_entropies
        return (-self.beta * gap.clamp(min=0.0)).exp()


def _not_empty(start: int, stop: int | None, names: tuple[str, str]) -> None:
    if stop is not None and stop <= start:
        first, last = names
        raise ValueError(
            f"{first} is {start} and {last} is {stop}, so nothing lies between; expected {last} "
            f"above {first}, or without {last}"
        )
