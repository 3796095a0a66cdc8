"""Closed forms of the advantage shapes and token weights, by hand."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from epistill.objective import confidence_weights, position_weights, purified_target
from epistill.objective.shaping import (
    ascent_advantage,
    contrast_advantage,
    contrast_evidence,
    entropy_directed_advantage,
    input_contrast_advantage,
    ratio_advantage,
)


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_ratio_advantage():
    u = tensor(0.0, 0.1, 1.0, -1.0)
    up = ratio_advantage(2.0, u, strength=0.5, low=0.8, high=1.2)
    assert up.tolist() == pytest.approx([2.0, 1 + math.exp(0.1), 1 + 1.2, 1 + 0.8])
    down = ratio_advantage(-2.0, u, strength=0.5, low=0.8, high=1.2)
    assert down.tolist() == pytest.approx([-2.0, -1 - math.exp(-0.1), -1 - 0.8, -1 - 1.2])
    assert ratio_advantage(2.0, u, strength=0.0, low=0.8, high=1.2).tolist() == [2.0] * 4


@given(st.floats(-3, 3), st.lists(st.floats(-20, 20), min_size=1, max_size=6))
def test_ratio_advantage_never_changes_the_sign(advantage, u):
    found = ratio_advantage(advantage, tensor(*u), strength=0.5, low=0.8, high=1.2)
    assert (found.sign() == math.copysign(1, advantage) * (advantage != 0)).all()


def test_ascent_advantage():
    found = ascent_advantage(1.0, tensor(0.0, 2.0, -50.0), strength=0.5)
    expected = [1.0, 1 - 0.25 * (math.log1p(math.exp(2.0)) - math.log(2)), 1 + 0.25 * math.log(2)]
    assert found.tolist() == pytest.approx(expected)


def test_contrast_evidence_is_a_log_of_a_mean():
    found = contrast_evidence(
        tensor(0.6, 0.2).log(), torch.stack([tensor(0.3, 0.2), tensor(0.1, 0.6)]).log()
    )
    assert found.tolist() == pytest.approx([math.log(0.6 / 0.2), math.log(0.2 / 0.4)])


def test_contrast_advantage_keeps_the_sign_and_gates():
    evidence = tensor(1.0, -1.0, 1e-6)
    settings = {"tau": 0.02, "scale": 0.5, "bound": 2.0, "gate": 0.02}
    up, taken = contrast_advantage(0.3, evidence, **settings)
    assert up.tolist() == pytest.approx([0.8, 0.0, 0.3])  # 0.3 - 0.5 would change sign
    assert taken.tolist() == [True, True, False]
    down, _ = contrast_advantage(-0.3, evidence, **settings)
    assert down.tolist() == pytest.approx([0.0, -0.8, -0.3])
    none, _ = contrast_advantage(0.0, evidence, **settings)
    assert none.tolist() == [0.0, 0.0, 0.0]


def test_entropy_directed_advantage_repels_where_the_student_is_unsure():
    entropies, u = tensor(0.0, 0.0, 0.0, 0.0, 4.0), tensor(1.0, 1.0, 1.0, 1.0, 1.0)
    found = entropy_directed_advantage(0.5, u, entropies, beta=1.0, quantile=0.8)
    threshold = torch.quantile(entropies, 0.8).item()
    spread = (4 * 0.8 + 3.2) / 5
    direction = [math.tanh((threshold - h) / spread) for h in (0.0, 4.0)]
    assert found[0].item() == pytest.approx(0.5 + direction[0] * 0.5, abs=1e-6)  # sigmoid(0) = 1/2
    assert found[4].item() == pytest.approx(0.5 + direction[1] * 0.5, abs=1e-6)
    assert found[4] < 0.5 < found[0]


def test_input_contrast_advantage():
    found = input_contrast_advantage(
        2.0, tensor(1.0), torch.stack([tensor(0.2), tensor(0.4)]), strength=0.5, verifier=0.25
    )
    assert found.item() == pytest.approx(0.5 + 1.0 - 0.15)


def test_position_weights():
    weights = position_weights(10, floor=0.25, midpoint=0.30, width=0.10)
    assert weights[0].item() == pytest.approx(0.25 + 0.75 / (1 + math.exp(2.5)))
    assert weights[-1].item() == pytest.approx(0.25 + 0.75 / (1 + math.exp(-6.5)))
    assert (weights.diff() > 0).all()


@given(st.lists(st.floats(0, 5), min_size=1, max_size=9))
def test_confidence_weights_have_mean_one_and_fall_with_entropy(entropies):
    weights = confidence_weights(tensor(*entropies), beta=1.0)
    assert weights.mean().item() == pytest.approx(1.0)
    order = sorted(range(len(entropies)), key=lambda i: entropies[i])
    assert all(weights[a] >= weights[b] - 1e-12 for a, b in pairwise(order))


def test_purified_target_by_hand():
    base, teacher, reference = (
        tensor(*p).log() for p in ((0.5, 0.3, 0.2), (0.7, 0.2, 0.1), (0.4, 0.4, 0.2))
    )
    gap = [math.log(0.7 / 0.4), math.log(0.2 / 0.4), math.log(0.1 / 0.2)]
    mean = sum(gap) / 3
    scores = [
        p * math.exp(2.0 * math.tanh((g - mean) / 2.0) / 0.5)
        for p, g in zip((0.5, 0.3, 0.2), gap, strict=True)
    ]
    found = purified_target(base, teacher, reference, beta=0.5, bound=2.0).softmax(-1)
    assert found.tolist() == pytest.approx([s / sum(scores) for s in scores])


def test_purified_target_is_the_base_where_the_context_alone_says_it_all():
    base, teacher = tensor(1.0, 2.0, 3.0), tensor(0.5, -1.0, 2.0)
    found = purified_target(base, teacher, teacher, beta=1.0, bound=10.0).softmax(-1)
    torch.testing.assert_close(found, base.softmax(-1))
