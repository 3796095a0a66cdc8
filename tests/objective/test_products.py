"""The head's products: whatever routine does them, the numbers of the plain formula."""

import copy

import pytest
import torch

from epistill.objective import products


@pytest.fixture(params=[1, 2**40], ids=["onednn", "plain"])
def routine(request, monkeypatch):
    monkeypatch.setattr(products, "LARGE_WEIGHT", request.param)
    monkeypatch.setattr(products, "GRADIENT_ROWS", 7)


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
def test_linear_is_the_formula(routine, transposed, with_bias):
    weight = draw(31, 17).t().contiguous().t() if transposed else draw(31, 17)
    hidden, bias = draw(5, 17), draw(31) if with_bias else None
    exact = hidden.double() @ weight.double().t() + (0 if bias is None else bias.double())
    torch.testing.assert_close(
        products.linear(hidden, weight, bias).double(), exact, atol=1e-5, rtol=1e-5
    )


def test_a_networks_plain_layers_give_the_same_numbers(routine):
    torch.manual_seed(0)
    plain = torch.nn.Sequential(torch.nn.Linear(17, 31), torch.nn.ReLU(), torch.nn.Linear(31, 17))
    fast = copy.deepcopy(plain)
    products.use_fast_products(fast)
    hidden = draw(5, 17)
    with torch.no_grad():
        torch.testing.assert_close(fast(hidden), plain(hidden), atol=1e-5, rtol=1e-5)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert fast(hidden).dtype == torch.bfloat16
    fast(hidden).sum().backward()
    plain(hidden).sum().backward()
    for one, other in zip(fast.parameters(), plain.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)
    assert fast.state_dict().keys() == plain.state_dict().keys()


def test_weight_gradient_is_added(routine):
    total, d_logits, hidden = draw(31, 17), draw(5, 31), draw(5, 17)
    exact = total.double() + d_logits.double().t() @ hidden.double()
    products.add_weight_gradient(total, d_logits, hidden)
    torch.testing.assert_close(total.double(), exact, atol=1e-5, rtol=1e-5)


def test_autograd_sees_the_product(routine):
    hidden, weight = draw(5, 17).requires_grad_(), draw(31, 17).requires_grad_()
    products.linear(hidden, weight).sum().backward()
    torch.testing.assert_close(hidden.grad, weight.detach().sum(0).expand(5, 17))


def test_this_torch_has_the_operator():
    """If a later torch drops it, the benchmarks' floor changes: better to know than to wonder."""
    if torch.backends.mkldnn.is_available():
        assert products._onednn_linear() is not None
