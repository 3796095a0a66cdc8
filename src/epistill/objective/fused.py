"""Losses from hidden states, chunk by chunk, so that the logits of a sequence never exist whole.

Enters: hidden states [N, H], the head's weight (and bias), and a function from the raw logits of a
chunk to a scalar. Leaves: the sum of that scalar over chunks, differentiable with respect to hidden
states, weight and bias. Value and gradient of a chunk are computed together and its logits freed:
peak memory is that of one chunk, whatever N is. Weight gradients accumulate in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from epistill.objective.products import add_weight_gradient, linear

# Logits held at once: 2^25 float32 numbers are 128 MiB.
LOGITS_PER_CHUNK = 2**25
# On a CPU 28 MiB: glibc asks the system for arrays of 32 MiB and more anew each time, and their
# pages are cleared each time. But products of few rows wait for the weight, and a head that is
# trained adds up its whole gradient for every chunk.
CPU_LOGITS_PER_CHUNK = 7 * 2**20
CPU_LEAST_ROWS = 128

ChunkLoss = Callable[[Tensor, slice], Tensor]


def chunk_rows(weight: Tensor) -> int:
    """Positions per chunk for an output layer of this weight, [V, H]."""
    vocabulary = weight.shape[0]
    most = max(1, LOGITS_PER_CHUNK // vocabulary)
    if weight.device.type != "cpu" or weight.requires_grad:
        return most
    return min(most, max(CPU_LEAST_ROWS, CPU_LOGITS_PER_CHUNK // vocabulary))


def head_loss(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    loss_of_chunk: ChunkLoss,
    *,
    rows_per_chunk: int | None = None,
) -> Tensor:
    """Sum of `loss_of_chunk(hidden W^T + b, positions)` over chunks of positions.

    Args:
        hidden: [N, H].
        weight: [V, H] of the output layer.
        bias: [V] or None.
        loss_of_chunk: Given raw logits [n, V] with gradient and the slice of positions they belong
            to, returns a scalar. It may record statistics on the side.
        rows_per_chunk: Positions per chunk; None chooses by memory.

    Returns:
        The scalar, in float32 or better.
    """
    rows = rows_per_chunk or chunk_rows(weight)
    return _HeadLoss.apply(hidden, weight, bias, loss_of_chunk, rows)  # pyright: ignore


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        loss_of_chunk: ChunkLoss,
        rows: int,
    ) -> Tensor:
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        wants_any = wants_hidden or wants_weight or wants_bias
        exact = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        total = torch.zeros((), dtype=exact, device=hidden.device)
        d_hidden = torch.empty_like(hidden) if wants_hidden else None
        d_weight = torch.zeros_like(weight, dtype=exact) if wants_weight else None
        d_bias = torch.zeros_like(bias, dtype=exact) if wants_bias and bias is not None else None
        for start in range(0, hidden.shape[0], rows):
            part = slice(start, min(start + rows, hidden.shape[0]))
            with torch.enable_grad():
                logits = linear(
                    hidden[part].detach(), weight.detach(), None if bias is None else bias.detach()
                ).requires_grad_(wants_any)
                loss = loss_of_chunk(logits, part)
            total += loss.detach()
            if not (wants_any and loss.requires_grad):
                if d_hidden is not None:
                    d_hidden[part] = 0
                continue
            (d_logits,) = torch.autograd.grad(loss, logits)
            del logits, loss
            if d_hidden is not None:
                d_hidden[part] = linear(d_logits, weight.t())
            if d_weight is not None:
                add_weight_gradient(d_weight, d_logits, hidden[part])
            if d_bias is not None:
                d_bias += d_logits.sum(0)
        ctx.gradients = (d_hidden, _as(d_weight, weight), _as(d_bias, bias))
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grad_outputs
        # In place: the weight's gradient is as large as the head itself.
        scaled = tuple(None if g is None else g.mul_(grad.to(g.dtype)) for g in ctx.gradients)
        ctx.gradients = None
        return (*scaled, None, None)


def _as(gradient: Tensor | None, like: Tensor | None) -> Tensor | None:
    return None if gradient is None or like is None else gradient.to(like.dtype)
