from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from epistill.evaluation import stats
from epistill.evaluation.paired import bootstrap_statistics
from epistill.evaluation.stats import (
    Estimate,
    avg_at_k,
    bootstrap_mean,
    bootstrap_ratio,
    maj_at_k,
    paired_bootstrap,
    pass_at_k,
    resampled_sums,
    t_interval,
)

outcomes = st.lists(st.booleans(), min_size=1, max_size=7)


@given(outcomes, st.integers(1, 7))
def test_pass_at_k_is_the_mean_over_all_subsets(correct, k):
    n = len(correct)
    if k > n:
        with pytest.raises(ValueError, match="1 <= k <= n"):
            pass_at_k(n, sum(correct), k)
        return
    expected = np.mean([any(subset) for subset in combinations(correct, k)])
    assert pass_at_k(n, sum(correct), k) == pytest.approx(expected)


@given(outcomes)
def test_pass_at_1_is_avg_at_k_and_pass_grows(correct):
    n, c = len(correct), sum(correct)
    values = [pass_at_k(n, c, k) for k in range(1, n + 1)]
    assert values[0] == pytest.approx(c / n)
    assert values == sorted(values)


def test_maj_at_k_votes_ties_and_silence():
    answers = ["a", "a", "b", None]
    right = [True, True, False, False]
    assert maj_at_k(answers, right, 4) == 1.0
    assert maj_at_k(["a", "b"], [True, False], 2) == 0.5
    assert maj_at_k([None, None], [False, False], 2) == 0.0
    assert maj_at_k(answers, right, 1) == pytest.approx(0.5)


def test_maj_at_k_votes_by_value():
    spelled = ["0.5", "1/2", r"\frac12", "3", "3"]
    right = [True, True, True, False, False]
    assert maj_at_k(spelled, right, 5) == maj_at_k([".5"] * 3 + ["3"] * 2, right, 5) == 1.0
    assert maj_at_k(["3", "6/2", "1"], [False, False, True], 3) == 0.0  # wrong ones are joined too
    # Equal however they are spelled, since both are right; a value graded both ways is half right.
    assert maj_at_k([r"2\sqrt{3}", r"\sqrt{12}", "1"], [True, True, False], 3) == 1.0
    assert maj_at_k(["5", "5.0", "7"], [True, False, False], 3) == 0.5


def test_maj_at_k_by_sampling_is_near_the_exact_value():
    rng = np.random.default_rng(0)
    right = (rng.random(14) < 0.6).tolist()
    answers = ["r" if r else f"w{i % 3}" for i, r in enumerate(right)]
    exact = np.mean([
        maj_at_k([answers[i] for i in s], [right[i] for i in s], 5) for s in combinations(range(14), 5)
    ])  # fmt: skip
    assert maj_at_k(answers, right, 5) == pytest.approx(exact, abs=0.06)


def test_the_interval_covers_as_often_as_it_says():
    """Problems are clusters: 40 problems of differing difficulty, 4 samples each, 400 worlds."""
    rng = np.random.default_rng(1)
    hits = 0
    for world in range(400):
        difficulty = rng.beta(2, 2, size=40)
        table = (rng.random((40, 4)) < difficulty[:, None]).mean(1)
        found = bootstrap_mean(table, seed=world, resamples=1000)
        hits += found.low <= 0.5 <= found.high
    assert 0.90 <= hits / 400 <= 0.98


def test_ignoring_clusters_would_be_too_narrow():
    rng = np.random.default_rng(2)
    by_problem = (rng.random(50) < 0.5).astype(float)  # all samples of a problem agree
    clustered = bootstrap_mean(by_problem)
    as_if_independent = bootstrap_mean(np.repeat(by_problem, 8))
    assert clustered.high - clustered.low > 2 * (as_if_independent.high - as_if_independent.low)


def test_pairing_removes_what_problems_share():
    rng = np.random.default_rng(3)
    shared = rng.normal(size=200)
    ours, theirs = shared + 0.1 + 0.05 * rng.normal(size=200), shared
    paired = paired_bootstrap(ours, theirs)
    assert paired.low > 0
    assert bootstrap_mean(ours).low < bootstrap_mean(theirs).high


@settings(max_examples=20)
@given(st.integers(2, 30), st.integers(1, 3), st.integers(0, 100))
def test_estimates_hold_their_value_and_repeat(problems, seeds, key):
    table = np.random.default_rng(key).random((seeds, problems))
    found = bootstrap_mean(table, resamples=500)
    assert found == bootstrap_mean(table, resamples=500)
    assert found.value == pytest.approx(table.mean())
    assert found.low - 1e-12 <= found.value <= found.high + 1e-12
    assert (found.problems, found.seeds) == (problems, seeds)


def test_seeds_widen_the_interval():
    rng = np.random.default_rng(4)
    seeds = np.array([-0.2, 0.0, 0.2])[:, None] + 0.01 * rng.normal(size=(3, 100))
    assert bootstrap_mean(seeds).high - bootstrap_mean(seeds).low > 0.2


def test_absent_data_is_an_error_not_zero():
    for bad in (np.array([]), np.array([1.0, np.nan])):
        with pytest.raises(ValueError, match="no NaN"):
            bootstrap_mean(bad)
    with pytest.raises(ValueError, match="shapes"):
        paired_bootstrap(np.ones(3), np.ones(4))
    assert bootstrap_mean(np.array([0.5])).low is None


def test_t_interval_closed_form():
    found = t_interval(np.array([1.0, 2.0, 3.0]))
    assert found.value == 2.0
    assert found.high - 2.0 == pytest.approx(4.302652729911275 / 3**0.5)
    assert t_interval(np.array([1.0])).low is None


