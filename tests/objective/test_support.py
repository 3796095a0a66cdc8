"""Log-probabilities of some tokens: block by block, one array for the gradient."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from epistill.objective import support
from epistill.objective.support import log_probs_of


@given(
    seed=st.integers(0, 10**6),
    rows=st.integers(1, 7),
    vocabulary=st.integers(1, 40),
    kept=st.integers(1, 5),
    block=st.sampled_from([1, 3, 50, 2**18]),
)
def test_equals_log_softmax_in_value_and_gradient(seed, rows, vocabulary, kept, block):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, rows, vocabulary, generator=generator, dtype=torch.float64) * 5
    ids = torch.randint(0, vocabulary, (2, rows, kept), generator=generator)  # may repeat
    upstream = torch.randn(2, rows, kept, generator=generator, dtype=torch.float64)
    plain, ours = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    expected = plain.log_softmax(-1).gather(-1, ids)
    expected.backward(upstream)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(support, "BLOCK_NUMBERS", block)
        found = log_probs_of(ours, ids)
        found.backward(upstream)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours.grad, plain.grad, rtol=1e-12, atol=1e-12)


def test_gradcheck():
    logits = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    ids = torch.tensor([[0, 5], [2, 2], [1, 3]])
    assert torch.autograd.gradcheck(lambda x: log_probs_of(x, ids), (logits,))


def test_a_forbidden_token_has_no_probability_and_no_gradient():
    logits = torch.tensor([[0.0, 0.0, -math.inf]], dtype=torch.float64, requires_grad=True)
    found = log_probs_of(logits, torch.tensor([[0]]))
    found.sum().backward()
    assert found.item() == pytest.approx(-math.log(2))
    torch.testing.assert_close(logits.grad, torch.tensor([[0.5, -0.5, 0.0]], dtype=torch.float64))


@pytest.mark.parametrize("block", [1, 8, 1000])
def test_blocks_cover_every_row_once(block, monkeypatch):
    monkeypatch.setattr(support, "BLOCK_NUMBERS", block)
    rows = torch.arange(7).unsqueeze(-1).expand(7, 4)
    assert torch.cat([rows[part] for part in support.row_blocks(rows)]).equal(rows)
    assert list(support.row_blocks(torch.empty(0, 4))) == []
