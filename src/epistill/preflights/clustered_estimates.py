"""Sums by problem: the clusters of every interval of preflight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from epistill.evaluation.intervals import Floats
from epistill.evaluation.stats import Estimate, bootstrap_mean, bootstrap_ratio


def ratios(
    problems: Sequence[str], columns: Mapping[str, tuple[Floats, Floats]], *, scale: float = 1.0
) -> dict[str, Estimate | None]:
    """Ratios of sums over rows, problems resampled; None where the denominator is 0.

    Args:
        problems: [rows] the problem of each row.
        columns: Name -> (numerators [rows], denominators [rows]).
        scale: Multiplies every numerator (1,000 for "per 1,000 tokens").
    """
    if not problems:
        return dict.fromkeys(columns, None)
    above = sums_by_problem(problems, [scale * numerators for numerators, _ in columns.values()])
    below = sums_by_problem(problems, [denominators for _, denominators in columns.values()])
    return dict(zip(columns, bootstrap_ratio(above, below), strict=True))


def sums_by_problem(problems: Sequence[str], columns: Sequence[Floats]) -> Floats:
    """[clusters, columns] sums, clusters in order of first appearance."""
    index = {name: i for i, name in enumerate(dict.fromkeys(problems))}
    sums = np.zeros((len(index), len(columns)))
    np.add.at(sums, [index[name] for name in problems], np.stack(columns, axis=1))
    return sums


def mean_of_means(problems: Sequence[str], values: Floats) -> Estimate | None:
    """Mean over problems of each problem's mean over its rows."""
    if not problems:
        return None
    sums = sums_by_problem(problems, [values, np.ones(len(values))])
    return bootstrap_mean(sums[:, 0] / sums[:, 1])
