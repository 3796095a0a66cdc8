"""The verifier's side: group-relative advantages and the clipped surrogate (GRPO and kin).

Enters: rewards of groups, log-probs. Leaves: advantages per row, surrogate loss per token. Pure
functions; which rows and tokens count is the caller's weight.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def group_advantages(
    rewards: Float[Tensor, "P G"], *, normalize_std: bool, eps: float = 1e-6
) -> Float[Tensor, "P G"]:
    """A = r - mean(r) over each group of one problem, divided by its standard deviation if asked.

    Args:
        rewards: One row per problem, one column per sample.
        normalize_std: GRPO (2402.03300 Eq. 3) divides; Dr.GRPO (2503.20783) and the paper's runs
            (`norm_adv_by_std False`) do not.
        eps: Added to the standard deviation.

    Raises:
        ValueError: Groups of one: an advantage relative to oneself is always zero.
    """
    if rewards.shape[1] < 2:
        raise ValueError("a group of 1 sample has no advantage; sample at least 2 per problem")
    centred = rewards - rewards.mean(1, keepdim=True)
    if not normalize_std:
        return centred
    return centred / (rewards.std(1, keepdim=True) + eps)


def clipped_surrogate(
    log_probs: Float[Tensor, "*batch"],
    old_log_probs: Float[Tensor, "*batch"],
    advantages: Float[Tensor, "*batch"],
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
) -> Float[Tensor, "*batch"]:
    """-min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A), rho = exp(log p - log p_old).

    PPO's surrogate (1707.06347 Eq. 7) with DAPO's separate upper bound (2503.14476 Eq. 10). On
    policy rho is 1 and the gradient is -A grad log p.

    Args:
        log_probs: Now, with gradient.
        old_log_probs: When the tokens were sampled.
        advantages: Of each token.
        clip_low, clip_high: Of the ratio.
        dual_clip: Where A < 0 the loss is at most -dual_clip A (1912.09729 Eq. 5, c > 1); None for
            no bound.
    """
    ratio = (log_probs - old_log_probs.detach()).clamp(-20, 20).exp()
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    loss = -torch.minimum(ratio * advantages, clipped * advantages)
    if dual_clip is None:
        return loss
    return torch.where(advantages < 0, torch.minimum(loss, -dual_clip * advantages), loss)


def importance_weight(
    log_probs: Float[Tensor, "*batch"], old_log_probs: Float[Tensor, "*batch"], *, clip: float
) -> Float[Tensor, "*batch"]:
    """min(exp(clamp(log p - log p_old, -20, 20)), clip), without gradient.

    Corrects a distillation term for responses sampled from older weights. Source: SDPO,
    `core_algos.py` (is_clip = 2).
    """
    return (log_probs - old_log_probs).detach().clamp(-20, 20).exp().clamp(max=clip)
