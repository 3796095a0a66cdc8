"""Comparisons of one evaluation set: scores, lengths, markers, scores under budgets.

Enters: a `Matched`. Leaves: `Contrast`s, each a ratio of sums on both sides, and from all of them
the rows of the output in one resampling of the problems. A mean over problems is a ratio with ones
below; problems that do not bear on a number have zeros there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from epistill.comparison.paired_problems import Half, Matched
from epistill.errors import EpistillError
from epistill.evaluation.intervals import Floats
from epistill.evaluation.paired import paired_ratio_tests
from epistill.evaluation.stats import RESAMPLES, avg_at_k, bootstrap_ratio, maj_at_k, pass_at_k
from epistill.metrics.lexicon import Lexicon

CANNOT_CUT = (
    "cut responses cannot be graded: no problem has a reference answer and texts on both sides; "
    "name the problems with --problems"
)
UNGRADED = (
    "no problem is graded on both sides: the records hold no score (score, correct, ...) and no "
    "reference answer; name the problems with --problems"
)


@dataclass(frozen=True, slots=True)
class Contrast:
    """One number on both sides.

    Attributes:
        row: What the output says about it besides its values.
        above, below: [2, problems], A first.
    """

    row: dict[str, Any]
    above: Floats
    below: Floats = field(repr=False)


def judged(contrasts: Sequence[Contrast], *, seed: int) -> list[dict[str, Any]]:
    """Rows with `a`, `b`, `difference` (B - A), `p_value` and `smallest_detectable`.

    Args:
        contrasts: All over the same problems.
        seed: Names the resampling.
    """
    if not contrasts:
        return []
    above, below = (
        np.stack([getattr(c, name) for c in contrasts], axis=2) for name in ("above", "below")
    )
    values = bootstrap_ratio(
        np.hstack([above[0], above[1]]),
        np.hstack([below[0], below[1]]),
        seed=seed,
        resamples=RESAMPLES,
    )
    tests = paired_ratio_tests(above[::-1], below[::-1], seed=seed)
    rows: list[dict[str, Any]] = []
    for i, (contrast, test) in enumerate(zip(contrasts, tests, strict=True)):
        ours, theirs = values[i], values[len(contrasts) + i]
        rows.append(
            contrast.row
            | {
                "a": None if ours is None else ours.as_dict(),
                "b": None if theirs is None else theirs.as_dict(),
                "difference": None if test is None else test.difference.as_dict(),
                "p_value": None if test is None else test.p_value,
                "smallest_detectable": None if test is None else test.smallest_detectable,
            }
        )
    return rows


def contrasts_of(
    matched: Matched, lexicons: Sequence[Lexicon], k: int | None
) -> Iterator[Contrast]:
    """The family: avg@k, pass@k, maj@k, length, density; and the densities of control lists.

    Raises:
        EpistillError: No problem has k graded responses on both sides.
    """
    yield from _scores(matched, k)
    yield _contrast(
        f"length ({matched.unit})",
        [
            half.sums(half.lengths, matched.problems)
            / half.sums(np.ones_like(half.lengths), matched.problems)
            for half in matched.halves
        ],
        [np.ones(matched.problems)] * 2,
    )
    yield from _checks(matched)
    controls = {lexicon.control for lexicon in lexicons}
    everything = matched.all_responses()
    for j, lexicon in enumerate(lexicons):
        measure = f"{lexicon.name} per 1,000 {matched.unit}"
        if any(r.markers[j] is None for r in everything):
            matched.reasons[measure] = "some records hold no text, and no count of these words"
        elif lexicon.language != "zh" or any(r.markers[j] for r in everything):
            # A list in a language that neither side uses says nothing.
            yield _contrast(
                measure,
                [
                    half.sums(1000 * markers_of(half, j), matched.problems)
                    for half in matched.halves
                ],
                [half.sums(half.lengths, matched.problems) for half in matched.halves],
                control=lexicon.name in controls,
            )


def _checks(matched: Matched) -> Iterator[Contrast]:
    """Answers given unverified, and candidates, over the responses of which text can tell."""
    for measure, name in (("answers given unverified", "committed"), ("candidates", "candidates")):
        above, below = [], []
        for half in matched.halves:
            values = [getattr(response.checked, name) for response in half.responses]
            known = np.array([value is not None for value in values], np.float64)
            counts = np.array([float(value or 0) for value in values])
            above.append(half.sums(counts, matched.problems))
            below.append(half.sums(known, matched.problems))
        if all(counted.any() for counted in below):
            yield _contrast(measure, above, below)
        else:
            matched.reasons[measure] = "no text of one side tells"


def markers_of(half: Half, lexicon: int) -> Floats:
    """[responses] markers of one lexicon."""
    return np.array([r.markers[lexicon] for r in half.responses], dtype=np.float64)


def _contrast(
    measure: str, above: Sequence[Floats], below: Sequence[Floats], *, control: bool = False
) -> Contrast:
    row = {"measure": measure, "control": control}
    return Contrast(row, np.stack(list(above)), np.stack(list(below)))


def _scores(matched: Matched, k: int | None) -> Iterator[Contrast]:
    groups = [_by_problem(half, matched.problems) for half in matched.halves]
    samples = np.array([[len(scores) for scores, _ in group] for group in groups]).min(axis=0)
    if not samples.any():
        matched.reasons["avg@k"] = UNGRADED
        return
    graded = samples > 0
    if not graded.all():
        matched.warnings.append(
            f"scores leave out {np.count_nonzero(~graded)} problems that are not graded on both "
            "sides"
        )
    yield _mean("avg@k", groups, graded, lambda scores, _: avg_at_k(scores))
    fewest = int(samples[graded].min())
    chosen = k or fewest
    enough = samples >= chosen
    if not enough.any():
        raise EpistillError(
            f"-k is {chosen}, but no problem has so many graded responses on both sides; choose at "
            f"most {samples.max()}"
        )
    if (graded & ~enough).any():
        matched.warnings.append(
            f"pass@{chosen} and maj@{chosen} leave out {np.count_nonzero(graded & ~enough)} "
            f"problems with fewer than {chosen} graded responses"
        )
    if k is None and fewest < (usual := int(np.median(samples[graded]))):
        matched.warnings.append(
            f"k is {fewest} since some problem has no more graded responses, though the median is "
            f"{usual}; -k {usual} leaves such problems out"
        )
    yield _mean(
        f"pass@{chosen}", groups, enough, lambda s, _: pass_at_k(len(s), int(sum(s)), chosen)
    )
    if all(any(answer is not None for answer in half.answers) for half in matched.halves):
        yield _mean(
            f"maj@{chosen}",
            groups,
            enough,
            lambda s, answers: maj_at_k(answers, [score > 0 for score in s], chosen),
        )
    else:
        matched.reasons[f"maj@{chosen}"] = "no answer could be read in the responses of one side"


def _mean(measure: str, groups: Any, chosen: Any, value: Any) -> Contrast:
    """Mean over the chosen problems of a value of each one's scores and answers."""
    above = [
        np.array([value(*g) if c else 0.0 for g, c in zip(group, chosen, strict=True)])
        for group in groups
    ]
    return _contrast(measure, above, [chosen.astype(np.float64)] * 2)


