"""Paired comparisons: differences on the same problems, their p-values, what n could have shown.

Every interval comes from the one resampling of problems in `stats.resampled_sums`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from epistill.evaluation.intervals import Floats, bca_interval, without_rounding
from epistill.evaluation.stats import RESAMPLES, Estimate, resampled_sums

# An interval from fewer of the resamples than this would leave out the worlds that it is about.
LEAST_VALID_SHARE = 0.95


@dataclass(frozen=True, slots=True)
class PairedTest:
    """A paired difference with what is needed to read it.

    Attributes:
        difference: Ours minus theirs.
        p_value: Two-sided, by inverting the interval; None with one problem.
        smallest_detectable: See `minimum_detectable_difference`; None where nothing varies.

    Example:
        >>> paired_test([0.5, 1.0, 0.75], [0.0, 0.5, 0.25], resamples=100).difference.value
        0.5
    """

    difference: Estimate
    p_value: float | None
    smallest_detectable: float | None


def minimum_detectable_difference(
    differences: ArrayLike, *, alpha: float = 0.05, power: float = 0.80
) -> float | None:
    """The true mean difference that this many problems would have shown with the given power.

    (z(1 - alpha/2) + z(power)) standard errors of the mean paired difference: a normal
    approximation around the spread that was observed, for one two-sided test without a correction
    for others.

    Args:
        differences: [problems], paired; in any unit, which is also the unit of the result.
        alpha: Level of the two-sided test.
        power: Probability of showing it.

    Returns:
        None with fewer than two problems or where nothing varies.

    Raises:
        ValueError: NaN, or alpha or power not between 0 and 1.

    Source: Bloom 1995, "Minimum detectable effects" (Evaluation Review 19:547).

    Example:
        >>> round(minimum_detectable_difference([0.0, 1.0, 0.0, 1.0]), 3)
        0.809
    """
    from scipy.stats import norm

    if not (0 < alpha < 1 and 0 < power < 1):
        raise ValueError(f"alpha {alpha} and power {power}; expected both between 0 and 1")
    values = np.asarray(differences, dtype=np.float64)
    if np.isnan(values).any():
        raise ValueError("expected no NaN among the differences")
    if values.size < 2:
        return None
    error = float(values.std(ddof=1) / np.sqrt(values.size))
    return float(norm.ppf(1 - alpha / 2) + norm.ppf(power)) * error or None


def paired_test(
    ours: ArrayLike, theirs: ArrayLike, *, seed: int = 0, resamples: int = RESAMPLES
) -> PairedTest:
    """`paired_bootstrap` of [problems] with its p-value and the minimum detectable difference.

    Raises:
        ValueError: Shapes differ, no problems, or NaN.

    Example:
        >>> found = paired_test([1.0, 1.0, 0.0], [0.0, 1.0, 0.0])
        >>> round(found.smallest_detectable, 3)
        0.934
    """
    above = np.array([ours, theirs], dtype=np.float64)
    if above.ndim != 2:
        raise ValueError(f"paired arrays of shapes {above.shape[1:]}; expected [problems]")
    return paired_ratio_test(above, np.ones_like(above), seed=seed, resamples=resamples)


def paired_ratio_test(
    above: Floats, below: Floats, *, seed: int = 0, resamples: int = RESAMPLES
) -> PairedTest:
    """Difference of two ratios of sums over the same problems: densities, shares, means.

    The ratio of a side is the sum of `above` over the sum of `below`, as in `bootstrap_ratio`; a
    mean over problems is a ratio with ones below. The minimum detectable difference linearises
    both ratios (delta method).

    Args:
        above, below: [2, problems], ours first; what each problem adds to the two sums of a side.
        seed, resamples: As in `bootstrap_mean`.

    Raises:
        ValueError: Shapes differ, no problems, NaN, or a side whose `below` sums to 0.

    Example:
        >>> above = np.array([[1.0, 3.0], [2.0, 2.0]])
        >>> paired_ratio_test(above, np.full((2, 2), 4.0)).difference.value
        0.0
    """
    if above.shape != below.shape or above.ndim != 2 or len(above) != 2 or not above.size:
        raise ValueError(f"paired ratios of shapes {above.shape} and {below.shape}")
    if np.isnan(above).any() or np.isnan(below).any() or (below.sum(axis=1) <= 0).any():
        raise ValueError("expected no NaN, and on each side something to divide by")
    (found,) = paired_ratio_tests(
        above[..., None], below[..., None], seed=seed, resamples=resamples
    )
    assert found is not None
    return found


def paired_ratio_tests(
    above: Floats, below: Floats, *, seed: int = 0, resamples: int = RESAMPLES
) -> list[PairedTest | None]:
    """`paired_ratio_test` of many ratios at once, in one resampling.

    Args:
        above, below: [2, problems, ratios], ours first. A problem that does not bear on a ratio
            has zeros there.
        seed, resamples: As in `bootstrap_mean`.

    Returns:
        [ratios]; None where nothing is below the line on a side.

    Example:
        >>> above = np.ones((2, 4, 3))
        >>> [test.difference.value for test in paired_ratio_tests(above, above)]
        [0.0, 0.0, 0.0]
    """
    count = above.shape[2]
    table = np.concatenate([above[0], above[1], below[0], below[1]], axis=1)

    def difference(row: int) -> Callable[[Floats], Floats]:
        def of_sums(sums: Floats) -> Floats:
            ours, theirs, under, beneath = (sums[:, i * count + row] for i in range(4))
            return ours / under - theirs / beneath

        return of_sums

    known = [row for row in range(count) if (below[:, :, row].sum(axis=1) > 0).all()]
    there = [int(np.count_nonzero(below[:, :, row].any(axis=0))) for row in known]
    tests = bootstrap_statistics(
        table, [difference(row) for row in known], clusters=there, seed=seed, resamples=resamples
    )
    found: list[PairedTest | None] = [None] * count
    for row, test in zip(known, tests, strict=True):
        tops, bottoms = above[:, :, row], below[:, :, row]
        ratios = tops.sum(axis=1) / bottoms.sum(axis=1)
        # What each problem adds to the difference, to first order.
        shifts = (tops - ratios[:, None] * bottoms) / bottoms.mean(axis=1, keepdims=True)
        found[row] = replace(
            test, smallest_detectable=minimum_detectable_difference(shifts[0] - shifts[1])
        )
    return found


def bootstrap_statistics(
    table: Floats,
    statistics: Sequence[Callable[[Floats], Floats]],
    *,
    clusters: Sequence[int] | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> list[PairedTest]:
    """Functions of sums over problems, with 95 % intervals and p-values against 0.

    Args:
        table: [problems, columns], what each problem adds to each sum.
        statistics: Each from [draws, columns] sums to [draws] numbers, NaN where undefined.
        clusters: For each, the problems that bear on it; None takes all. With one there is no
            interval.
        seed, resamples: As in `bootstrap_mean`.

    Returns:
        `smallest_detectable` None. A statistic that more than 5 % of the resamples leave undefined
        has no interval and no p-value.

    Example:
        >>> table = np.array([[1.0, 2.0], [1.0, 4.0]])
        >>> (found,) = bootstrap_statistics(table, [lambda sums: sums[:, 0] / sums[:, 1]])
        >>> found.difference.value
        0.3333333333333333
    """
    clusters = [len(table)] * len(statistics) if clusters is None else clusters
    whole = table.sum(axis=0, keepdims=True)
    sums = resampled_sums(table, seed=seed, resamples=resamples) if len(table) > 1 else None
    found: list[PairedTest] = []
    for statistic, n in zip(statistics, clusters, strict=True):
        value = without_rounding(float(statistic(whole)[0]))
        found.append(PairedTest(Estimate(value, None, None, n), None, None))
        if sums is None or n < 2:
            continue
        with np.errstate(divide="ignore", invalid="ignore"):
            draws = statistic(sums)
        draws = draws[np.isfinite(draws)]
        if draws.size < LEAST_VALID_SHARE * resamples:
            continue
        with np.errstate(divide="ignore", invalid="ignore"):
            left_out = statistic(whole - table)
        low, high, p_value = bca_interval(value, draws, left_out, n)
        found[-1] = PairedTest(Estimate(value, low, high, n), p_value, None)
    return found


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for a family of comparisons, in the given order.

    The smallest is multiplied by the size of the family, the next by one less, and so on; none is
    then smaller than one before it. Comparing them with .05 holds the chance of any false finding
    in the family at 5 %, whatever the dependence.

    Raises:
        ValueError: One is not between 0 and 1.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    if not all(0 <= p <= 1 for p in p_values):
        raise ValueError(f"p-values {list(p_values)}; expected numbers between 0 and 1")
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted
