"""The distillation loss per token, and the one-call form for people who only want the loss.

Enters: logits of student and teacher at the same positions. Leaves: nats per token. It knows
nothing of rows, methods or training; weights and reductions are beside it.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from epistill.objective.divergence import divergence, sampled_token_terms
from epistill.objective.policy_gradient import importance_weight
from epistill.objective.support import aligned_log_probs, log_probs_of


def token_log_probs(
    logits: Float[Tensor, "*batch V"], token_ids: Int[Tensor, "*batch"]
) -> Float[Tensor, "*batch"]:
    """Log p of the given tokens, in nats."""
    return log_probs_of(logits, token_ids.unsqueeze(-1)).squeeze(-1)


def distillation_nats(
    student_logits: Float[Tensor, "*batch V"],
    teacher_logits: Float[Tensor, "*batch V"],
    token_ids: Int[Tensor, "*batch"],
    *,
    alpha: float,
    top_k: int | None = None,
    add_tail: bool = False,
    chosen_by: Literal["student", "teacher"] = "student",
    sampled_token: bool = False,
    entry_clip: float | None = None,
) -> Float[Tensor, "*batch"]:
    """Divergence of every position, in nats; the teacher gets no gradient.

    Args:
        student_logits: With gradient. Half precision is computed in float32.
        teacher_logits: At the same positions, over the same vocabulary.
        token_ids: The tokens that were sampled there; only `sampled_token` reads them.
        alpha: 0 KL(T||S), 1 KL(S||T), between generalised JSD (`divergence`).
        top_k, add_tail, chosen_by: The support (`support`).
        sampled_token: Use the sampled token alone (reverse KL, so alpha must be 1).
        entry_clip: Upper bound on each pointwise term (OPSD 2601.18734 uses .05 with forward KL);
            None for none.

    Raises:
        ValueError: sampled_token with alpha != 1, or with a top_k or entry_clip it would ignore.
    """
    student_logits = at_least_float32(student_logits)
    teacher_logits = at_least_float32(teacher_logits.detach())
    if sampled_token:
        if alpha != 1.0:
            raise ValueError(
                f"sampled_token estimates reverse KL only; found alpha={alpha}, expected 1.0"
            )
        if top_k is not None or entry_clip is not None:
            raise ValueError("sampled_token uses one token; drop top_k and entry_clip")
        return sampled_token_terms(
            token_log_probs(student_logits, token_ids), token_log_probs(teacher_logits, token_ids)
        )
    if top_k is not None and top_k < student_logits.shape[-1]:
        student_logits, teacher_logits = aligned_log_probs(
            student_logits, teacher_logits, top_k=top_k, add_tail=add_tail, chosen_by=chosen_by
        )
    return divergence(student_logits, teacher_logits, alpha=alpha, entry_clip=entry_clip)


def top_k_forward_nats(
    student_logits: Float[Tensor, "*batch V"], teacher_logits: Float[Tensor, "*batch V"], *, k: int
) -> Float[Tensor, "*batch"]:
    """KL(T' || S) on the teacher's k most likely tokens, T' renormalised over them, S not.

    Source: EOPD 2603.07079, equation 10. Not 0 where S = T: there it is -log of T's mass on k.

    Example:
        >>> t = torch.tensor([.6, .2, .2]).log()
        >>> round(top_k_forward_nats(t, t, k=1).item(), 3)  # -log .6
        0.511
    """
    top = teacher_logits.detach().topk(min(k, teacher_logits.shape[-1]), dim=-1)
    log_t = top.values.log_softmax(-1)
    return (log_t.exp() * (log_t - log_probs_of(student_logits, top.indices))).sum(-1)


def self_distillation_loss(
    student_logits: Float[Tensor, "B T V"],
    teacher_logits: Float[Tensor, "B T V"],
    token_ids: Int[Tensor, "B T"],
    mask: Shaped[Tensor, "B T"],
    *,
    alpha: float,
    top_k: int | None = None,
    add_tail: bool = False,
    sampled_token: bool = False,
    is_clip: float | None = None,
    old_log_probs: Float[Tensor, "B T"] | None = None,
) -> Float[Tensor, ""]:
    """The self-distillation loss of SDPO, as the official code computes it.

    Args:
        student_logits: [B, T, V], the student's logits where each completion token was predicted.
        teacher_logits: [B, T, V], the teacher's at the same completion tokens; no gradient.
        token_ids: [B, T], the completion tokens.
        mask: [B, T], 1 for tokens that count (response mask times "this row has a context").
        alpha: 0 KL(T||S), 1 KL(S||T), between generalised JSD. The value jumps at the ends.
        top_k: The student's top-k support; None for the whole vocabulary.
        add_tail: With top_k, the left-over mass as one bucket instead of renormalising.
        sampled_token: The sampled token alone (needs alpha 1).
        is_clip: Multiply each token by min(exp(log p - old), is_clip), detached; needs
            old_log_probs.
        old_log_probs: [B, T], log p of the tokens under the weights that sampled them.

    Returns:
        Mean over the tokens with mask 1, in nats per token. The mask is in the mean, so rows
        without a context do not dilute it.

    Raises:
        ValueError: No token is kept, or options contradict each other.

    Source:
        SDPO 2601.20802, `core_algos.py::compute_self_distillation_loss`; held to 1e-10 by
        `tests/objective/test_golden.py`.
    """
    kept = mask > 0
    if not bool(kept.any()):
        raise ValueError("the mask keeps no token, so there is no mean; skip this batch")
    # The kept tokens alone: a NaN under the mask reaches neither the sum nor a gradient.
    student_logits, token_ids = student_logits[kept], token_ids[kept]
    per_token = distillation_nats(
        student_logits,
        teacher_logits[kept],
        token_ids,
        alpha=alpha,
        top_k=top_k,
        add_tail=add_tail,
        sampled_token=sampled_token,
    )
    if is_clip is not None:
        if old_log_probs is None:
            raise ValueError("is_clip needs old_log_probs; pass them, or is_clip=None")
        log_probs = token_log_probs(at_least_float32(student_logits.detach()), token_ids)
        per_token = per_token * importance_weight(log_probs, old_log_probs[kept], clip=is_clip)
    weight = mask[kept].to(per_token.dtype)
    return (per_token * weight).sum() / weight.sum()


def at_least_float32(logits: Tensor) -> Tensor:
    """Half precision becomes float32."""
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


def tempered(logits: Tensor, temperature: float) -> Tensor:
    """Logits at a sampling temperature; those of greedy decoding (0) are compared at 1."""
    return logits if temperature in (0.0, 1.0) else logits / temperature
