"""avg@k, pass@k, maj@k and means with intervals over problems and seeds. Imports no torch.

Responses to one problem are not independent, so problems are what is resampled; several training
seeds add their own spread.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import combinations, compress
from math import comb
from typing import Any

import numpy as np

from epistill.evaluation.intervals import Floats, bca_interval, crossed_interval, without_rounding
from epistill.seeds import derive_seed, named_random
from epistill.tasks.equality import value_key

RESAMPLES = 10_000
MAX_SUBSETS = 500
CACHED_ENTRIES = 5_000_000  # 40 MB: the most that one cached resampling takes


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its uncertainty.

    Attributes:
        value: The point estimate.
        low, high: 95 % interval; None where one problem (or none) leaves nothing to resample.
        problems: Clusters resampled.
        seeds: Training seeds behind it.

    Example:
        >>> bootstrap_mean(np.array([0.0, 1.0, 1.0, 1.0]), resamples=100).value
        0.75
    """

    value: float
    low: float | None
    high: float | None
    problems: int
    seeds: int = 1

    def __post_init__(self) -> None:
        for name in ("value", "low", "high"):
            if getattr(self, name) == 0:  # -0.0 too, which tables would show with its sign
                object.__setattr__(self, name, 0.0)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def avg_at_k(correct: Sequence[bool | float]) -> float:
    """Share of a problem's k samples (grades, 0 or 1) that are correct.

    Raises:
        ValueError: No samples; a problem nobody answered has no score.

    Example:
        >>> avg_at_k([True, False, True, True])
        0.75
    """
    if not len(correct):
        raise ValueError("avg@k of no samples; expected at least one")
    return float(np.mean(correct))


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Unbiased estimate of P(at least one of k samples is correct): 1 - C(n-c, k) / C(n, k).

    Raises:
        ValueError: k outside 1..n, or c = correct outside 0..n.

    Source: Chen et al. 2021 (2107.03374), Eq. 1.

    Example:
        >>> pass_at_k(4, 2, 2)
        0.8333333333333334
    """
    if not 1 <= k <= n:
        raise ValueError(f"pass@k with k={k} and n={n} samples; expected 1 <= k <= n")
    if not 0 <= correct <= n:
        raise ValueError(f"{correct} correct of {n} samples; expected 0 <= correct <= n")
    return 1.0 - comb(n - correct, k) / comb(n, k)


def maj_at_k(
    answers: Sequence[str | None], correct: Sequence[bool], k: int, *, seed: int = 0
) -> float:
    """Expected correctness of the majority answer of k samples.

    Answers vote by value (`tasks.equality.value_key`): 1/2, .5 and 50/100 are one vote. Those that
    were graded correct have the reference's value and are one vote however they are spelled; wrong
    ones that only algebra could tell equal are not joined. A value that was graded both ways counts
    as its share of correct grades among all n. Ties are shared equally; unreadable answers (None)
    do not vote. Exact over all subsets of size k where there are at most 500, else over 500 drawn
    ones.

    Args:
        answers, correct: The n extracted answers, and whether each is correct.
        k: At most n.
        seed: Names the drawn subsets.

    Raises:
        ValueError: k outside 1..n, or lengths differ.

    Example:
        >>> maj_at_k(["a", "a", "b"], [True, True, False], 3)
        1.0
        >>> maj_at_k([".5", "1/2", "7"], [True, True, False], 3)
        1.0
    """
    n = len(answers)
    if len(correct) != n:
        raise ValueError(f"{n} answers but {len(correct)} grades")
    if not 1 <= k <= n:
        raise ValueError(f"maj@k with k={k} and n={n} samples; expected 1 <= k <= n")
    if comb(n, k) <= MAX_SUBSETS:
        subsets = list(combinations(range(n), k))
    else:
        rng = named_random("maj_at_k", seed, n, k)
        subsets = [tuple(rng.sample(range(n), k)) for _ in range(MAX_SUBSETS)]
    values = [None if answer is None else value_key(answer) for answer in answers]
    all_of, right_of = Counter(values), Counter(compress(values, correct))
    shares = {value: right_of[value] / count for value, count in all_of.items()}
    # All that are right are one value: True, which no key is.
    votes = [True if value is not None and shares[value] == 1 else value for value in values]
    return float(
        np.mean([_majority([votes[i] for i in s], {**shares, True: 1.0}) for s in subsets])
    )


def _majority(votes: Sequence[Any], shares: Mapping[Any, float]) -> float:
    """Mean share of correct grades of the values with most votes."""
    counts = Counter(vote for vote in votes if vote is not None)
    most = max(counts.values(), default=0)
    leaders = [shares[value] for value, count in counts.items() if count == most]
    return float(np.mean(leaders)) if leaders else 0.0


def bootstrap_mean(per_problem: Floats, *, seed: int = 0, resamples: int = RESAMPLES) -> Estimate:
    """Mean over problems with a 95 % interval.

    Args:
        per_problem: [problems], whose interval is `bca_interval`; or [seeds, problems] with the
            same problems for every seed: `crossed_interval`, which draws nothing.
        seed: Names the resampling.
        resamples: Draws.

    Raises:
        ValueError: No problems, or NaN.

    Example:
        >>> bootstrap_mean(np.array([1.0, 0.0, 1.0, 1.0])).value
        0.75
    """
    table = np.atleast_2d(np.asarray(per_problem, dtype=np.float64))
    seeds, problems = table.shape
    if problems == 0 or np.isnan(table).any():
        raise ValueError(f"expected at least one problem and no NaN; found shape {table.shape}")
    value = without_rounding(float(table.mean()))
    if problems == 1:
        return Estimate(value, None, None, problems, seeds)
    if seeds > 1:
        return Estimate(value, *crossed_interval(table), problems, seeds)
    draws = resampled_sums(table.T, seed=seed, resamples=resamples)[:, 0] / problems
    left_out = (table.sum() - table[0]) / (problems - 1)
    low, high, _ = bca_interval(value, draws, left_out, problems)
    return Estimate(value, low, high, problems)


def resampled_sums(table: Floats, *, seed: int = 0, resamples: int = RESAMPLES) -> Floats:
    """Sums over clusters that are drawn again with replacement: the bootstrap under all intervals.

    Args:
        table: [clusters, columns]; what one cluster adds to each sum.
        seed: Names the resampling; equal seeds and clusters give equal draws.
        resamples: Draws.

    Returns:
        [resamples, columns].

    Example:
        >>> resampled_sums(np.ones((5, 1)), resamples=2).tolist()
        [[5.0], [5.0]]
    """
    clusters = len(table)
    if clusters * resamples <= CACHED_ENTRIES:
        return clusters * (_shares(clusters, resamples, seed) @ table)
    # Many clusters: the draws are made, used and forgotten some at a time.
    rng = np.random.default_rng(derive_seed("bootstrap", seed, clusters))
    size = max(1, CACHED_ENTRIES // clusters)
    blocks = [min(size, resamples - done) for done in range(0, resamples, size)]
    equal = np.full(clusters, 1 / clusters)
    return np.concatenate([rng.multinomial(clusters, equal, size=n) @ table for n in blocks])


@lru_cache(maxsize=16)
def _shares(clusters: int, resamples: int, seed: int) -> Floats:
    """[resamples, clusters]: the share of each cluster in each resample."""
    rng = np.random.default_rng(derive_seed("bootstrap", seed, clusters))
    return rng.multinomial(clusters, np.full(clusters, 1 / clusters), size=resamples) / clusters


def bootstrap_ratio(
    numerators: Floats, denominators: Floats, *, seed: int = 0, resamples: int = RESAMPLES
) -> list[Estimate | None]:
    """Ratios of sums over clusters (a density, a share of responses) with 95 % intervals.

    Args:
        numerators, denominators: [clusters, ratios], what each cluster adds to both sums.
        seed, resamples: As in `bootstrap_mean`.

    Returns:
        [ratios]; None where the denominators sum to 0. `problems` of an estimate counts the
        clusters in which its denominator is above 0. Resamples whose denominator is 0 are left out.

    Raises:
        ValueError: Shapes differ.

    Example:
        >>> bootstrap_ratio(np.array([[1.0], [3.0]]), np.array([[2.0], [2.0]]))[0].value
        1.0
    """
    if numerators.shape != denominators.shape:
        raise ValueError(f"ratios of shapes {numerators.shape} and {denominators.shape}")
    columns = numerators.shape[1]
    sums = resampled_sums(np.hstack([numerators, denominators]), seed=seed, resamples=resamples)
    found: list[Estimate | None] = []
    for i in range(columns):
        above, below = numerators[:, i].sum(), denominators[:, i].sum()
        clusters = int(np.count_nonzero(denominators[:, i]))
        drawn = sums[:, columns + i] > 0
        if below == 0:
            found.append(None)
        elif clusters == 1:
            found.append(Estimate(float(above / below), None, None, 1))
        else:
            ratios = sums[drawn, i] / sums[drawn, columns + i]
            with np.errstate(divide="ignore", invalid="ignore"):
                left_out = (above - numerators[:, i]) / (below - denominators[:, i])
            low, high, _ = bca_interval(float(above / below), ratios, left_out, clusters)
            found.append(Estimate(float(above / below), low, high, clusters))
    return found


def t_interval(per_seed: Floats) -> Estimate:
    """Mean over training seeds (one number each) with a Student-t 95 % interval.

    Example:
        >>> t_interval(np.array([1.0, 2.0, 3.0])).value
        2.0
    """
    from scipy import stats

    values = np.asarray(per_seed, dtype=np.float64)
    if values.size == 0 or np.isnan(values).any():
        raise ValueError(f"expected at least one number and no NaN; found {values}")
    mean = float(values.mean())
    if values.size == 1:
        return Estimate(mean, None, None, 0, 1)
    half = float(stats.t.ppf(0.975, values.size - 1) * values.std(ddof=1) / np.sqrt(values.size))
    ends = without_rounding(mean - half), without_rounding(mean + half)
    return Estimate(mean, *ends, 0, int(values.size))


def paired_bootstrap(
    ours: Floats, theirs: Floats, *, seed: int = 0, resamples: int = RESAMPLES
) -> Estimate:
    """`bootstrap_mean` of ours minus theirs, [problems] or [seeds, problems], aligned.

    Raises:
        ValueError: Shapes differ.

    Example:
        >>> paired_bootstrap(np.array([1.0, 1.0]), np.array([0.0, 1.0])).value
        0.5
    """
    ours, theirs = np.atleast_2d(ours), np.atleast_2d(theirs)
    if ours.shape != theirs.shape:
        raise ValueError(f"paired arrays of shapes {ours.shape} and {theirs.shape}")
    return bootstrap_mean(ours - theirs, seed=seed, resamples=resamples)
