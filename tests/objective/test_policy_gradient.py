from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from epistill.objective import clipped_surrogate, group_advantages, importance_weight


def test_advantages_with_and_without_standard_deviation():
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0]]).double()
    plain = group_advantages(rewards, normalize_std=False)
    assert plain.tolist() == [[0.5, -0.5, -0.5, 0.5], [0, 0, 0, 0]]
    scaled = group_advantages(rewards, normalize_std=True, eps=0.0)[0]
    assert scaled[0].item() == pytest.approx(0.5 / (1 / 3) ** 0.5)


def test_a_group_of_one_is_refused():
    with pytest.raises(ValueError, match="at least 2"):
        group_advantages(torch.ones(3, 1), normalize_std=False)


@given(st.lists(st.lists(st.floats(0, 1), min_size=4, max_size=4), min_size=1, max_size=5))
def test_advantages_of_a_group_sum_to_zero(rewards):
    table = torch.tensor(rewards, dtype=torch.float64)
    assert group_advantages(table, normalize_std=False).sum(1).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected"),
    [
        (1.0, 2.0, -2.0),
        (1.5, 1.0, -1.28),  # clipped above
        (0.5, 1.0, -0.5),  # pessimistic: not clipped below for a positive advantage
        (0.5, -1.0, 0.8),  # clipped below
        (1.5, -1.0, 1.5),
    ],
)
def test_clipped_surrogate_closed_forms(ratio, advantage, expected):
    ratio, advantage = torch.tensor(ratio).double(), torch.tensor(advantage).double()
    found = clipped_surrogate(
        ratio.log(), torch.tensor(0.0).double(), advantage, clip_low=0.2, clip_high=0.28
    )
    assert found.item() == pytest.approx(expected)


@pytest.mark.parametrize("dual_clip", [None, 3.0, 10.0])
def test_the_dual_clip_bounds_the_loss_of_a_negative_advantage_alone(dual_clip):
    """1912.09729 Eq. 5, token by token in plain Python; a bounded token has no gradient."""
    ratios, advantages = (0.5, 1.0, 2.5, 3.5, 40.0), (-0.7, 0.0, 0.7)
    for ratio in ratios:
        for advantage in advantages:
            log_prob = torch.tensor(ratio).double().log().requires_grad_()
            loss = clipped_surrogate(
                log_prob,
                torch.zeros(()).double(),
                torch.tensor(advantage).double(),
                clip_low=0.2,
                clip_high=0.28,
                dual_clip=dual_clip,
            )
            objective = min(ratio * advantage, min(max(ratio, 0.8), 1.28) * advantage)
            bounded = dual_clip is not None and advantage < 0 and ratio > dual_clip
            if bounded:
                objective = max(objective, dual_clip * advantage)
            assert loss.item() == pytest.approx(-objective)
            loss.backward()
            flat = bounded or (advantage > 0 and ratio > 1.28) or (advantage < 0 and ratio < 0.8)
            assert log_prob.grad.item() == pytest.approx(0 if flat else -ratio * advantage)


def test_gradient_on_policy_is_the_policy_gradient():
    log_probs = torch.tensor([-1.0, -2.0]).double().requires_grad_()
    advantages = torch.tensor([0.5, -0.25]).double()
    clipped_surrogate(
        log_probs, log_probs.detach(), advantages, clip_low=0.2, clip_high=0.2
    ).sum().backward()
    torch.testing.assert_close(log_probs.grad, -advantages)


def test_surrogate_gradcheck_away_from_the_kinks():
    old = torch.tensor([-1.0, -1.0, -1.0]).double()
    new = (old + torch.tensor([0.05, 0.5, -0.5]).double()).requires_grad_()
    advantages = torch.tensor([1.0, 1.0, -1.0]).double()
    assert torch.autograd.gradcheck(
        lambda x: clipped_surrogate(x, old, advantages, clip_low=0.2, clip_high=0.28), (new,)
    )


def test_importance_weight_is_capped_detached_and_safe_from_overflow():
    new = torch.tensor([0.0, -1.0, 500.0]).double().requires_grad_()
    weight = importance_weight(new, torch.tensor([-1.0, 0.0, 0.0]).double(), clip=2.0)
    assert weight.tolist() == pytest.approx([2.0, 0.36787944, 2.0])
    assert not weight.requires_grad
