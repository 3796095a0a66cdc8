"""Products with large matrices, the output layer's before all, by the fastest exact routine.

On a CPU torch sends float32 products to MKL, which on AMD processors runs at about half the speed
of oneDNN on large ones, and shares few rows badly among threads (docs/benchmarks.md). torch carries
oneDNN for its compiler; the operator takes dense tensors of any stride and works in full float32.
All else (CUDA, other types, autocast, small matrices, a torch without it, a product that autograd
must see) goes the ordinary way.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

# Weights of fewer numbers gain nothing.
LARGE_WEIGHT = 2**18
# Rows of a weight's gradient that are made at once: a small array beside the gradient itself.
GRADIENT_ROWS = 2**14


def linear(hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Hidden W^T + b, [..., V], of hidden [..., H], weight [V, H] and bias [V] or None."""
    operator = _onednn_linear()
    if operator is None or not _suits(hidden, weight):
        return torch.nn.functional.linear(hidden, weight, bias)
    return operator(hidden, weight, bias, "none", [], "")


class _Linear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


def use_fast_products(network: nn.Module) -> None:
    """Let every plain linear layer of a float32 network on a CPU compute by `linear`."""
    for module in network.modules():
        if type(module) is nn.Linear and _eligible(module.weight):
            module.__class__ = _Linear


def add_weight_gradient(total: Tensor, d_logits: Tensor, hidden: Tensor) -> None:
    """Total [V, H] += d_logits^T [V, n] hidden [n, H], in place; the sum keeps total's type."""
    operator = _onednn_linear()
    if operator is not None and _suits(hidden, total):
        for start in range(0, total.shape[0], GRADIENT_ROWS):
            part = slice(start, start + GRADIENT_ROWS)
            total[part] += operator(d_logits[:, part].t(), hidden.t(), None, "none", [], "")
    elif total.dtype == hidden.dtype:
        total.addmm_(d_logits.t(), hidden)
    else:
        total += d_logits.t() @ hidden


def _suits(left: Tensor, weight: Tensor) -> bool:
    seen = torch.is_grad_enabled() and (left.requires_grad or weight.requires_grad)
    autocast = torch.is_autocast_enabled(weight.device.type)
    return not seen and not autocast and left.dtype == torch.float32 and _eligible(weight)


def _eligible(weight: Tensor) -> bool:
    on_cpu = weight.device.type == "cpu"
    return on_cpu and weight.dtype == torch.float32 and weight.numel() >= LARGE_WEIGHT


def _onednn_linear() -> Any:
    if not torch.backends.mkldnn.is_available():
        return None
    return getattr(torch.ops.mkldnn, "_linear_pointwise", None)
