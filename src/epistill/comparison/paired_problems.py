"""Two sides of one evaluation set as arrays, restricted to the problems of both.

Enters: two `Side`s that were graded again, and the problems they share. Leaves: `PairedProblems`. A
recorded score counts before one of the grader's, unless told otherwise; disagreements are said.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from epistill.comparison.responses import Response
from epistill.evaluation.intervals import Floats
from epistill.metrics.words import Ints


@dataclass(frozen=True, slots=True)
class Half:
    """One side; every array is [responses], aligned.

    Attributes:
        responses: Those to shared problems.
        problems: Index of the problem, the same numbering on both sides.
        scores: 1 or 0; NaN without a grade.
        lengths: In the unit of `PairedProblems`.
        markers: [responses, lexicons]; NaN where the text was not kept.
    """

    responses: Sequence[Response]
    problems: Ints
    scores: Floats
    lengths: Floats
    markers: Floats

    def sums(self, values: Floats, count: int) -> Floats:
        """[problems] sums of [responses] values."""
        return np.bincount(self.problems, weights=values, minlength=count).astype(np.float64)


@dataclass(frozen=True, slots=True)
class PairedProblems:
    """Both sides of a set.

    Attributes:
        problems: Number of shared problems.
        unit: "tokens" where every response of both sides has a count of them, else "words".
        halves: A, B.
        warnings: What a reader must know, one line each.
        reasons: For numbers that cannot be known, why.
    """

    problems: int
    unit: str
    halves: tuple[Half, Half]
    warnings: list[str] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)


def pair_problems(
    problems: Sequence[str],
    sides: Sequence[Sequence[Response]],
    timeouts: Sequence[int],
    *,
    regrade: bool = False,
) -> PairedProblems:
    """Restrict both sides to problems and turn them into arrays.

    Args:
        problems: Those of both sides.
        sides: Responses of A, of B.
        timeouts: From `budgets.regrade`.
        regrade: The grader's scores count before the recorded ones.
    """
    index = {problem: i for i, problem in enumerate(problems)}
    kept = [[r for r in side if r.problem in index] for side in sides]
    unit = "words" if any(r.tokens is None for side in kept for r in side) else "tokens"
    warnings: list[str] = []
    halves: list[Half] = []
    for label, side, cut_off in zip("AB", kept, timeouts, strict=True):
        halves.append(
            Half(
                responses=side,
                problems=np.array([index[r.problem] for r in side]),
                scores=_scores(label, side, regrade, warnings),
                lengths=np.array([getattr(r, unit) for r in side], np.float64),
                markers=np.array([r.markers for r in side], np.float64),
            )
        )
        if cut_off:
            warnings.append(
                f"{label}: grading took too long for {cut_off} answers; they count as wrong"
            )
    return PairedProblems(len(problems), unit, (halves[0], halves[1]), warnings)


def _scores(
    label: str, responses: Sequence[Response], regrade: bool, warnings: list[str]
) -> Floats:
    ours = np.array([r.graded for r in responses], np.float64)
    recorded = np.array([np.nan if r.score is None else float(r.score > 0.5) for r in responses])
    both = ~np.isnan(recorded) & ~np.isnan(ours)
    apart = int(np.count_nonzero(recorded[both] != ours[both]))
    if apart:
        used = "the grader's" if regrade else "the recorded"
        warnings.append(
            f"{label}: the grader disagrees with {apart} of {int(both.sum())} recorded scores; "
            f"{used} ones count (under budgets always the grader's)"
        )
    fractions = sum(1 for r in responses if r.score not in (None, 0, 1))
    if fractions:
        warnings.append(
            f"{label}: {fractions} recorded scores are neither 0 nor 1; above 0.5 is a success"
        )
    first, second = (ours, recorded) if regrade else (recorded, ours)
    scores = np.where(np.isnan(first), second, first)
    if ungraded := int(np.count_nonzero(np.isnan(scores))):
        warnings.append(
            f"{label}: {ungraded} of {len(responses)} responses have neither a score nor a "
            "reference answer"
        )
    return scores
