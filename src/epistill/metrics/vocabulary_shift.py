"""Which words moved between two sets of responses: the whole-vocabulary control of a marker count.

The unit is the problem: responses to one problem, and words of one response, are not independent,
so counting tokens as if they were would call nearly every word moved (tested).

With m counts of a word, n all words and N their sum, each set has the density r = sum(m) / N, to
which problem c contributes the influence (m_c - r n_c) / N (the linearised ratio estimator; Cochran
1977, section 6.12). A problem that both sets answer contributes one difference of influences, so
pairing is used where there is any. The squares of these sum to the variance; t has one degree of
freedom less than the smaller set has problems. Words in fewer than MIN_PROBLEMS problems are not
tested: t is no guide there. q-values control the false discovery rate over all tested words
(Benjamini and Hochberg 1995). Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
MIN_PROBLEMS = 10
LEAST = 3  # problems in either set, below which there is no variance to speak of


@dataclass(frozen=True, slots=True)
class Shift:
    """How words moved from set A to set B; every array is [words].

    Attributes:
        per_1k_a, per_1k_b: Occurrences per 1,000 words.
        delta: B minus A, per 1,000 words.
        half_width: Of the 95 % interval of `delta`; NaN where nothing is tested.
        log2_ratio: Of the densities, with half an occurrence added to each count.
        problems: Problems in which the word stands, in either set.
        p_value, q_value: NaN for words that are not tested.
    """

    per_1k_a: Floats
    per_1k_b: Floats
    delta: Floats
    half_width: Floats
    log2_ratio: Floats
    problems: NDArray[np.int64]
    p_value: Floats
    q_value: Floats


def vocabulary_shift(counts_a: Any, counts_b: Any, words_a: Floats, words_b: Floats) -> Shift:
    """Compare densities of every word, problem by problem.

    Without LEAST problems in each set nothing is tested.

    Args:
        counts_a, counts_b: [problems, words], arrays or scipy sparse arrays; row c of both is the
            same problem, and is 0 in the set that does not have it.
        words_a, words_b: [problems] all words of the responses to each problem.

    Raises:
        ValueError: Shapes differ, or a set has no words.

    Example:
        >>> a = np.array([[4, 1], [6, 1], [5, 2], [5, 0]])
        >>> shift = vocabulary_shift(a, a[:, ::-1], np.full(4, 100.0), np.full(4, 100.0))
        >>> shift.delta.tolist()
        [-40.0, 40.0]
    """
    from scipy import sparse, stats

    a, b = (sparse.csc_array(counts, dtype=np.float64) for counts in (counts_a, counts_b))
    assert a.shape is not None and b.shape is not None
    if a.shape != b.shape or a.shape[:1] != words_a.shape or words_a.shape != words_b.shape:
        raise ValueError(f"counts {a.shape}, {b.shape} with words {words_a.shape}, {words_b.shape}")
    total_a, total_b = float(words_a.sum()), float(words_b.sum())
    if not total_a or not total_b:
        raise ValueError("a set without words has no densities")
    sum_a, sum_b = (np.asarray(m.sum(axis=0)).ravel() for m in (a, b))
    rate_a, rate_b = sum_a / total_a, sum_b / total_b

    def products(m: Any, n: Floats, r: Floats, k: Any, o: Floats, s: Floats) -> Floats:
        """Sums over problems of (m - r n) (k - s o), which stays sparse."""
        both = np.asarray((m * k).sum(axis=0)).ravel()
        return both - s * (m.T @ o) - r * (k.T @ n) + r * s * float(n @ o)

    variance = (
        products(a, words_a, rate_a, a, words_a, rate_a) / total_a**2
        + products(b, words_b, rate_b, b, words_b, rate_b) / total_b**2
        - 2 * products(a, words_a, rate_a, b, words_b, rate_b) / (total_a * total_b)
    )
    present = (a + b).tocsc()
    present.eliminate_zeros()
    problems = np.diff(present.indptr).astype(np.int64)
    smaller = int(min(np.count_nonzero(words_a), np.count_nonzero(words_b)))
    delta = rate_b - rate_a
    half_width, p_value, q_value = (np.full(delta.shape, np.nan) for _ in range(3))
    tested = (problems >= MIN_PROBLEMS) if smaller >= LEAST else np.zeros(delta.shape, bool)
    if tested.any():
        # Rounding can leave a variance of 0 a hair below it; then delta is 0 too, and so is t.
        error = np.sqrt(np.maximum(variance[tested], 0) * smaller / (smaller - 1))
        t = np.abs(delta[tested]) / np.maximum(error, 1e-15)
        half_width[tested] = stats.t.ppf(0.975, smaller - 1) * error
        p_value[tested] = 2 * stats.t.sf(t, smaller - 1)
        q_value[tested] = stats.false_discovery_control(p_value[tested], method="bh")
    ratio = np.log2((sum_b + 0.5) / total_b) - np.log2((sum_a + 0.5) / total_a)
    densities = (1000 * rate_a, 1000 * rate_b, 1000 * delta, 1000 * half_width)
    return Shift(*densities, ratio, problems, p_value, q_value)


def share_of_like_words_that_moved_less(
    moved: Floats, frequency: Floats, chosen: NDArray[np.bool_], *, neighbours: int = 200
) -> Floats:
    """For each chosen word: among ordinary words of like frequency, the share that moved less.

    A frequent word can move further in absolute terms, so the rank among all words flatters
    frequent ones; this compares with the `neighbours` unchosen words nearest in log frequency. All
    arrays are [words]; NaN for words not chosen, and for all where every word is chosen.

    Example:
        >>> moved, common = np.array([5.0, 1.0, 2.0, 9.0]), np.array([1.0, 1.0, 1.0, 1.0])
        >>> chosen = np.array([True, False, False, False])
        >>> share_of_like_words_that_moved_less(moved, common, chosen)[0].round(2)
        np.float64(0.67)
    """
    share = np.full(moved.shape, np.nan)
    chosen = np.asarray(chosen, bool)  # an empty list is an array of floats
    ordinary = np.flatnonzero(~chosen & (frequency > 0))
    if not ordinary.size:
        return share
    distance = np.abs(moved[ordinary])
    for i in np.flatnonzero(chosen & (frequency > 0)):
        apart = np.abs(np.log(frequency[ordinary]) - np.log(frequency[i]))
        near = np.argsort(apart, kind="stable")[:neighbours]
        share[i] = float((distance[near] < abs(moved[i])).mean())
    return share
