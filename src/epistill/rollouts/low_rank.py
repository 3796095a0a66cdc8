"""Low-rank adapters in the layer's own number type, with float32 masters.

peft computes an adapter in the adapter's float32: each of its layers copies its input to float32,
scales, adds and copies back. In bfloat16 that costs more than the frozen layer. Here an adapted
linear layer is three products in the type of its input, added in place; parameters and their
gradients stay float32, as under autocast.
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
from transformers.pytorch_utils import Conv1D

# PEFT asks each network under transformers' old name; its user can do nothing about that.
warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)


class _PlainLoraLinear(Linear):
    """peft's layer, with its vanilla case computed by `adapted_linear`; all else is left to peft.

    Attributes:
        kept: While the weights stay (`weights_stay`) the factors in the types they were needed in.
    """

    kept: dict[torch.dtype, tuple[Tensor, Tensor]] | None = None

    @property
    def is_vanilla(self) -> bool:
        """One adapter that is on, and not part of the base's weights, which are frozen."""
        on = not self.disable_adapters and not self.merged and len(self.active_adapters) == 1
        on = on and self.active_adapters[0] in self.lora_A  # another's layers may be others
        return on and not any(one.requires_grad for one in self.base_layer.parameters())

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        kept = self.kept
        if args or kwargs or (kept is None and not self.is_vanilla):
            return super().forward(x, *args, **kwargs)
        base: Any = self.base_layer
        weight = base.weight.t() if self.fan_in_fan_out else base.weight
        if kept is None:
            return adapted_linear(x, weight, base.bias, *self._factors())
        rows = x.flatten(0, -2)
        found = nn.functional.linear(rows, weight, base.bias)
        if found.dtype not in kept:
            kept[found.dtype] = _cast(*self._factors(), found.dtype)
        return _add(found, rows, *kept[found.dtype])[0].view(*x.shape[:-1], len(weight))

    def _factors(self) -> tuple[Any, Any, float]:
        name = self.active_adapters[0]
        return self.lora_A[name].weight, self.lora_B[name].weight, self.scaling[name]


def use_low_rank_sums(network: PeftModel) -> None:
    """Let every adapted linear layer without dropout, bias or variant be an `adapted_linear`."""
    for module in network.modules():
        if (
            type(module) is Linear
            and type(module.base_layer) in (nn.Linear, Conv1D)
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


def adapted_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float
) -> Tensor:
    """A linear layer [..., I] -> [..., O] with an adapter, in the type of the base's product.

    x (weight^T + scale * down^T up^T) + bias, with down [r, I] and up [O, r]; weight [O, I] and
    bias [O] are frozen: they have no gradient.
    """
    return _AdaptedLinear.apply(x, weight, bias, down, up, scale)  # pyright: ignore


def _cast(down: Tensor, up: Tensor, scale: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Factors as they are multiplied by, [I, r] and, with the scale in it, [r, O]."""
    # Laid out anew: products with a transposed factor are slower when there are few rows.
    return down.to(dtype).t().contiguous(), (up * scale).to(dtype).t().contiguous()


def _add(base: Tensor, rows: Tensor, down: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """The adapter's part, added to base [N, O] in place; and the inner product [N, r]."""
    inner = rows.to(base.dtype) @ down
    return base.addmm_(inner, up), inner


class _AdaptedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        down: Tensor,
        up: Tensor,
        scale: float,
    ) -> Tensor:
        rows = x.flatten(0, -2)
        base = nn.functional.linear(rows, weight, bias)
        rows = rows.to(base.dtype)
        a, b = _cast(down, up, scale, base.dtype)
        found, inner = _add(base, rows, a, b)
        ctx.save_for_backward(rows, inner, weight, a, b)
        ctx.scale, ctx.types = scale, (x.dtype, down.dtype, up.dtype)
        return found.view(*x.shape[:-1], len(weight))

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grad_outputs
        rows, inner, weight, a, b = ctx.saved_tensors
        of_x, of_down, of_up = ctx.types
        flat = grad.flatten(0, -2)
        back = flat @ b.t()
        to_x = None
        if ctx.needs_input_grad[0]:
            to_x = (flat @ weight.to(flat.dtype)).addmm_(back, a.t())
            to_x = to_x.view(*grad.shape[:-1], weight.shape[1]).to(of_x)
        to_down, to_up = back.t() @ rows, (flat.t() @ inner) * ctx.scale
        return to_x, None, None, to_down.to(of_down), to_up.to(of_up), None
