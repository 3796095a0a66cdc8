"""How a teacher's log-probs of the sampled tokens shape the verifier's advantages.

Enters: a response's advantage, u = log p_T - log p_S of its tokens [T], further evidence. Leaves:
an advantage per token [T], without gradient. Pure functions of one response; sources and settings
are in `axes.py`.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor


def ratio_advantage(
    advantage: float, u: Float[Tensor, "T"], *, strength: float, low: float, high: float
) -> Float[Tensor, "T"]:
    """A [(1 - s) + s clip(exp(sign(A) u), low, high)] (RLSD 2604.03128)."""
    sign = math.copysign(1.0, advantage) if advantage else 0.0
    return advantage * ((1 - strength) + strength * (sign * u).exp().clamp(low, high))


def ascent_advantage(
    advantage: float, u: Float[Tensor, "T"], *, strength: float
) -> Float[Tensor, "T"]:
    """A - strength (softplus(u) - log 2) / 2 (AntiSD 2605.11609, Alg. 1).

    A token that the teacher would rather say (u > 0) loses, without bound; one that it would not
    gains at most strength (log 2) / 2.
    """
    return advantage - strength * 0.5 * (torch.nn.functional.softplus(u) - math.log(2))


def contrast_evidence(
    positive: Float[Tensor, "T"], negatives: Float[Tensor, "K T"]
) -> Float[Tensor, "T"]:
    """Log p_T(y | c+) - log mean_k p_T(y | c-_k) (RLCSD 2606.11709)."""
    return positive - (negatives.logsumexp(0) - math.log(negatives.shape[0]))


def contrast_advantage(
    advantage: float,
    evidence: Float[Tensor, "T"],
    *,
    tau: float,
    scale: float,
    bound: float,
    gate: float,
) -> tuple[Float[Tensor, "T"], Tensor]:
    """Sign-preserving clamp of A + r where |r| > gate, r = clip(scale tanh(e / tau), ±bound).

    Returns:
        (advantage per token, which tokens the gate let through).
    """
    residual = (scale * torch.tanh(evidence / tau)).clamp(-bound, bound)
    taken = residual.abs() > gate
    moved = torch.where(taken, advantage + residual, torch.full_like(residual, advantage))
    if advantage > 0:
        return moved.clamp(min=0.0), taken
    if advantage < 0:
        return moved.clamp(max=0.0), taken
    return torch.zeros_like(moved), taken


def entropy_directed_advantage(
    advantage: float,
    u: Float[Tensor, "T"],
    entropies: Float[Tensor, "T"],
    *,
    beta: float,
    quantile: float,
    eps: float = 1e-8,
) -> Float[Tensor, "T"]:
    """A + beta tanh((tau - H) / sigma_H) sigmoid(|d| - 1) d (DASD 2605.22263).

    Towards the teacher where the student is sure, away from it at its forks: tau is the quantile of
    the student's entropies H in this response, sigma_H their mean absolute deviation, d = u over
    the mean of |u|.
    """
    threshold = torch.quantile(entropies, quantile)
    spread = (entropies - entropies.mean()).abs().mean() + eps
    scaled = u / (u.abs().mean() + eps)
    direction = torch.tanh((threshold - entropies) / spread)
    return advantage + beta * direction * torch.sigmoid(scaled.abs() - 1) * scaled


def input_contrast_advantage(
    advantage: float,
    u: Float[Tensor, "T"],
    u_elsewhere: Float[Tensor, "K T"],
    *,
    strength: float,
    verifier: float,
) -> Float[Tensor, "T"]:
    """Verifier A + u - strength mean_k u_k (after CREDIT 2605.11613; constants are inferred)."""
    return verifier * advantage + u - strength * u_elsewhere.mean(0)
