"""Paired tests against closed forms, slow references, scipy, and worlds with a known truth."""

from __future__ import annotations

from dataclasses import asdict
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from epistill.evaluation import (
    holm,
    minimum_detectable_difference,
    paired_bootstrap,
    paired_ratio_test,
    paired_ratio_tests,
    paired_test,
)
from epistill.evaluation.paired import bootstrap_statistics


@given(st.lists(st.sampled_from([-1, -0.5, -0.1, 0, 0.1, 0.3, 0.9]), min_size=2, max_size=30))
def test_the_p_value_is_below_5_percent_exactly_where_the_interval_leaves_0_out(gaps):
    base = np.full(len(gaps), 0.3)
    found = paired_test(base + gaps, base, resamples=999)
    low, high = found.difference.low, found.difference.high
    assert 0 < found.p_value <= 1
    assert (found.p_value < 0.05) == (low > 0 or high < 0)
    assert low <= found.difference.value <= high
    mirrored = paired_test(base, base + gaps, resamples=999)
    assert mirrored.p_value == pytest.approx(found.p_value, rel=1e-9)  # sums round by processor


def test_the_smallest_detectable_difference_is_detected_four_times_in_five():
    """150 problems that spread as a pilot run's did; the truth is what it says could be shown."""
    rng = np.random.default_rng(7)
    first = rng.normal(0, 1, 150)
    pilot = paired_test(first, np.zeros(150)).smallest_detectable
    shown = 0
    for world in range(400):
        gaps = rng.normal(pilot, first.std(ddof=1), 150)
        found = paired_bootstrap(gaps, np.zeros(150), seed=world, resamples=400)
        shown += found.low > 0
    assert 0.70 <= shown / 400 <= 0.90


def test_nothing_varies_nothing_can_be_told():
    found = paired_test(np.ones(5), np.ones(5))
    assert (found.difference.value, found.p_value, found.smallest_detectable) == (0.0, 1.0, None)
    assert paired_test(np.ones(1), np.zeros(1)).p_value is None


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_keeps_order_and_never_shrinks(p_values):
    adjusted = holm(p_values)
    assert all(p <= a <= 1 for p, a in zip(p_values, adjusted, strict=True))
    ranked = sorted(zip(p_values, adjusted, strict=True))
    assert [a for _, a in ranked] == sorted(adjusted)
    if p_values:
        assert min(adjusted) == min(1.0, len(p_values) * min(p_values))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_the_closed_test_of_bonferroni(p_values):
    """A hypothesis falls if every intersection that contains it falls (Marcus et al. 1976)."""
    n = len(p_values)
    sets = [s for size in range(1, n + 1) for s in combinations(range(n), size)]
    expected = [
        max(min(1.0, len(s) * min(p_values[j] for j in s)) for s in sets if i in s)
        for i in range(n)
    ]
    assert holm(p_values) == pytest.approx(expected)


