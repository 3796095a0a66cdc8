"""The chunked path equals the plain one in float64, value and gradient, over odd shapes."""

from __future__ import annotations

import pytest
import torch

from epistill.objective import distillation_nats, token_log_probs
from epistill.objective.fused import chunk_rows, head_loss

GRID = [
    (n, h, v, rows) for n, h, v in ((1, 3, 5), (7, 4, 11), (33, 5, 47)) for rows in (1, 2, 5, 64)
]


def problem(n, h, v, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return {
        "hidden": draw(n, h).requires_grad_(),
        "weight": draw(v, h).requires_grad_(),
        "bias": draw(v).requires_grad_(),
        "teacher": draw(n, v),
        "ids": torch.randint(0, v, (n,), generator=generator),
        "token_weight": torch.rand(n, generator=generator).double()
        * (torch.rand(n, generator=generator) > 0.3),
    }


def plain(p, loss):
    return loss(p["hidden"] @ p["weight"].T + p["bias"], slice(0, len(p["ids"])))


def losses(p, options):
    def jsd(logits, part):
        terms = distillation_nats(logits, p["teacher"][part], p["ids"][part], **options)
        return (terms * p["token_weight"][part]).sum()

    return jsd


OPTIONS = [
    {"alpha": 0.0},
    {"alpha": 0.5},
    {"alpha": 1.0},
    {"alpha": 0.5, "top_k": 3, "add_tail": True},
    {"alpha": 1.0, "sampled_token": True},
]


@pytest.mark.parametrize(("n", "h", "v", "rows"), GRID)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_equal_to_the_plain_path(n, h, v, rows, options):
    p = problem(n, h, v)
    inputs = (p["hidden"], p["weight"], p["bias"])
    loss = losses(p, options)
    fused = head_loss(*inputs, loss, rows_per_chunk=rows)
    expected = plain(p, loss)
    assert abs(fused.item() - expected.item()) < 1e-10
    for mine, theirs in zip(
        torch.autograd.grad(3 * fused, inputs),
        torch.autograd.grad(3 * expected, inputs),
        strict=True,
    ):
        assert (mine - theirs).abs().max() < 1e-10


def test_policy_gradient_log_probs_through_chunks():
    p = problem(9, 4, 6)

    def negative_log_likelihood(logits, part):
        return -token_log_probs(logits, p["ids"][part]).sum()

    fused = head_loss(
        p["hidden"], p["weight"], p["bias"], negative_log_likelihood, rows_per_chunk=4
    )
    expected = plain(p, negative_log_likelihood)
    torch.testing.assert_close(fused, expected, atol=1e-10, rtol=0)


def test_a_frozen_head_and_no_bias_need_no_gradient():
    p = problem(5, 4, 6)
    loss = losses(p, {"alpha": 0.5})
    fused = head_loss(p["hidden"], p["weight"].detach(), None, loss, rows_per_chunk=2)
    (gradient,) = torch.autograd.grad(fused, p["hidden"])
    expected = loss(p["hidden"] @ p["weight"].detach().T, slice(0, 5))
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, p["hidden"])[0])


def test_a_chunk_without_weight_leaves_no_gradient():
    p = problem(6, 4, 5)
    p["token_weight"][:3] = 0
    fused = head_loss(
        p["hidden"], p["weight"], p["bias"], losses(p, {"alpha": 0.5}), rows_per_chunk=3
    )
    (gradient,) = torch.autograd.grad(fused, p["hidden"])
    assert (gradient[:3] == 0).all()
    assert (gradient[3:] != 0).any()


def test_bfloat16_weight_gradients_accumulate_in_float32():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(512, 8, generator=generator).bfloat16()
    weight = torch.randn(16, 8, generator=generator).bfloat16().requires_grad_()
    ids = torch.randint(0, 16, (512,), generator=generator)

    def loss(logits, part):
        return -token_log_probs(logits.float(), ids[part]).sum()

    (gradient,) = torch.autograd.grad(
        head_loss(hidden, weight, None, loss, rows_per_chunk=4), weight
    )
    exact = weight.detach().double().requires_grad_()
    expected = -token_log_probs(hidden.double() @ exact.T, ids).sum()
    (reference,) = torch.autograd.grad(expected, exact)
    error = (gradient.double() - reference).norm() / reference.norm()
    assert gradient.dtype == torch.bfloat16
    assert error < 4e-3  # one rounding to bfloat16, not one per chunk


@pytest.mark.parametrize(("device", "trained"), [("cpu", False), ("cpu", True), ("meta", False)])
@pytest.mark.parametrize("vocabulary", [64, 49_152, 151_936, 262_144, 10**6])
def test_chunk_rows_keeps_memory_constant(device, trained, vocabulary):
    weight = torch.empty(1, 1, device=device).expand(vocabulary, 1).requires_grad_(trained)
    rows = chunk_rows(weight)
    assert rows * vocabulary <= 2**25
    # What the C library keeps for the next chunk, but where products would have few rows.
    assert device != "cpu" or trained or rows <= 128 or 4 * rows * vocabulary < 2**25
    assert rows >= min(128, 2**25 // vocabulary)


def test_at_least_one_row():
    assert chunk_rows(torch.empty(1, 1).expand(10**9, 1)) == 1
