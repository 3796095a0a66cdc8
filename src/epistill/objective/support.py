"""On which tokens student and teacher are compared: all, or the top k with or without tail.

Enters: logits [..., V] of both. Leaves: log-probabilities [..., K] of both over one support, each
normalised over it. The support is a choice, not a quantity: no gradient flows through which tokens
are in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

TINY_TAIL = 1e-7  # of SDPO's core_algos.py
# Numbers per block: a handful of float32 arrays of this size fit into a second-level cache.
BLOCK_NUMBERS = 2**18


def log_tail_mass(
    log_probs: Float[Tensor, "*batch K"],
) -> Float[Tensor, "*batch 1"]:
    """Log of the probability left outside a top-k set, safe where the set holds everything.

    log(1 - sum p) through log1p/expm1, with the sum kept a hair below one: a distribution whose
    top k already hold all its mass has a tail of (about) nothing, not NaN.
    """
    inside = log_probs.logsumexp(-1, keepdim=True)
    return torch.log(-torch.expm1(inside.clamp(max=-TINY_TAIL)))


def aligned_log_probs(
    student_logits: Float[Tensor, "*batch V"],
    teacher_logits: Float[Tensor, "*batch V"],
    *,
    top_k: int | None = None,
    add_tail: bool = False,
    chosen_by: Literal["student", "teacher"] = "student",
) -> tuple[Float[Tensor, "*batch K"], Float[Tensor, "*batch K"]]:
    """Log-probabilities of both over the support.

    Args:
        student_logits: At the loss temperature already.
        teacher_logits: Over the same vocabulary.
        top_k: Keep that many tokens; None, or at least V, keeps all.
        add_tail: Add the mass left over as one bucket (K = top_k + 1); else both are renormalised
            over the kept tokens. The divergence with tail is a lower bound of the full one
            (coarse-graining) and grows with k.
        chosen_by: Whose top k.

    Returns:
        (student, teacher) log-probabilities [..., K].

    Raises:
        ValueError: top_k below 1.
    """
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k is {top_k}; expected a positive integer, or None for all tokens")
    if top_k is None or top_k >= student_logits.shape[-1]:
        return student_logits.log_softmax(-1), teacher_logits.log_softmax(-1)
    chooser = student_logits if chosen_by == "student" else teacher_logits
    kept = chooser.detach().topk(top_k, dim=-1).indices
    student, teacher = (log_probs_of(logits, kept) for logits in (student_logits, teacher_logits))
    if add_tail:
        return (
            torch.cat([student, log_tail_mass(student)], -1),
            torch.cat([teacher, log_tail_mass(teacher)], -1),
        )
    return student.log_softmax(-1), teacher.log_softmax(-1)


def log_probs_of(
    logits: Float[Tensor, "*batch V"], ids: Int[Tensor, "*batch K"]
) -> Float[Tensor, "*batch K"]:
    """Log-probabilities of some tokens, in nats.

    Beside the logits only one array of their size is made, the gradient.
    """
    return _LogProbsOf.apply(logits, ids)  # pyright: ignore


class _LogProbsOf(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, ids: Tensor) -> Tensor:
        rows = logits.reshape(-1, logits.shape[-1])
        # In two parts: a probability near one loses its last digits in logits - (top + log_sum).
        top = rows.new_empty(len(rows), 1)
        log_sum = torch.empty_like(top)
        for block in row_blocks(rows):
            top[block] = rows[block].amax(-1, keepdim=True)
            log_sum[block] = torch.sub(rows[block], top[block]).exp_().sum(-1, keepdim=True).log_()
        ctx.save_for_backward(logits, ids, top + log_sum)
        top, log_sum = (part.reshape(*logits.shape[:-1], 1) for part in (top, log_sum))
        return logits.gather(-1, ids) - top - log_sum

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        (upstream,) = grad_outputs
        logits, ids, normaliser = ctx.saved_tensors
        rows, picked = logits.reshape(-1, logits.shape[-1]), upstream.reshape(-1, ids.shape[-1])
        total = picked.sum(-1, keepdim=True).neg_()
        gradient = torch.empty_like(rows)
        for block in row_blocks(rows):
            torch.sub(rows[block], normaliser[block], out=gradient[block]).exp_().mul_(total[block])
        gradient.scatter_add_(-1, ids.reshape(picked.shape), picked)
        return gradient.reshape(logits.shape), None


def row_blocks(rows: Tensor) -> Iterator[slice]:
    """Slices over the rows of [N, V] that keep what is computed from them in a processor's cache.

    Elsewhere one slice: a GPU waits for each kernel that a block would launch.
    """
    step = BLOCK_NUMBERS // rows.shape[1] if rows.device.type == "cpu" else len(rows)
    step = max(1, step)
    for start in range(0, len(rows), step):
        yield slice(start, start + step)
