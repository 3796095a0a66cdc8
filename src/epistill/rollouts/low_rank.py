"""Low-rank adapters in the layer's own number type, with float32 masters.

peft computes an adapter in the adapter's float32: each of its layers copies its input to float32,
scales, adds and copies back. In bfloat16 that costs more than the frozen layer. Here an adapted
linear layer is its base and two products, in the type of its input; parameters and their gradients
stay float32, as under autocast.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import Linear
from torch import Tensor, nn

# PEFT asks each network under transformers' old name; its user can do nothing about that.
warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)


class _PlainLoraLinear(Linear):
    """peft's layer, with its vanilla case computed by `low_rank_sum`; all else is left to peft.

    Attributes:
        kept: While the weights stay (`weights_stay`) the factors in the types they were needed in.
    """

    kept: dict[torch.dtype, tuple[Tensor, Tensor, float]] | None = None

    @property
    def is_vanilla(self) -> bool:
        """One adapter that is on, and not part of the base's weights."""
        return not self.disable_adapters and not self.merged and len(self.active_adapters) == 1

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        kept = self.kept
        if args or kwargs or (kept is None and not self.is_vanilla):
            return super().forward(x, *args, **kwargs)
        base: Tensor = self.base_layer(x)
        if kept is None:
            return low_rank_sum(base, x, *self._factors())
        if base.dtype not in kept:
            *factors, scale = self._factors()
            down, up = (one.to(base.dtype).t() for one in factors)
            kept[base.dtype] = down, up, scale
        return _sum(base, x.flatten(0, -2).to(base.dtype), *kept[base.dtype])[0]

    def _factors(self) -> tuple[Any, Any, float]:
        name = self.active_adapters[0]
        return self.lora_A[name].weight, self.lora_B[name].weight, self.scaling[name]


def use_low_rank_sums(network: PeftModel) -> None:
    """Let every adapted linear layer without dropout, bias or variant compute by `low_rank_sum`."""
    for module in network.modules():
        if (
            type(module) is Linear
            and not module.lora_variant
            and all(isinstance(one, nn.Identity) for one in module.lora_dropout.values())
            and not any(module.lora_bias.values())
        ):
            module.__class__ = _PlainLoraLinear


@contextmanager
def weights_stay(network: nn.Module) -> Iterator[None]:
    """Without gradients, while no weight changes: factors are cast at the first call only.

    Decoding makes many small calls, and of those with an adapter the casts were a tenth.
    """
    layers = [one for one in network.modules() if isinstance(one, _PlainLoraLinear)]
    for layer in layers:
        layer.kept = {} if layer.is_vanilla else None
    try:
        yield
    finally:
        for layer in layers:
            layer.kept = None


def low_rank_sum(base: Tensor, x: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """Base [..., O] + scale * (x [..., I] down^T [I, r]) up^T [r, O], in the type of base."""
    return _LowRankSum.apply(base, x, down, up, scale)  # pyright: ignore


def _sum(
    base: Tensor, rows: Tensor, down: Tensor, up: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """The sum, and the inner product [N, r]; down [I, r], up [r, O]."""
    inner = rows @ down
    return torch.addmm(base.flatten(0, -2), inner, up, alpha=scale).view(base.shape), inner


class _LowRankSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, base: Tensor, x: Tensor, down: Tensor, up: Tensor, scale: float
    ) -> Tensor:
        rows, a, b = (one.to(base.dtype) for one in (x.flatten(0, -2), down, up))
        found, inner = _sum(base, rows, a.t(), b.t(), scale)
        ctx.save_for_backward(rows, inner, a, b)
        ctx.scale, ctx.types = scale, (x.dtype, down.dtype, up.dtype)
        return found

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grad_outputs
        rows, inner, a, b = ctx.saved_tensors
        of_x, of_down, of_up = ctx.types
        flat = grad.flatten(0, -2)
        back = (flat @ b) * ctx.scale
        to_x = None
        if ctx.needs_input_grad[1]:
            to_x = (back @ a).view(*grad.shape[:-1], a.shape[1]).to(of_x)
        return (
            grad,
            to_x,
            (back.t() @ rows).to(of_down),
            ((flat.t() @ inner) * ctx.scale).to(of_up),
            None,
        )
