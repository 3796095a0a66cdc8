"""Two sides of one evaluation set as arrays, restricted to the problems of both.

Enters: two `Side`s, the problems they share, and what grading again found. Leaves: a `Matched`. A
recorded score counts before one of the grader's, unless told otherwise; disagreements are said.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from epistill.comparison.budgets import Regraded
from epistill.comparison.responses import Response
from epistill.evaluation.intervals import Floats
from epistill.metrics.words import Ints


@dataclass(frozen=True, slots=True)
class Half:
    """One side; every array is [responses], aligned.

    Attributes:
        responses: Those to shared problems.
        places: Their places among all responses of the side's set.
        problems: Index of the problem, the same numbering on both sides.
        scores: 1 or 0; NaN without a grade.
        answers: Extracted answers.
        lengths: In the unit of `Matched`.
        prefixes: [responses, budgets] scores of cut responses, NaN where they cannot be graded.
        within: [responses, budgets], whether the response ended within the budget.
    """

    responses: Sequence[Response]
    places: Sequence[int]
    problems: Ints
    scores: Floats
    answers: Sequence[str | None]
    lengths: Floats
    prefixes: Floats
    within: NDArray[np.bool_]

    def sums(self, values: Floats, count: int) -> Floats:
        """[problems] sums of [responses] values."""
        return np.bincount(self.problems, weights=values, minlength=count).astype(np.float64)


@dataclass(frozen=True, slots=True)
class Matched:
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

    def all_responses(self) -> list[Response]:
        """Of both sides."""
        return [*self.halves[0].responses, *self.halves[1].responses]


def match(
    problems: Sequence[str],
    sides: Sequence[Sequence[Response]],
    regraded: Sequence[Regraded],
    *,
    regrade: bool = False,
) -> Matched:
    """Restrict both sides to problems and turn them into arrays.

    Args:
        problems: Those of both sides.
        sides: Responses of A, of B.
        regraded: What the grader found for them.
        regrade: The grader's scores count before the recorded ones.
    """
    index = {problem: i for i, problem in enumerate(problems)}
    places = [[i for i, r in enumerate(side) if r.problem in index] for side in sides]
    unit = "tokens"
    if any(sides[i][p].tokens is None for i in (0, 1) for p in places[i]):
        unit = "words"
    warnings: list[str] = []
    halves: list[Half] = []
    for label, side, found, kept in zip("AB", sides, regraded, places, strict=True):
        responses = [side[place] for place in kept]
        lengths = [(r.words if unit == "words" else r.tokens) or 0 for r in responses]
        halves.append(
            Half(
                responses=responses,
                places=kept,
                problems=np.array([index[r.problem] for r in responses]),
                scores=_scores(label, responses, found.scores[kept], regrade, warnings),
                answers=[found.answers[place] for place in kept],
                lengths=np.array(lengths, dtype=np.float64),
                prefixes=found.prefixes[kept],
                within=found.within[kept],
            )
        )
        if found.timeouts:
            warnings.append(
                f"{label}: grading took too long for {found.timeouts} answers; they count as wrong"
            )
    return Matched(len(problems), unit, (halves[0], halves[1]), warnings)


def _scores(
    label: str, responses: Sequence[Response], ours: Floats, regrade: bool, warnings: list[str]
) -> Floats:
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
