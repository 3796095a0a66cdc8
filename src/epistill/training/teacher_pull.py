"""Where the teacher pulls: the gap u = log p_T - log p_S of the sampled tokens, in sums.

Enters: gaps, or rows that were scored before the step. Leaves: sums by name, for means over the
tokens of epistemic markers and over all others; nats.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from epistill.training_rows import PreStepScores, ScoredRow, TrainingRow


def pull(u: Tensor, counted: Tensor, markers: Tensor | None) -> dict[str, Tensor]:
    """The gap at counted tokens, and at those of markers among them; [n] each."""
    found = {"u": u * counted, "u_tokens": counted}
    if markers is not None:
        found |= {"u_on_markers": u * counted * markers, "u_marker_tokens": counted * markers}
    return found


def pull_before(rows: Sequence[TrainingRow], scores: Sequence[PreStepScores]) -> dict[str, float]:
    """The same and the teacher's entropy, summed over the tokens that were scored; {} if none."""
    found: dict[str, float] = {}
    for row, known in zip(rows, scores, strict=True):
        if known.teacher_log_probs is None or row.old_log_probs is None:
            continue
        scored = ScoredRow(row, known)
        u, markers = scored.log_ratio, None if row.markers is None else scored.markers
        parts = pull(u, torch.ones_like(u), markers)
        if known.teacher_entropies is not None:
            parts["entropy"] = known.teacher_entropies
        for name, value in parts.items():
            found[name] = found.get(name, 0.0) + float(value.sum())
    return found


def pull_elsewhere(sums: Mapping[str, float]) -> float | None:
    """Its mean over tokens of no marker; None where markers are not known, or nothing else is."""
    if "u_marker_tokens" not in sums or sums["u_tokens"] == sums["u_marker_tokens"]:
        return None
    others = sums["u_tokens"] - sums["u_marker_tokens"]
    return (sums["u"] - sums["u_on_markers"]) / others
