"""Comparisons of one evaluation set: scores, lengths, markers, scores under budgets.

Enters: `PairedProblems`. Leaves: `Contrast`s, each a ratio of sums on both sides, and from all of
them the rows of the output in one resampling of the problems. A mean over problems is a ratio with
ones below; problems that do not bear on a number have zeros there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from epistill.comparison.paired_problems import Half, PairedProblems
from epistill.errors import EpistillError
from epistill.evaluation.intervals import Floats
from epistill.evaluation.paired import paired_ratio_tests
from epistill.evaluation.stats import avg_at_k, bootstrap_ratio, maj_at_k, pass_at_k
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
    values = bootstrap_ratio(np.hstack([*above]), np.hstack([*below]), seed=seed)
    tests = paired_ratio_tests(above[::-1], below[::-1], seed=seed)
    sides = zip(values[: len(contrasts)], values[len(contrasts) :], strict=True)
    return [
        {
            **contrast.row,
            **{side: one and one.as_dict() for side, one in zip("ab", both, strict=True)},
            "difference": test and test.difference.as_dict(),
            "p_value": test and test.p_value,
            "smallest_detectable": test and test.smallest_detectable,
        }
        for contrast, both, test in zip(contrasts, sides, tests, strict=True)
    ]


def contrasts_of(
    paired: PairedProblems, lexicons: Sequence[Lexicon], k: int | None
) -> Iterator[Contrast]:
    """The family: avg@k, pass@k, maj@k, length, density; and the densities of control lists.

    Raises:
        EpistillError: No problem has k graded responses on both sides.
    """
    yield from _scores(paired, k)
    lengths = [half.sums(half.lengths, paired.problems) for half in paired.halves]
    samples = [np.bincount(half.problems, minlength=paired.problems) for half in paired.halves]
    means = [length / count for length, count in zip(lengths, samples, strict=True)]
    yield _contrast(f"length ({paired.unit})", means, [np.ones(paired.problems)] * 2)
    yield from _checks(paired)
    controls = {lexicon.control for lexicon in lexicons}
    for j, lexicon in enumerate(lexicons):
        measure = f"{lexicon.name} per 1,000 {paired.unit}"
        markers = [half.markers[:, j] for half in paired.halves]
        if np.isnan(np.concatenate(markers)).any():
            paired.reasons[measure] = "some records hold no text, and no count of these words"
        elif lexicon.language != "zh" or np.concatenate(markers).any():
            # A list in a language that neither side uses says nothing.
            counts = [
                half.sums(1000 * own, paired.problems)
                for half, own in zip(paired.halves, markers, strict=True)
            ]
            yield _contrast(measure, counts, lengths, control=lexicon.name in controls)


def _checks(paired: PairedProblems) -> Iterator[Contrast]:
    """What `Checked` says, over the responses of which text can tell."""
    for measure, name in (
        ("answers verified", "verified"),
        ("answers given unverified", "committed"),
        ("candidates", "candidates"),
        ("first commitment, share of the reasoning", "first_commitment"),
    ):
        above, below = [], []
        for half in paired.halves:
            values = [getattr(response.checked, name) for response in half.responses]
            told = np.array([value is not None for value in values], np.float64)
            counts = np.array([float(value or 0) for value in values])
            above.append(half.sums(counts, paired.problems))
            below.append(half.sums(told, paired.problems))
        if all(counted.any() for counted in below):
            yield _contrast(measure, above, below)
        else:
            paired.reasons[measure] = "no text of one side tells"


def _contrast(
    measure: str, above: Sequence[Floats], below: Sequence[Floats], *, control: bool = False
) -> Contrast:
    return Contrast({"measure": measure, "control": control}, np.stack(above), np.stack(below))


def _scores(paired: PairedProblems, k: int | None) -> Iterator[Contrast]:
    groups = [_by_problem(half, paired.problems) for half in paired.halves]
    samples = np.array([[len(scores) for scores, _ in group] for group in groups]).min(axis=0)
    if not samples.any():
        paired.reasons["avg@k"] = UNGRADED
        return
    graded = samples > 0
    if not graded.all():
        paired.warnings.append(
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
        paired.warnings.append(
            f"pass@{chosen} and maj@{chosen} leave out {np.count_nonzero(graded & ~enough)} "
            f"problems with fewer than {chosen} graded responses"
        )
    if k is None and fewest < (usual := int(np.median(samples[graded]))):
        paired.warnings.append(
            f"k is {fewest} since some problem has no more graded responses, though the median is "
            f"{usual}; -k {usual} leaves such problems out"
        )
    yield _mean(
        f"pass@{chosen}", groups, enough, lambda s, _: pass_at_k(len(s), int(sum(s)), chosen)
    )
    if all(any(r.answer is not None for r in half.responses) for half in paired.halves):
        yield _mean(
            f"maj@{chosen}",
            groups,
            enough,
            lambda s, answers: maj_at_k(answers, [score > 0 for score in s], chosen),
        )
    else:
        paired.reasons[f"maj@{chosen}"] = "no answer could be read in the responses of one side"


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
    for problem, score, response in zip(half.problems, half.scores, half.responses, strict=True):
        if not np.isnan(score):
            found[problem][0].append(float(score))
            found[problem][1].append(response.answer)
    return found


def budget_contrasts(paired: PairedProblems, budgets: Sequence[int]) -> Iterator[Contrast]:
    """avg@k had every response been cut at a budget, for each budget."""
    cut_up = [np.array([r.graded is not None for r in half.responses]) for half in paired.halves]
    counts = [
        half.sums(there.astype(float), paired.problems)
        for half, there in zip(paired.halves, cut_up, strict=True)
    ]
    both = (counts[0] > 0) & (counts[1] > 0)
    if not both.any() or not budgets:
        paired.reasons["budgets"] = CANNOT_CUT if budgets else "every response is one word long"
        return
    if missing := sum(int(np.count_nonzero(~there)) for there in cut_up):
        paired.warnings.append(
            f"budgets: {missing} responses have no text or no reference answer; "
            f"{np.count_nonzero(both)} of {paired.problems} problems remain"
        )
    for column, budget in enumerate(budgets):
        above: list[Floats] = []
        cut_share: dict[str, float] = {}
        for side, half, there, count in zip("ab", paired.halves, cut_up, counts, strict=True):
            scores = [r.prefixes[column] if r.prefixes else 0.0 for r in half.responses]
            sums = half.sums(np.array(scores), paired.problems)
            above.append(np.where(both, sums, 0) / np.maximum(count, 1))
            within = np.array([r.within[column] if r.within else False for r in half.responses])
            cut_share[side] = float(np.mean(~within[there & both[half.problems]]))
        found = _contrast(f"avg@k within {budget:,}", above, [both.astype(np.float64)] * 2)
        yield replace(found, row=found.row | {"budget": budget, "cut_share": cut_share})