def _by_problem(half: Half, problems: int) -> list[tuple[list[float], list[str | None]]]:
    """Scores and answers of the graded responses of each problem."""
    found: list[tuple[list[float], list[str | None]]] = [([], []) for _ in range(problems)]
    for problem, score, answer in zip(half.problems, half.scores, half.answers, strict=True):
        if not np.isnan(score):
            found[problem][0].append(float(score))
            found[problem][1].append(answer)
    return found


def budget_contrasts(matched: Matched, budgets: Sequence[int]) -> Iterator[Contrast]:
    """avg@k had every response been cut at a budget, for each budget."""
    known = [~np.isnan(half.prefixes).any(axis=1) for half in matched.halves]
    counts = [
        half.sums(there.astype(float), matched.problems)
        for half, there in zip(matched.halves, known, strict=True)
    ]
    both = (counts[0] > 0) & (counts[1] > 0)
    if not both.any() or not budgets:
        matched.reasons["budgets"] = CANNOT_CUT if budgets else "every response is one word long"
        return
    missing = sum(int(np.count_nonzero(~there)) for there in known)
    if missing:
        matched.warnings.append(
            f"budgets: {missing} responses have no text or no reference answer; "
            f"{np.count_nonzero(both)} of {matched.problems} problems remain"
        )
    for column, budget in enumerate(budgets):
        above = [
            np.where(both, half.sums(np.where(there, half.prefixes[:, column], 0), len(both)), 0)
            / np.maximum(count, 1)
            for half, there, count in zip(matched.halves, known, counts, strict=True)
        ]
        cut = [
            float(np.mean(~half.within[there & both[half.problems], column]))
            for half, there in zip(matched.halves, known, strict=True)
        ]
        found = _contrast(f"avg@k within {budget:,}", above, [both.astype(np.float64)] * 2)
        found.row.update({"budget": budget, "cut_share": {"a": cut[0], "b": cut[1]}})
        yield found
