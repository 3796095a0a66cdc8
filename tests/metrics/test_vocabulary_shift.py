"""The vocabulary test keeps its promises in worlds where the truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from epistill.metrics.vocabulary_shift import (
    MIN_PROBLEMS,
    share_of_like_words_that_moved_less,
    vocabulary_shift,
)


def world(rng, problems, words, *, paired, moved=0, factor=1.0):
    """Poisson counts whose rates depend on the problem's topic; the first `moved` words move."""
    lengths = rng.integers(600, 2400, size=(2, problems))
    rate = rng.uniform(0.0005, 0.02, size=words)
    change = np.where(np.arange(words) < moved, factor, 1.0)
    topic = rng.gamma(0.5, 2.0, size=(2, problems, words))
    if paired:
        topic[1] = topic[0]
    spread = rng.gamma(2, 0.5, size=(2, problems, words))
    a = rng.poisson(lengths[0][:, None] * rate * topic[0] * spread[0])
    b = rng.poisson(lengths[1][:, None] * rate * change * topic[1] * spread[1])
    if paired:
        return a, b, lengths[0].astype(float), lengths[1].astype(float)
    none, zeros = np.zeros_like(a), np.zeros(problems)
    return (
        np.vstack([a, none]),
        np.vstack([none, b]),
        np.r_[lengths[0], zeros],
        np.r_[zeros, lengths[1]],
    )


def by_tokens(a, b, words_a, words_b):
    """The two-proportion z-test that takes every token for independent."""
    first, second = a.sum(0) / words_a.sum(), b.sum(0) / words_b.sum()
    pooled = (a.sum(0) + b.sum(0)) / (words_a.sum() + words_b.sum())
    error = np.sqrt(pooled * (1 / words_a.sum() + 1 / words_b.sum()))
    return np.abs(second - first) > 1.96 * error


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("problems", [12, 60])
def test_where_nothing_moved_one_word_in_twenty_at_most_is_called_moved(problems, paired):
    rng = np.random.default_rng(11)
    called, naive = [], []
    for _ in range(12):
        sets = world(rng, problems, 200, paired=paired)
        shift = vocabulary_shift(*sets)
        tested = np.isfinite(shift.p_value)
        called += (shift.p_value[tested] < 0.05).tolist()
        naive += by_tokens(*sets)[tested].tolist()
    assert 0.01 < np.mean(called) < 0.06
    assert np.mean(naive) > 0.4  # tokens are not independent


def test_false_discoveries_are_controlled_and_true_ones_found():
    rng = np.random.default_rng(5)
    false, found = [], []
    for _ in range(20):
        shift = vocabulary_shift(*world(rng, 80, 200, paired=True, moved=30, factor=0.25))
        called = np.flatnonzero(shift.q_value < 0.05)
        false.append((called >= 30).sum() / max(called.size, 1))
        found.append((called < 30).sum() / 30)
    assert np.mean(false) < 0.08
    assert np.mean(found) > 0.8


def test_the_interval_covers_the_true_difference():
    rng = np.random.default_rng(3)
    covered = []
    for _ in range(200):
        problems = 60
        n = rng.integers(500, 1500, size=(2, problems))
        topic = rng.gamma(2, 0.5, size=problems)
        a = rng.poisson(n[0] * 0.01 * topic)[:, None]
        b = rng.poisson(n[1] * 0.006 * topic)[:, None]
        shift = vocabulary_shift(a, b, n[0].astype(float), n[1].astype(float))
        covered.append(abs(shift.delta[0] + 4.0) <= shift.half_width[0])
    assert np.mean(covered) > 0.9


def test_pairing_by_problem_finds_what_strangers_hide():
    rng = np.random.default_rng(8)
    a, b, words_a, words_b = world(rng, 40, 100, paired=True, moved=100, factor=0.7)
    paired = vocabulary_shift(a, b, words_a, words_b)
    zeros = np.zeros_like(a)
    strangers = vocabulary_shift(
        np.vstack([a, zeros]), np.vstack([zeros, b]),
        np.r_[words_a, np.zeros(40)], np.r_[np.zeros(40), words_b],
    )  # fmt: skip
    np.testing.assert_allclose(paired.delta, strangers.delta)
    assert np.median(paired.half_width) < 0.8 * np.median(strangers.half_width)


def test_equal_sets_and_sparse_counts():
    rng = np.random.default_rng(2)
    a, _, words, _ = world(rng, 20, 30, paired=True)
    shift = vocabulary_shift(a, a, words, words)
    tested = np.isfinite(shift.p_value)
    assert tested.any()
    np.testing.assert_allclose(shift.p_value[tested], 1, atol=1e-3)
    np.testing.assert_allclose(shift.delta, 0)
    dense = vocabulary_shift(a, a[::-1], words, words[::-1])
    thin = vocabulary_shift(
        sparse.csr_array(a), sparse.csr_array(a[::-1].copy()), words, words[::-1]
    )
    np.testing.assert_allclose(dense.half_width, thin.half_width)


def test_rare_words_and_few_problems_are_not_tested():
    counts = np.ones((12, 2), int)
    counts[MIN_PROBLEMS - 1 :, 1] = 0
    words = np.arange(100.0, 112.0)
    shift = vocabulary_shift(counts, counts * 2, words, words)
    assert np.isfinite(shift.p_value).tolist() == [True, False]
    few = vocabulary_shift(counts[:2], counts[:2] * 2, words[:2], words[:2])
    assert np.isnan(few.q_value).all()
    with pytest.raises(ValueError, match="without words"):
        vocabulary_shift(counts, counts, words, np.zeros(12))
    with pytest.raises(ValueError, match="counts"):
        vocabulary_shift(counts, counts[:5], words, words)


def test_a_frequent_word_is_compared_with_frequent_words():
    frequency = np.r_[np.full(50, 1000.0), np.full(50, 10.0)]
    moved = np.r_[np.linspace(1, 2, 50), np.linspace(0.01, 0.02, 50)]
    chosen = np.zeros(100, bool)
    chosen[[0, 99]] = True
    share = share_of_like_words_that_moved_less(moved, frequency, chosen, neighbours=40)
    assert (share[0], share[99]) == (0.0, 1.0)
    assert np.isnan(share[50])


def test_an_empty_vocabulary_has_no_shares():
    nothing = np.array([])
    assert share_of_like_words_that_moved_less(
        nothing, nothing, np.array([], dtype=bool)
    ).shape == (0,)
