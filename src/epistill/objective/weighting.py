"""Weights of completion tokens in the distillation term, and what the term is aimed at.

Pure functions; sources and settings are in `axes.py`.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def position_weights(
    length: int, *, floor: float, midpoint: float, width: float
) -> Float[Tensor, "T"]:
    """Floor + (1 - floor) sigmoid((f - midpoint) / width), f = (t - 1/2) / length, t = 1..length.

    Source: PW-OPSD 2605.21606. Not renormalised.
    """
    place = (torch.arange(length) + 0.5) / length
    return floor + (1 - floor) * torch.sigmoid((place - midpoint) / width)


def confidence_weights(entropies: Float[Tensor, "N"], *, beta: float) -> Float[Tensor, "N"]:
    """exp(-beta H) over its mean: sure teachers count more (SRPO 2604.02288)."""
    weights = (-beta * entropies).exp()
    return weights / weights.mean()


def purified_target(
    base_logits: Float[Tensor, "*batch V"],
    teacher_logits: Float[Tensor, "*batch V"],
    reference_logits: Float[Tensor, "*batch V"],
    *,
    beta: float,
    bound: float,
) -> Float[Tensor, "*batch V"]:
    """Logits of softmax(log p_base + bound tanh(D / bound) / beta), D centred log p_T - log p_ref.

    Args:
        base_logits: Of the model that sees the question alone.
        teacher_logits: Of the model that sees question and context.
        reference_logits: Of the model that sees the context alone.
        beta: Divides the correction.
        bound: Largest correction, in nats.

    Source: Purified OPSD 2607.02234.
    """
    gap = teacher_logits.log_softmax(-1) - reference_logits.log_softmax(-1)
    centred = gap - gap.mean(-1, keepdim=True)
    return base_logits.log_softmax(-1) + bound * torch.tanh(centred / bound) / beta
