"""The training signal: pure torch, tensors in and tensors out; imports nothing of the package."""

from epistill.objective.divergence import divergence, entropy, sampled_token_terms
from epistill.objective.loss import (
    at_least_float32,
    distillation_nats,
    self_distillation_loss,
    tempered,
    token_log_probs,
    top_k_forward_nats,
)
from epistill.objective.policy_gradient import (
    clipped_surrogate,
    group_advantages,
    importance_weight,
)
from epistill.objective.support import aligned_log_probs

__all__ = [
    "aligned_log_probs",
    "at_least_float32",
    "clipped_surrogate",
    "distillation_nats",
    "divergence",
    "entropy",
    "group_advantages",
    "importance_weight",
    "sampled_token_terms",
    "self_distillation_loss",
    "tempered",
    "token_log_probs",
    "top_k_forward_nats",
]
