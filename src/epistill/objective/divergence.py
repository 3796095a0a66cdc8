"""Divergences between a teacher and a student distribution over one support, in nats.

Enters: aligned log-probabilities [..., K] of student and teacher, each summing to one over K.
Leaves: the pointwise terms [..., K] whose sum over K is the divergence of that position. Gradients
flow to whatever of the two requires them; callers detach the teacher.

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

import math

import torch
from jaxtyping import Float
from torch import Tensor


def _kl_terms(p_log: Tensor, q_log: Tensor) -> Tensor:
    """P (log p - log q), with 0 where p is 0 whatever q is, in value and in gradient."""
    p = p_log.exp()
    return p * torch.where(p > 0, p_log - q_log, torch.zeros_like(p))


def divergence_terms(
    student_log_probs: Float[Tensor, "*batch K"],
    teacher_log_probs: Float[Tensor, "*batch K"],
    *,
    alpha: float,
) -> Float[Tensor, "*batch K"]:
    """Pointwise terms of the divergence; their sum over K is in nats per position.

    Args:
        student_log_probs: log S, normalised over K.
        teacher_log_probs: log T, normalised over K.
        alpha: 0 forward KL, 1 reverse KL, between them generalised JSD (module docstring).

    Raises:
        ValueError: alpha outside [0, 1].

    Example:
        >>> s = torch.tensor([.6, .3, .1]).double().log()
        >>> t = torch.tensor([.2, .3, .5]).double().log()
        >>> [round(divergence_terms(s, t, alpha=a).sum().item(), 3) for a in (0, .5, 1)]
        [0.585, 0.125, 0.498]
    """
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha is {alpha}; expected a number in [0, 1]")
    if alpha == 0.0:
        return _kl_terms(teacher_log_probs, student_log_probs)
    if alpha == 1.0:
        return _kl_terms(student_log_probs, teacher_log_probs)
    mixture = torch.logaddexp(
        student_log_probs + math.log1p(-alpha), teacher_log_probs + math.log(alpha)
    )
    return (1 - alpha) * _kl_terms(student_log_probs, mixture) + alpha * _kl_terms(
        teacher_log_probs, mixture
    )


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
    """Shannon entropy in nats; 0 log 0 is 0."""
    probs = log_probs.exp()
    return -(probs * torch.where(probs > 0, log_probs, torch.zeros_like(probs))).sum(-1)