def test_holm_by_hand():
    assert holm([0.0001, 0.004, 0.019, 0.095, 0.201]) == pytest.approx(
        [0.0005, 0.016, 0.057, 0.19, 0.201]
    )
    assert holm([0.04, 0.01, 0.02, 0.03]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([]) == []
    with pytest.raises(ValueError, match="between 0 and 1"):
        holm([0.5, 1.5])


def test_the_minimum_detectable_difference_has_the_power_it_says():
    gaps = np.random.default_rng(9).normal(size=80)
    error = gaps.std(ddof=1) / 80**0.5
    for alpha, power in ((0.05, 0.8), (0.01, 0.9)):
        shown = minimum_detectable_difference(gaps, alpha=alpha, power=power)
        beyond = scipy_stats.norm.sf(scipy_stats.norm.isf(alpha / 2), loc=shown / error)
        assert beyond == pytest.approx(power, abs=1e-6)
    assert minimum_detectable_difference([0.3]) is None
    assert minimum_detectable_difference([0.3, 0.3]) is None
    with pytest.raises(ValueError, match="between 0 and 1"):
        minimum_detectable_difference([1.0, 2.0], power=80)
    with pytest.raises(ValueError, match="no NaN"):
        minimum_detectable_difference([1.0, np.nan])


@settings(max_examples=25)
@given(st.integers(2, 25), st.integers(0, 99))
def test_a_mean_is_a_ratio_with_ones_below(problems, key):
    ours, theirs = np.random.default_rng(key).random((2, problems))
    assert paired_test(ours, theirs, resamples=300).difference.value == pytest.approx(
        paired_bootstrap(ours, theirs, resamples=300).value
    )
    found = paired_test(ours, theirs, resamples=300)
    plain = paired_bootstrap(ours, theirs, resamples=300)
    assert found.difference.low == pytest.approx(plain.low)
    assert found.difference.high == pytest.approx(plain.high)
    swapped = paired_test(theirs, ours, resamples=300)
    assert swapped.difference.value == pytest.approx(-found.difference.value)
    assert swapped.p_value == found.p_value
    assert swapped.smallest_detectable == pytest.approx(found.smallest_detectable)


def density_worlds(worlds, problems, change):
    """Markers and lengths of two models on the same problems; the second has other densities."""
    rng = np.random.default_rng(10)
    for _ in range(worlds):
        hard = rng.gamma(4, 0.25, size=problems)
        lengths = rng.poisson(200 * hard, size=(2, problems)) + 20
        rates = np.array([[0.01], [0.01 + change]]) * rng.gamma(9, 1 / 9, size=problems)
        yield rng.poisson(lengths * rates).astype(float), lengths.astype(float)


def test_the_ratio_difference_covers_as_often_as_it_says():
    hits = 0
    for world, (markers, words) in enumerate(density_worlds(400, 60, 0.004)):
        found = paired_ratio_test(markers, words, seed=world, resamples=500).difference
        hits += found.low <= -0.004 <= found.high
    assert 0.90 <= hits / 400 <= 0.98


def test_no_difference_is_found_about_one_time_in_twenty():
    found = [
        paired_ratio_test(markers, words, seed=world, resamples=500).p_value < 0.05
        for world, (markers, words) in enumerate(density_worlds(400, 60, 0.0))
    ]
    assert 0.02 <= np.mean(found) <= 0.10


def test_the_detectable_ratio_agrees_with_the_width_of_the_interval():
    """1.96 standard errors to each side; 2.80 to be shown four times in five."""
    markers, words = next(density_worlds(1, 300, 0.0))
    found = paired_ratio_test(markers, words)
    half = (found.difference.high - found.difference.low) / 2
    assert found.smallest_detectable == pytest.approx(half * 2.8016 / 1.9600, rel=0.06)


def test_what_cannot_be_compared_is_an_error():
    with pytest.raises(ValueError, match="shapes"):
        paired_ratio_test(np.ones((2, 3)), np.ones((2, 4)))
    with pytest.raises(ValueError, match="something to divide by"):
        paired_ratio_test(np.ones((2, 3)), np.array([[1.0, 1, 1], [0, 0, 0]]))
    with pytest.raises(ValueError, match="shapes"):
        paired_ratio_test(np.ones((2, 0)), np.ones((2, 0)))


def test_a_statistic_that_most_resamples_leave_undefined_has_no_interval():
    table = np.zeros((10, 2))
    table[0] = 1.0, 1.0  # the only problem below the line: absent from a third of the resamples
    (found,) = bootstrap_statistics(table, [lambda s: s[:, 0] / s[:, 1]], resamples=500)
    assert (found.difference.value, found.difference.low, found.p_value) == (1.0, None, None)


def test_many_ratios_at_once_are_those_one_by_one():
    rng = np.random.default_rng(11)
    above, below = rng.random((2, 30, 4)), rng.random((2, 30, 4)) + 0.1
    below[0, :, 3] = 0
    *found, nothing = paired_ratio_tests(above, below, resamples=400)
    assert nothing is None
    for i, test in enumerate(found):
        alone = paired_ratio_test(above[..., i], below[..., i], resamples=400)
        assert test.p_value == pytest.approx(alone.p_value, rel=1e-9)  # sums in another order
        for one, other in zip(numbers_of(test), numbers_of(alone), strict=True):
            assert one == pytest.approx(other, rel=1e-12)  # sums in another order


def numbers_of(test):
    fields = asdict(test)
    return [*fields.pop("difference").values(), *(v for v in fields.values() if v is not None)]