def test_many_clusters_are_drawn_in_blocks_as_if_at_once(monkeypatch):
    table = np.random.default_rng(5).random((37, 2))
    at_once = resampled_sums(table, seed=3, resamples=101)
    monkeypatch.setattr(stats, "CACHED_ENTRIES", 200)
    assert np.allclose(resampled_sums(table, seed=3, resamples=101), at_once)


def test_the_ratio_interval_covers_as_often_as_it_says():
    """Densities of responses whose length and rate both vary by problem; 400 worlds."""
    rng = np.random.default_rng(6)
    hits = 0
    for world in range(400):
        words = rng.integers(50, 500, size=60)
        rates = rng.gamma(4, 0.0025, size=60)
        markers = rng.poisson(words * rates)
        (found,) = bootstrap_ratio(
            markers[:, None].astype(float), words[:, None].astype(float), seed=world, resamples=500
        )
        hits += found.low <= 0.01 <= found.high
    assert 0.90 <= hits / 400 <= 0.98


def test_ratios_of_nothing_are_none():
    found = bootstrap_ratio(np.array([[0.0, 2.0], [0.0, 0.0]]), np.array([[0.0, 4.0], [0.0, 0.0]]))
    assert found[0] is None
    assert (found[1].value, found[1].low, found[1].problems) == (0.5, None, 1)
    with pytest.raises(ValueError, match="shapes"):
        bootstrap_ratio(np.ones((2, 1)), np.ones((2, 2)))


@given(st.integers(1, 40), st.data())
def test_pass_at_k_against_the_hypergeometric_distribution(n, data):
    correct, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    none_right = scipy_stats.hypergeom(n, correct, k).pmf(0)
    assert pass_at_k(n, correct, k) == pytest.approx(1 - none_right, abs=1e-12)


def test_avg_at_k():
    assert avg_at_k([1, 0, 0, 1]) == 0.5
    with pytest.raises(ValueError, match="no samples"):
        avg_at_k([])


def test_the_bootstrap_is_scipys():
    """scipy's BCa bootstrap of a skewed mean, with its own draws, at the level that t asks for."""
    values = np.random.default_rng(8).gamma(2, size=40)
    level = scipy_stats.norm.cdf((40 / 39) ** 0.5 * scipy_stats.t.ppf(0.975, 39))
    theirs = scipy_stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=20_000,
        confidence_level=2 * level - 1,
        method="BCa",
        rng=np.random.default_rng(0),
    ).confidence_interval
    found = bootstrap_mean(values, resamples=20_000)
    width = theirs.high - theirs.low
    assert found.low == pytest.approx(theirs.low, abs=0.03 * width)
    assert found.high == pytest.approx(theirs.high, abs=0.03 * width)


def test_seeds_and_problems_by_hand():
    """Two seeds and three problems without interaction: both variances, and t between both t."""
    found = bootstrap_mean(np.array([[0.0, 1.0, 2.0], [0.5, 1.5, 2.5]]))
    of_seeds, of_problems = 0.125 / 2, 1 / 3
    t = of_seeds * scipy_stats.t.ppf(0.975, 1) + of_problems * scipy_stats.t.ppf(0.975, 2)
    t /= of_seeds + of_problems
    assert found.value == 1.25
    assert found.high - 1.25 == pytest.approx(t * (of_seeds + of_problems) ** 0.5)
    only_seeds = bootstrap_mean(np.array([[1.0] * 9, [2.0] * 9, [3.0] * 9]))
    assert only_seeds.high == pytest.approx(t_interval(np.array([1.0, 2.0, 3.0])).high)


@pytest.mark.parametrize("deviation", [0.0, 0.03, 0.09])
def test_three_seeds_cover_as_often_as_they_say(deviation):
    """Drawing three seeds again would cover .96, .88 and .80."""
    rng = np.random.default_rng(9)
    hits = 0
    for _ in range(600):
        table = rng.normal(0, 0.3, (3, 200)) + rng.normal(0, 0.1, 200)
        found = bootstrap_mean(table + rng.normal(0, deviation, (3, 1)))
        hits += found.low <= 0 <= found.high
    assert 0.92 <= hits / 600 <= 0.99


def test_one_seed_near_the_ceiling_covers_as_often_as_it_says():
    """128 problems of mean .99, 4 samples each; a percentile interval covers .86."""
    rng = np.random.default_rng(10)
    hits = 0
    for world in range(400):
        table = rng.binomial(4, rng.beta(50, 0.5, 128)) / 4
        found = bootstrap_mean(table, seed=world, resamples=1000)
        hits += found.low <= 50 / 50.5 <= found.high
    assert 0.93 <= hits / 400 <= 0.995


def test_what_differs_from_zero_by_rounding_is_zero():
    gaps = np.array([[0.1 + 0.2 - 0.3] * 5, [0.0] * 5])
    assert (bootstrap_mean(gaps).low, bootstrap_mean(gaps).high) == (0.0, 0.0)
    found = bootstrap_mean(gaps[0])
    assert (found.value, found.low, found.high) == (0.0, 0.0, 0.0)
    assert t_interval(gaps[0]).low == 0.0


def test_no_estimate_is_a_negative_zero():
    falls = np.array([-1.0, *[0.0] * 7])  # the upper end is 0, of mirrored draws
    both = np.stack([falls, np.ones(8)], 1)
    made = [
        bootstrap_mean(falls),
        *bootstrap_ratio(both[:, :1], both[:, 1:]),
        *(test.difference for test in bootstrap_statistics(both, [lambda sums: sums[:, 0]])),
        Estimate(-0.0, -0.0, None, 1),
    ]
    ends = [end for one in made for end in (one.value, one.low, one.high) if end == 0]
    assert len(ends) == 5
    assert not np.signbit(ends).any()
