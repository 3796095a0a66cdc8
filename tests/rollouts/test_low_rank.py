from __future__ import annotations

import copy
import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear
from torch import nn

from epistill.config import Lora
from epistill.rollouts.low_rank import adapted_linear, use_low_rank_sums, weights_stay
from epistill.rollouts.model import with_lora

IDS = torch.tensor([[5, 9, 17, 4, 30], [7, 7, 12, 50, 3]])


def adapted(model, dtype, **settings):
    """peft's network with an adapter that does something, and the same with our layers."""
    torch.manual_seed(1)
    network = copy.deepcopy(model.network).to(dtype)
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", **settings)
    theirs = get_peft_model(network, config).eval()
    for name, parameter in theirs.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape) * 0.1
    ours = copy.deepcopy(theirs)
    use_low_rank_sums(ours)
    return theirs, ours


def logits_and_gradients(network):
    logits = network(input_ids=IDS, use_cache=False).logits.float()
    logits.log_softmax(-1)[..., 3].sum().backward()
    return logits.detach(), {
        name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None
    }


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


def test_in_float32_it_is_pefts_layer(tiny_model):
    theirs, ours = adapted(tiny_model, torch.float32)
    expected, found = logits_and_gradients(theirs), logits_and_gradients(ours)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-5)
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        assert relative(found[1][name], gradient) < 1e-4, name


def test_in_bfloat16_masters_are_float32_and_gradients_as_good_as_pefts(tiny_model):
    exact = logits_and_gradients(adapted(tiny_model, torch.float32)[0])
    theirs, ours = adapted(tiny_model, torch.bfloat16)
    expected, found = logits_and_gradients(theirs), logits_and_gradients(ours)
    assert all(gradient.dtype == torch.float32 for gradient in found[1].values())
    assert relative(found[0], exact[0]) < 1.5 * relative(expected[0], exact[0]) + 1e-3
    rounding = [relative(expected[1][name], gradient) for name, gradient in exact[1].items()]
    gaps = [relative(found[1][name], gradient) for name, gradient in exact[1].items()]
    assert sum(gaps) < 1.5 * sum(rounding)


@pytest.mark.parametrize("biased", [True, False])
def test_gradients_by_finite_differences(biased):
    generator = torch.Generator().manual_seed(0)
    x, weight, bias, down, up = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in ((2, 3, 4), (5, 4), (5,), (2, 4), (5, 2))
    )
    bias = bias if biased else None
    expected = x @ (weight + 1.7 * up @ down).t() + (bias if biased else 0.0)
    torch.testing.assert_close(adapted_linear(x, weight, bias, down, up, 1.7), expected)
    trained = [one.requires_grad_() for one in (x, down, up)]
    assert torch.autograd.gradcheck(
        lambda x, *factors: adapted_linear(x, weight, bias, *factors, 1.7), trained
    )


@pytest.mark.parametrize("shape", [(0, 4), (2, 0, 4)])
def test_no_rows_are_no_error(shape):
    """An expert that no token is sent to."""
    x, factors = torch.randn(shape).requires_grad_(), (torch.randn(2, 4), torch.randn(5, 2))
    found = adapted_linear(x, torch.randn(5, 4), None, *factors, 1.7)
    found.sum().backward()
    assert found.shape == (*shape[:-1], 5)
    assert x.grad.shape == shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_while_weights_stay_the_factors_are_cast_once_and_nothing_else_changes(tiny_model, dtype):
    _, ours = adapted(tiny_model, dtype)

    def logits():
        return ours(input_ids=IDS, use_cache=False).logits

    first = logits()
    with weights_stay(ours):
        assert torch.equal(logits(), first)
        factors = [dict(one.kept) for one in ours.modules() if getattr(one, "kept", None)]
        assert factors
        assert torch.equal(logits(), first)
        kept = [one.kept for one in ours.modules() if getattr(one, "kept", None)]
        for before, now in zip(factors, kept, strict=True):
            assert before[dtype][0] is now[dtype][0]
    for name, parameter in ours.named_parameters():
        if "lora_B" in name:
            parameter.mul_(2.0)
    assert not torch.equal(logits(), first)  # nothing is kept
    with ours.disable_adapter():
        off = logits()
        with weights_stay(ours):
            assert torch.equal(logits(), off)


def test_layers_without_the_active_adapter_are_their_base(tiny_model):
    theirs, _ = adapted(tiny_model, torch.float32)
    theirs.add_adapter("other", LoraConfig(r=2, target_modules=["v_proj"]))
    theirs.set_adapter("other")
    ours = copy.deepcopy(theirs)
    use_low_rank_sums(ours)
    torch.testing.assert_close(ours(input_ids=IDS).logits, theirs(input_ids=IDS).logits)


def test_off_means_off(tiny_model):
    _, ours = adapted(tiny_model, torch.float32)
    with ours.disable_adapter():
        found = ours(input_ids=IDS).logits
    torch.testing.assert_close(found, tiny_model.network(input_ids=IDS).logits)


@pytest.mark.parametrize(("settings", "kept"), [({"lora_dropout": 0.1}, True), ({"use_dora": True}, True), ({}, False)])  # fmt: skip
def test_what_is_not_vanilla_stays_pefts(tiny_model, settings, kept):
    _, ours = adapted(tiny_model, torch.float32, **settings)
    layers = [module for module in ours.modules() if isinstance(module, Linear)]
    assert layers
    assert all((type(layer) is Linear) == kept for layer in layers)


def test_equal_adapters_are_written_alike(tiny_model, tmp_path):
    """Peft keeps the names as a set, whose order is another in every process."""
    with_lora(tiny_model, Lora(rank=2)).network.save_pretrained(tmp_path)
    names = json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"]
    assert names == sorted(names)
    assert len(names) == 7


def test_a_student_has_them(tiny_model):
    student = with_lora(tiny_model, Lora(rank=2))
    layers = [module for module in student.network.modules() if isinstance(module, Linear)]
    assert layers
    assert not any(type(layer) is Linear for layer in layers)
    assert all(isinstance(layer.get_base_layer(), nn.Linear) for layer in layers)
