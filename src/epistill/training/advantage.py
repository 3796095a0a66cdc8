"""Advantages per token: the verifier's, or shaped by the evidence of the teacher.

Enters: a row with its evidence. Leaves: an advantage per token and, where a shape has two paths,
which tokens took the contrasting one. The formulas are in `objective.shaping`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from epistill.axes import Method
from epistill.blends import (
    AscentShape,
    ContrastShape,
    EntropyDirectedShape,
    InputContrastShape,
    RatioShape,
)
from epistill.objective.shaping import (
    ascent_advantage,
    contrast_advantage,
    contrast_evidence,
    entropy_directed_advantage,
    input_contrast_advantage,
    ratio_advantage,
)
from epistill.training.step_records import Evidence, Progress, TrainingRow


def token_advantages(
    row: TrainingRow, evidence: Evidence, method: Method, progress: Progress
) -> tuple[Tensor, Tensor | None]:
    """Advantage per token, and the tokens that took the contrasting path (or None)."""
    plain = torch.full((len(row.completion_ids),), row.advantage)
    if method.shape is None:
        return plain, None
    if evidence.teacher is None:  # no context, or one that did not fit: the verifier's part alone
        alone = method.shape.verifier if isinstance(method.shape, InputContrastShape) else 1.0
        return plain * alone, None
    assert row.old_log_probs is not None
    own = torch.tensor(row.old_log_probs)
    u = evidence.teacher.log_probs - own
    match method.shape:
        case RatioShape() as shape:
            left = 1.0
            if shape.decay_steps is not None:
                left = 1 - min(progress.step / shape.decay_steps, 1.0)
            return (
                ratio_advantage(
                    row.advantage,
                    u,
                    strength=shape.strength * left,
                    low=shape.low,
                    high=shape.high,
                ),
                None,
            )
        case AscentShape(strength=strength):
            opened = strength if progress.gate_open else 0.0
            return ascent_advantage(row.advantage, u, strength=opened), None
        case ContrastShape() as shape:
            if evidence.negatives is None:
                return torch.zeros_like(plain), None
            return contrast_advantage(
                row.advantage,
                contrast_evidence(evidence.teacher.log_probs, evidence.negatives),
                tau=shape.tau,
                scale=shape.beta * shape.strength,
                bound=shape.bound,
                gate=shape.gate,
            )
        case EntropyDirectedShape(beta=beta, quantile=quantile):
            assert evidence.student_entropies is not None
            return (
                entropy_directed_advantage(
                    row.advantage, u, evidence.student_entropies, beta=beta, quantile=quantile
                ),
                None,
            )
        case InputContrastShape() as shape:
            if evidence.negatives is None:
                return plain * shape.verifier, None
            return (
                input_contrast_advantage(
                    row.advantage,
                    u,
                    evidence.negatives - own,
                    strength=shape.strength,
                    verifier=shape.verifier,
                ),
                None,
            )


def path_scales(
    advantages: Sequence[tuple[Tensor, Tensor | None]], reinforced: Sequence[bool], method: Method
) -> tuple[Tensor, Tensor] | None:
    """Weights of a token on the plain and on the contrasting path, each path a mean of its own."""
    if not isinstance(method.shape, ContrastShape):
        return None
    taken = [t for (_, t), r in zip(advantages, reinforced, strict=True) if r and t is not None]
    through = sum(int(t.sum()) for t in taken)
    plain = sum(t.numel() for t in taken) - through
    return torch.tensor(1 / max(plain, 1)), torch.tensor(method.shape.eta / max(through, 1))
