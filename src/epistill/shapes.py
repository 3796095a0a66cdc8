"""Axis 5, shapes: how a teacher's log-probs change the verifier's advantage token by token.

A is the verifier's advantage, u = log p_teacher - log p_student. Imports no torch until a shape is
asked to compute.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import MutableMapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field

from epistill.settings import Choice
from epistill.training_rows import Needs, PreStepScores, Progress, ScoredRow, Tensor

TINY = 1e-8  # in denominators


class Shape(Choice):
    """An advantage for every token of a response.

    Attributes:
        needs: Scores that it reads. A row of which the teacher could not be asked them (no context,
            or one that does not fit) keeps `without_teacher` times the verifier's advantage.
        strength_field: The setting that an alarm may lower; None for none.
        without_teacher: What is left of the verifier's advantage; None: the row leaves the update.
        apart_weight: Of the mean over the tokens `apart`; None where there is one mean.
    """

    noun: ClassVar[str] = "shape"
    needs: ClassVar[Needs] = Needs(teacher_scores=True)
    strength_field: ClassVar[str | None] = None
    without_teacher: ClassVar[float | None] = 1.0
    apart_weight: ClassVar[float | None] = None

    @abstractmethod
    def advantages(self, row: ScoredRow, progress: Progress) -> Tensor:
        """[T], without gradient, of a row of which all that is needed is known."""

    def apart(self, row: ScoredRow, progress: Progress) -> Tensor | None:
        """[T], tokens whose loss is a mean of its own, weighted by `apart_weight`; None: one mean.

        A shape with this has its mean over tokens on each of the two paths, whatever the method's
        reduction says.
        """
        return None

    def remember(self, memory: MutableMapping[str, Any], scores: Sequence[PreStepScores]) -> None:
        """Take in the scores of a step, before its advantages; what is kept is JSON.

        `Progress.memory` has it; checkpoints hold it.
        """


class RatioShape(Shape):
    """A [(1 - s) + s clip(exp(sign(A) u), low, high)], s falling linearly to 0 over decay_steps.

    Source: RLSD 2604.03128. decay_steps None keeps s.
    """

    type: Literal["ratio"] = "ratio"
    strength_field: ClassVar[str | None] = "strength"
    strength: float = Field(default=0.5, ge=0.0, le=1.0)
    decay_steps: int | None = Field(default=50, ge=1)
    low: float = 0.8
    high: float = 1.2

    def advantages(self, row: ScoredRow, progress: Progress) -> Tensor:
        left = 1 - min(progress.step / self.decay_steps, 1.0) if self.decay_steps else 1.0
        strength = self.strength * left
        return _times_ratio(row.advantage, row.log_ratio, strength, self.low, self.high)


class ReversedRatioShape(Shape):
    """A [(1 - s) + s clip(exp(-sign(A) u), 1 - clip, 1 + clip)] on right responses, else A.

    Towards what the student found without the teacher. Source: RLRT 2605.10781.
    """

    type: Literal["reversed_ratio"] = "reversed_ratio"
    needs: ClassVar[Needs] = Needs(teacher_scores=True, verdicts=True)
    strength_field: ClassVar[str | None] = "strength"
    strength: float = Field(default=1.0, ge=0.0, le=1.0)
    clip: float = Field(default=1.0, gt=0.0, le=1.0)

    def advantages(self, row: ScoredRow, progress: Progress) -> Tensor:
        strength = self.strength if row.correct else 0.0
        return _times_ratio(row.advantage, -row.log_ratio, strength, 1 - self.clip, 1 + self.clip)


def _times_ratio(advantage: float, u: Tensor, strength: float, low: float, high: float) -> Tensor:
    sign = math.copysign(1.0, advantage) if advantage else 0.0
    return advantage * ((1 - strength) + strength * (sign * u).exp().clamp(low, high))


class AscentShape(Shape):
    """A - g strength phi(u), phi(u) = (softplus(u) - log 2) / 2: away from the teacher.

    A token that the teacher would rather say (u > 0) loses, without bound; one that it would not
    gains at most strength (log 2) / 2. The gate g is 0 for warmup_steps; the mean over them of the
    batch median of the teacher's entropy is H_warm. Then g turns 1 when the median reaches H_warm
    and 0 when it falls below gate_off H_warm. Source: AntiSD 2605.11609, Alg. 1; g right after the
    warm-up is inferred (on).
    """

    type: Literal["ascent"] = "ascent"
    needs: ClassVar[Needs] = Needs(teacher_scores=True, teacher_entropies=True)
    strength_field: ClassVar[str | None] = "strength"
    strength: float = Field(default=0.5, ge=0.0)
    gate_off: float = Field(default=0.93, gt=0.0)
    warmup_steps: int = Field(default=5, ge=1)

    def remember(self, memory: MutableMapping[str, Any], scores: Sequence[PreStepScores]) -> None:
        """Turn the gate: `memory["open"]` says whether it is.

        The median is over all scored tokens of the step. A step in which the teacher scored
        nothing, or nothing but NaN, leaves the gate as it is.
        """
        import torch

        warm, above = memory.setdefault("warm", []), memory.get("above", True)
        warming = len(warm) < self.warmup_steps
        parts = [s.teacher_entropies for s in scores if s.teacher_entropies is not None]
        median = float(torch.cat(parts).median()) if parts else math.nan
        if not math.isnan(median):
            if warming:
                warm.append(median)
            else:
                level = sum(warm) / len(warm)
                above = median >= level or (above and median >= self.gate_off * level)
        memory.update(above=above, open=above and not warming)

    def advantages(self, row: ScoredRow, progress: Progress) -> Tensor:
        from torch.nn.functional import softplus

        opened = self.strength if progress.memory.get("open", True) else 0.0
        return row.advantage - opened * 0.5 * (softplus(row.log_ratio) - math.log(2))


class ContrastShape(Shape):
    """Sign-preserving clamp of A + r, r = clip(beta strength tanh(e / tau), -bound, bound).

    e = log p_T(y | c+) - log mean_k p_T(y | c-_k) over up to `negatives` wrong siblings (others
    fill up). Tokens with |r| > gate take this path, the rest keep A; each path is a mean of its
    own, the first weighted by eta. Rows without both contexts leave the update.
    Source: RLCSD 2606.11709.
    """

    type: Literal["contrast"] = "contrast"
    strength_field: ClassVar[str | None] = "strength"
    without_teacher: ClassVar[float | None] = None
    tau: float = Field(default=0.02, gt=0.0)
    beta: float = 1.0
    strength: float = 0.5
    bound: float = Field(default=2.0, gt=0.0)
    gate: float = Field(default=0.02, ge=0.0)
    eta: float = Field(default=1.0, ge=0.0)
    negatives: int = Field(default=4, ge=1)

    @property
    def needs(self) -> Needs:  # pyright: ignore[reportIncompatibleVariableOverride]
        return Needs(teacher_scores=True, wrong_siblings=self.negatives)

    @property
    def apart_weight(self) -> float | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.eta

    def advantages(self, row: ScoredRow, progress: Progress) -> Tensor:
        residual, taken = self._residual(row), self.apart(row, progress)
        moved = row.advantage + residual.where(taken, residual.new_zeros(()))
        if row.advantage == 0:
            return moved.zero_()
        return moved.clamp(min=0.0) if row.advantage > 0 else moved.clamp(max=0.0)

    def apart(self, row: ScoredRow, progress: Progress) -> Tensor:
        return self._residual(row).abs() > self.gate

    def _residual(self, row: ScoredRow) -> Tensor:
        negatives = row.negatives
        e = row.teacher_log_probs - (negatives.logsumexp(0) - math.log(negatives.shape[0]))
        return (self.beta * self.strength * (e / self.tau).tanh()).clamp(-self.bound, self.bound)


class EntropyDirectedShape(Shape):
    """A + beta tanh((tau - H) / sigma_H) sigmoid(|d| - 1) d, d = u / mean |u| of the response.

    Towards the teacher where the student is sure, away from it at its forks: H is the student's
    entropy, tau its `quantile` within the response, sigma_H the mean absolute deviation. Source:
    DASD 2605.22263 (quantile .20); beta, the normaliser of u and the side of the quantile are not
    published where we could read them: inferred.
    """

    type: Literal["entropy_directed"] = "entropy_directed"
    needs: ClassVar[Needs] = Needs(teacher_scores=True, student_entropies=True)
    strength_field: ClassVar[str | None] = "beta"
    beta: float = 1.0
    quantile: float = Field(default=0.8, gt=0.0, lt=1.0)

    def advantages(self, row: ScoredRow, progress: Progress) -> Tensor:
        u, entropies = row.log_ratio, row.student_entropies
        spread = (entropies - entropies.mean()).abs().mean() + TINY
        direction = ((entropies.quantile(self.quantile) - entropies) / spread).tanh()
        d = u / (u.abs().mean() + TINY)
        return row.advantage + self.beta * direction * (d.abs() - 1).sigmoid() * d


class InputContrastShape(Shape):
    """verifier A + u - strength mean_k u_k: the part of the teacher's signal that is about x.

    u_k is the log-ratio of a teacher that sees the same context under another problem's question.
    Source: CREDIT 2605.11613, whose abstract gives the decomposition but no constants: strength,
    the number of negatives and the verifier's share are inferred.
    """

    type: Literal["input_contrast"] = "input_contrast"
    strength: float = 1.0
    negatives: int = Field(default=1, ge=1)
    verifier: float = Field(default=0.0, ge=0.0)

    @property
    def needs(self) -> Needs:  # pyright: ignore[reportIncompatibleVariableOverride]
        return Needs(teacher_scores=True, other_questions=self.negatives)

    @property
    def without_teacher(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.verifier

    def advantages(self, row: ScoredRow, progress: Progress) -> Tensor:
        elsewhere = (row.negatives - row.student_log_probs).mean(0)
        return self.verifier * row.advantage + row.log_ratio - self.strength * elsewhere


class RelaxedShape(Shape):
    """max(u, floor) with floor = log(mix) / (1 - mix), and no verifier's advantage.

    Before `switch` steps on tokens with u >= floor only, then on the share `top` of the step's
    tokens with the largest student entropy; the mean is over those. Rows without a context leave.
    Source: REOPOLD 2603.11137, equations 7 to 10, which distils another model.
    """

    type: Literal["relaxed"] = "relaxed"
    needs: ClassVar[Needs] = Needs(teacher_scores=True, student_entropies=True)
    without_teacher: ClassVar[float | None] = None
    apart_weight: ClassVar[float | None] = 1.0
    mix: float = Field(default=0.1, gt=0.0, lt=1.0)
    top: float = Field(default=0.2, gt=0.0, le=1.0)
    switch: int = Field(default=50, ge=0)

    @property
    def floor(self) -> float:
        """The least that a token's u counts as, nats."""
        return math.log(self.mix) / (1 - self.mix)

    def remember(self, memory: MutableMapping[str, Any], scores: Sequence[PreStepScores]) -> None:
        """Keep the entropy from which on a token of this step belongs to the top share."""
        import torch

        parts = [
            one.student_entropies for one in scores
            if one.student_entropies is not None and one.teacher_log_probs is not None
        ]  # fmt: skip
        if parts:
            memory["from"] = float(torch.cat(parts).quantile(1 - self.top))

    def apart(self, row: ScoredRow, progress: Progress) -> Tensor:
        if progress.step < self.switch:
            return row.log_ratio >= self.floor
        return row.student_entropies >= progress.memory["from"]

    def advantages(self, row: ScoredRow, progress: Progress) -> Tensor:
        return row.log_ratio.clamp(min=self.floor) * self.apart(row, progress)
