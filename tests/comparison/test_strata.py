"""Shorter, or less doubtful: differences of accuracy within strata."""

from __future__ import annotations

import numpy as np
import pytest

from epistill.comparison.strata import Outcomes, accuracy_strata


def world(n, lengths, densities, right, seed):
    rng = np.random.default_rng(seed)
    problems = np.arange(4 * n) % n
    return Outcomes(problems, (rng.random(4 * n) < right).astype(float), lengths, densities)


def test_a_difference_that_is_all_length_is_told_from_one_that_is_all_doubt():
    """Accuracy depends on length alone; B is shorter, and its doubt is another draw."""
    rng, n = np.random.default_rng(3), 150
    long_a, long_b = rng.random(4 * n) < 0.8, rng.random(4 * n) < 0.3
    doubt = [rng.integers(0, 3, 4 * n).astype(float) for _ in range(2)]
    sides = [
        world(n, np.where(long, 200.0, 50.0), d, np.where(long, 0.9, 0.3), seed)
        for long, d, seed in ((long_a, doubt[0], 1), (long_b, doubt[1], 2))
    ]
    parts = accuracy_strata(sides[0], sides[1], n)["decomposition"]
    expected = 0.6 * (long_b.mean() - long_a.mean())
    assert parts["length"]["mix"]["value"] == pytest.approx(expected, abs=0.05)
    assert parts["length"]["within"]["low"] < 0 < parts["length"]["within"]["high"]
    assert parts["density"]["within"]["high"] < -0.2
    assert abs(parts["density"]["mix"]["value"]) < 0.05


def test_the_parts_add_up_to_the_difference():
    rng, n = np.random.default_rng(4), 40
    sides = [
        world(n, rng.integers(1, 99, 4 * n).astype(float), rng.random(4 * n), 0.5, seed)
        for seed in (5, 6)
    ]
    found = accuracy_strata(sides[0], sides[1], n)
    total = sides[1].scores.mean() - sides[0].scores.mean()
    for kind in ("length", "density", "both"):
        part = found["decomposition"][kind]
        assert part["mix"]["value"] + part["within"]["value"] == pytest.approx(total)
        for i, label in enumerate("ab"):
            assert sum(row["responses"][label] for row in found[kind]) == sides[i].scores.size
    for i, label in enumerate("ab"):
        chosen = sides[i].lengths <= found["length"][0]["up_to"]
        assert found["length"][0][label]["value"] == pytest.approx(sides[i].scores[chosen].mean())


def test_strata_without_a_like_on_the_other_side_are_said():
    n = 20
    short = world(n, np.full(4 * n, 5.0), np.zeros(4 * n), 0.5, 1)
    long = world(n, np.full(4 * n, 50.0), np.zeros(4 * n), 0.5, 2)
    found = accuracy_strata(short, long, n)
    assert found["decomposition"]["length"]["within"] is None
    assert "one side only" in found["decomposition"]["length"]["reason"]
    assert [row["label"] for row in found["density"]] == ["all"]
    assert found["length"][0]["b"] is None
    assert found["length"][0]["difference"] is None
