from __future__ import annotations

import copy

import pytest
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from epistill.training.short_attention import LONGEST, short_attention_in_float32

HEADS, GROUPS, DIM = 6, 3, 16


class Layer(torch.nn.Module):
    num_key_value_groups, is_causal = GROUPS, True


def states(width, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(2, heads, width, DIM) for heads in (HEADS, HEADS // GROUPS, HEADS // GROUPS)]
    return [
        torch.randn(shape, generator=generator).bfloat16().to(dtype).requires_grad_()
        for shape in shapes
    ]


def attended(width, dtype, mask=None):
    """What attention gives and the gradients of its inputs, for a fixed direction."""
    inputs = states(width, dtype)
    found, _ = ALL_ATTENTION_FUNCTIONS["sdpa"](
        Layer(), *inputs, mask, scaling=DIM**-0.5, dropout=0.0
    )
    upstream = torch.randn(found.shape, generator=torch.Generator().manual_seed(9)).bfloat16()
    return [found, *torch.autograd.grad(found, inputs, upstream.to(found.dtype))]


def masks(width):
    seen = torch.ones(width, width, dtype=torch.bool).tril()
    seen[:, 1] = False
    seen[1, 1] = True
    seen = seen.expand(2, 1, -1, -1)
    return {"none": None, "bool": seen, "float": torch.zeros(seen.shape).masked_fill(~seen, -1e4)}


@pytest.mark.parametrize("kind", ["none", "bool", "float"])
def test_values_and_gradients_are_as_near_the_truth_as_one_rounding(kind):
    mask = masks(24)[kind]
    exact = attended(24, torch.float64, mask if kind != "float" else mask.double())
    given = mask if kind != "float" else mask.bfloat16()
    with short_attention_in_float32():
        found = attended(24, torch.bfloat16, given)
    for ours, truth in zip(found, exact, strict=True):
        assert ours.dtype == torch.bfloat16
        # Half a unit in the last of bfloat16's 8 places, of each number.
        assert float((ours - truth).norm()) <= 2**-9 * 1.1 * float(truth.norm())


@pytest.mark.parametrize(("width", "dtype"), [(24, torch.float32), (LONGEST + 1, torch.bfloat16)])
def test_other_types_and_long_rows_are_transformers_own(width, dtype):
    expected = attended(width, dtype)
    with short_attention_in_float32():
        found = attended(width, dtype)
    assert all(map(torch.equal, found, expected))


def test_under_autocast_it_is_what_autocast_would_have_rounded():
    with torch.autocast("cpu", dtype=torch.bfloat16), short_attention_in_float32():
        found = attended(24, torch.float32)
    assert found[0].dtype == torch.bfloat16
    expected = attended(24, torch.float32)  # the inputs are numbers of bfloat16
    torch.testing.assert_close(found[0].float(), expected[0], rtol=2**-7, atol=2**-7)


def test_somebodys_own_attention_is_used_and_left_in_its_place():
    standard = ALL_ATTENTION_FUNCTIONS["sdpa"]
    called = []

    def own(*args, **kwargs):
        called.append(args[1].dtype)
        return standard(*args, **kwargs)

    with short_attention_in_float32():
        pass
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is standard
    ALL_ATTENTION_FUNCTIONS["sdpa"] = own
    try:
        with short_attention_in_float32():
            attended(24, torch.bfloat16)
        assert called == [torch.float32]
        assert ALL_ATTENTION_FUNCTIONS["sdpa"] is own
    finally:
        del ALL_ATTENTION_FUNCTIONS["sdpa"]
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is standard


def test_activations_that_are_computed_again_are_the_same(tiny_model):
    ids = torch.tensor([[5, 9, 17, 4, 30], [7, 7, 12, 50, 3]])
    found = []
    for checkpointed in (False, True):
        network = copy.deepcopy(tiny_model.network).to(torch.bfloat16).train()
        if checkpointed:
            network.gradient_checkpointing_enable({"use_reentrant": False})
        with short_attention_in_float32():
            network(input_ids=ids, use_cache=False).logits.float().log_softmax(-1).sum().backward()
        found.append([p.grad for p in network.parameters() if p.grad is not None])
    assert all(map(torch.equal, *found))
