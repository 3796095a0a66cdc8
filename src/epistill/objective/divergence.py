"""Divergences between a teacher and a student distribution, in nats per position.

Enters: logits [..., V] of both at the same positions. Leaves: nats [...], with the gradient for the
student only. Value and gradient are computed together, a few rows at a time, so that the many
intermediate arrays of a large vocabulary stay in the processor's cache and are never kept.

With S the student, T the teacher and M = (1 - alpha) S + alpha T:

    alpha = 0        KL(T || S)                              "forward KL"
    alpha = 1        KL(S || T)                              "reverse KL"
    0 < alpha < 1    (1 - alpha) KL(S || M) + alpha KL(T || M)   generalised Jensen-Shannon

This is the official convention (SDPO 2601.20802, `core_algos.py`: lerp of the two KLs). Mind the
ends: the interior form tends to 0 as alpha tends to 0 or 1, so the value *jumps* at the endpoints
(S=(.6,.3,.1), T=(.2,.3,.5): .585 at 0, .0058 at .01, .125 at .5, .0049 at .99, .498 at 1 nats).
A sweep of alpha is therefore also a sweep of the effective learning rate.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from epistill.objective.support import row_blocks


def divergence(
    student_logits: Float[Tensor, "*batch V"],
    teacher_logits: Float[Tensor, "*batch V"],
    *,
    alpha: float,
    entry_clip: float | None = None,
) -> Float[Tensor, "*batch"]:
    """Divergence of every position, in nats; gradient for the student only.

    Args:
        student_logits: float32 or float64; normalised log-probabilities are logits too.
        teacher_logits: Same shape. A token the teacher forbids (-inf) is allowed where alpha < 1.
        alpha: 0 forward KL, 1 reverse KL, between them generalised JSD (module docstring).
        entry_clip: Upper bound on each token's term of the sum; None for none.

    Raises:
        ValueError: alpha outside [0, 1].

    Example:
        >>> s = torch.tensor([.6, .3, .1]).double().log()
        >>> t = torch.tensor([.2, .3, .5]).double().log()
        >>> [round(divergence(s, t, alpha=a).item(), 3) for a in (0.0, 0.5, 1.0)]
        [0.585, 0.125, 0.498]
    """
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha is {alpha}; expected a number in [0, 1]")
    return _Divergence.apply(student_logits, teacher_logits, alpha, entry_clip)  # pyright: ignore


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, student: Tensor, teacher: Tensor, alpha: float, clip: float | None
    ) -> Tensor:
        s, t = student.reshape(-1, student.shape[-1]), teacher.reshape(-1, teacher.shape[-1])
        nats = s.new_empty(s.shape[0])
        gradient = torch.empty_like(s) if ctx.needs_input_grad[0] else None
        for block in row_blocks(s):
            nats[block] = _block(
                s[block], t[block], alpha, clip, None if gradient is None else gradient[block]
            )
        ctx.gradient = gradient
        return nats.reshape(student.shape[:-1])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, None, None, None]:
        (upstream,) = grad_outputs
        gradient = ctx.gradient * upstream.reshape(-1, 1)
        return gradient.reshape(*upstream.shape, -1), None, None, None


def _block(s: Tensor, t: Tensor, alpha: float, clip: float | None, out: Tensor | None) -> Tensor:
    """Nats of a block of rows; its gradient with respect to the student's logits goes to `out`.

    Every divergence here is a sum of f(p_i) over tokens, so with h_i = p_i f'(p_i) the gradient is
    h_j - p_j sum_i h_i; a clipped term has h = 0.
    """
    log_p, log_q = s.log_softmax(-1), t.log_softmax(-1)
    p, q = log_p.exp(), log_q.exp()
    # Tokens that both forbid contribute nothing. A logit that is no number must not pass for one:
    # it makes the whole row of p or q NaN, and the row's nats with it.
    ratio = torch.sub(log_q, log_p).nan_to_num_(nan=0.0, posinf=torch.inf, neginf=-torch.inf)
    numbers = (p[..., 0] + q[..., 0]) * 0
    if alpha == 0.0:
        terms = (q * ratio).masked_fill_(q == 0, 0.0)
        h = q.neg_()
    elif alpha == 1.0:
        terms = (p * ratio).neg_().masked_fill_(p == 0, 0.0)
        h = terms + p
    else:
        # log(p/m) = -log1p(alpha (q/p - 1)) loses no digits where p and q are close. The bound
        # keeps exp finite; beyond it the terms below no longer change.
        ratio.clamp_(max=_largest_ratio(s.dtype))
        log_p_over_m = torch.expm1(ratio).mul_(alpha).log1p_().neg_()
        h = (p * log_p_over_m).mul_(1 - alpha)
        terms = ratio.add_(log_p_over_m).mul_(q).masked_fill_(q == 0, 0.0).mul_(alpha).add_(h)
    if clip is not None:
        h = h.masked_fill(terms > clip, 0.0)
        terms = terms.clamp(max=clip)
    if out is not None:
        torch.addcmul(h, p, h.sum(-1, keepdim=True), value=-1, out=out)
    return terms.sum(-1) + numbers


def _largest_ratio(dtype: torch.dtype) -> float:
    return 700.0 if dtype == torch.float64 else 80.0


def sampled_token_terms(
    student_log_probs: Float[Tensor, "*batch"], teacher_log_probs: Float[Tensor, "*batch"]
) -> Float[Tensor, "*batch"]:
    """Score-function estimate of reverse KL from the sampled token alone.

    The value is (log S - log T) log S and only its gradient means something: in expectation over
    y ~ S it is the gradient of KL(S || T). Source: SDPO, `core_algos.py`, full_logit off.

    Args:
        student_log_probs: log S(y) of the sampled token, with gradient.
        teacher_log_probs: log T(y) of the same token.
    """
    return (student_log_probs - teacher_log_probs).detach() * student_log_probs


def entropy(log_probs: Float[Tensor, "*batch K"]) -> Float[Tensor, "*batch"]:
    """Shannon entropy in nats; 0 log 0 is 0. Under autocast too, in the precision it is given."""
    finite = log_probs.clamp(min=torch.finfo(log_probs.dtype).min)
    with torch.autocast(log_probs.device.type, enabled=False):  # it would multiply in bfloat16
        return -torch.linalg.vecdot(log_probs.exp(), finite)
