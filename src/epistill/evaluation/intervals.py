"""95 % intervals: from problems drawn again, and from seeds crossed with problems.

A p-value against 0 is below .05 exactly where the interval leaves 0 out; no interval leaves out its
own estimate. Simulated coverage is in `docs/metrics.md`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
# Numbers this near, relative to the estimate (or to 1), differ by rounding: 0.3 - 0.1 - 0.2 is 0.
ROUNDING = 1e-12


def bca_interval(
    value: float, draws: Floats, left_out: Floats, clusters: int
) -> tuple[float, float, float]:
    """The bias-corrected and accelerated bootstrap, at Student-t levels.

    Percentile intervals miss near a ceiling, where a mean is skewed, and with few problems. BCa
    moves the levels by the draws' median bias and by the jackknife's skewness; the normal quantile
    that it starts from is replaced by t's, times sqrt(n / (n - 1)) for a spread that divides by n.
    Where that is beyond the resolution of the draws (fewer than five problems or so) the interval
    is the jackknife's t.

    Args:
        value: The statistic of all problems.
        draws: [resamples] of it, finite.
        left_out: [clusters] of it, each problem left out in turn; NaN where undefined.
        clusters: Problems that bear on it, at least 2.

    Returns:
        Low, high and the two-sided p-value.

    Source: Efron 1987, "Better bootstrap confidence intervals" (JASA 82:171); Hesterberg 2015,
    "What teachers should know about the bootstrap" (The American Statistician 69:371), section 5.1.

    Example:
        >>> x = np.array([0.0, 1.0, 1.0, 1.0])
        >>> low, high, p = bca_interval(0.75, np.full(99, 0.75), (x.sum() - x) / 3, 4)
        >>> low, high
        (0.75, 0.75)
    """
    from scipy.special import ndtr, stdtr, stdtrit

    near = ROUNDING * max(1.0, abs(value))
    value = 0.0 if abs(value) <= near else value
    draws = np.sort(np.where(np.abs(draws) <= near, 0.0, draws))
    if draws[-1] - draws[0] <= near:  # nothing varies
        return value, value, 1.0 if value == 0 else 2 / (draws.size + 1)
    left_out = left_out[np.isfinite(left_out)]
    pulls = left_out.mean() - left_out
    squares = max(float((pulls**2).sum()), np.finfo(float).tiny)
    skewness = float((pulls**3).sum()) / (6 * squares**1.5)
    stretch = np.sqrt(clusters / (clusters - 1))
    quantile = float(stdtrit(clusters - 1, 0.975))
    if ndtr(-stretch * quantile) * (draws.size + 1) < 1:
        error = np.sqrt(squares * (left_out.size - 1) / left_out.size)
        p_value = 2 * float(stdtr(clusters - 1, -abs(value) / error))
        return value - quantile * error, value + quantile * error, p_value
    bias = _bias(draws, value, near)
    lower = _lower_end(draws, bias, skewness, stretch * quantile)
    upper = _lower_end(-draws[::-1], -bias, -skewness, stretch * quantile)
    nearest_zero = min(lower[1], upper[1]) / stretch
    p_value = min(1.0, 2 * float(stdtr(clusters - 1, nearest_zero)))
    return min(lower[0], value), max(-upper[0], value), p_value


def _bias(draws: Floats, value: float, near: float) -> float:
    """Normal quantile of the share of draws below the estimate, ties shared."""
    from scipy.special import ndtri

    below = np.searchsorted(draws, value - near) + np.searchsorted(draws, value + near, "right")
    below = min(max(below / 2, 0.5), draws.size - 0.5)
    above = draws.size - below  # of the smaller share, so that both signs mirror each other
    return float(ndtri(below / draws.size) if below <= above else -ndtri(above / draws.size))


def _lower_end(draws: Floats, bias: float, skewness: float, quantile: float) -> tuple[float, float]:
    """The lower end, and the normal quantile at which it would be 0."""
    from scipy.special import ndtr, ndtri

    reach = bias - quantile
    level = float(ndtr(bias + reach / max(1 - skewness * reach, ROUNDING)))
    end = float(np.interp(level * (draws.size + 1) - 1, np.arange(draws.size), draws))
    zero = float(np.searchsorted(draws, 0.0, "right"))  # draws that are not above it
    if zero == draws.size:
        return end, np.inf
    if zero > 0:  # interpolated, as the end is
        last, first = draws[int(zero) - 1], draws[int(zero)]
        share = (zero - last / (first - last)) / (draws.size + 1)
    else:  # every draw is above: so is the end, even at a level beyond the first draw
        share = min(1 / (draws.size + 1), level / 2)
    beyond = float(ndtri(share)) - bias
    at_zero = beyond / (1 + skewness * beyond) if 1 + skewness * beyond > 0 else -np.inf
    return end, float(at_zero - bias)


def crossed_interval(table: Floats) -> tuple[float, float]:
    """Of the mean of seeds crossed with problems: t on the two-way standard error.

    The variance of the mean is that of the seeds' means plus that of the problems' means, less
    the interaction, which both hold. Three seeds know their part poorly and many problems know
    theirs well, so the t quantile is the mean of both parts' own, weighted by their variances.
    Drawing three seeds again instead covers 75 to 80 %.

    Args:
        table: [seeds, problems], at least 2 of both.

    Source: Cochran and Cox 1957, "Experimental Designs", second edition (t of two variances).

    Example:
        >>> crossed_interval(np.array([[0.0, 1.0], [0.0, 1.0]]))[0] < 0.5
        True
    """
    from scipy.special import stdtrit

    seeds, problems = table.shape
    mean, by_seed, by_problem = table.mean(), table.mean(1), table.mean(0)
    interaction = ((table - by_seed[:, None] - by_problem + mean) ** 2).sum()
    interaction /= (seeds - 1) * (problems - 1) * seeds * problems
    of_seeds = by_seed.var(ddof=1) / seeds
    of_problems = max(by_problem.var(ddof=1) / problems - interaction, 0.0)
    t_seeds, t_problems = stdtrit([seeds - 1, problems - 1], 0.975)
    variance = of_seeds + of_problems
    half = 0.0
    if variance > 0:
        half = float((of_seeds * t_seeds + of_problems * t_problems) / np.sqrt(variance))
    return without_rounding(mean - half), without_rounding(mean + half)


def without_rounding(number: float) -> float:
    """0 for what differs from it by rounding alone.

    Example:
        >>> without_rounding(0.3 - 0.1 - 0.2)
        0.0
    """
    return 0.0 if abs(number) <= ROUNDING else float(number)
