"""Which rows and tokens carry a signal, and with what weight: the plan of one optimiser step.

Enters: `TrainingRow`s, the evidence about them, a `Method`, where training stands. Leaves: for
every row, per completion token, the weights of the distillation term and of the policy gradient and
the advantage. No network is touched here, and nothing here knows a method's name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from epistill.axes import Method, PositionRise, TeacherConfidence, TokenRange
from epistill.blends import ContrastShape, Convex, Regularised, Routed, Shaped
from epistill.objective import confidence_weights, position_weights
from epistill.training.advantage import path_scales, token_advantages
from epistill.training.step_records import Evidence, Progress, TokenSignal, TrainingRow


def plan_signals(
    rows: Sequence[TrainingRow], evidence: Sequence[Evidence], method: Method, progress: Progress
) -> list[TokenSignal]:
    """Give every token its weights; see the module docstring.

    The weights already hold the reduction, so that the loss is their weighted sum over the step,
    however the rows are split into micro-batches.
    """
    shares = _shares(method, progress)
    distilled = [shares.distils(row) for row in rows]
    reinforced = [shares.reinforces(row, one) for row, one in zip(rows, evidence, strict=True)]
    kept = [_kept(len(row.completion_ids), method) for row in rows]
    distilled = [d and start < stop for d, (start, stop) in zip(distilled, kept, strict=True)]
    advantages = [
        token_advantages(row, one, method, progress)
        for row, one in zip(rows, evidence, strict=True)
    ]
    kept_lengths = [
        stop - start if d else 0 for d, (start, stop) in zip(distilled, kept, strict=True)
    ]
    lengths = [len(row.completion_ids) if r else 0 for r, row in zip(reinforced, rows, strict=True)]
    if shares.one_mean:
        joint = [d or r for d, r in zip(kept_lengths, lengths, strict=True)]
        scale_d = scale_g = _scales(joint, method, progress)
    else:
        scale_d = _scales(kept_lengths, method, progress)
        scale_g = _scales(lengths, method, progress)
    scale_r = _scales([len(row.completion_ids) for row in rows], method, progress)
    confidence = _confidence(method, evidence, distilled, kept)
    path_scale = path_scales(advantages, reinforced, method)
    signals = []
    for i, row in enumerate(rows):
        length = len(row.completion_ids)
        d_weight = g_weight = r_weight = None
        if distilled[i]:
            start, stop = kept[i]
            d_weight = torch.zeros(length)
            d_weight[start:stop] = shares.distillation * scale_d[i]
            d_weight[start:stop] *= _position(stop - start, method) * confidence[i]
        advantage, taken = advantages[i]
        if reinforced[i] and bool((advantage != 0).any()):
            g_weight = torch.full((length,), shares.gradient * scale_g[i])
            if path_scale is not None and taken is not None:
                g_weight = torch.where(taken, path_scale[1], path_scale[0])
        if shares.reference > 0 and evidence[i].start_log_probs is not None:
            r_weight = torch.full((length,), shares.reference * scale_r[i])
        if row.importance is not None:
            factor = torch.tensor(row.importance)
            d_weight, g_weight, r_weight = (
                None if weight is None else weight * factor
                for weight in (d_weight, g_weight, r_weight)
            )
        signals.append(TokenSignal(d_weight, g_weight, advantage, r_weight))
    return signals


# ---- who takes part, and with what share


@dataclass(frozen=True, slots=True)
class _Shares:
    """The blend, resolved for one step."""

    distillation: float
    gradient: float
    reference: float
    one_mean: bool
    distils: Callable[[TrainingRow], bool]
    reinforces: Callable[[TrainingRow, Evidence], bool]


def _shares(method: Method, progress: Progress) -> _Shares:
    def has_context(row: TrainingRow) -> bool:
        return row.teacher_prompt_ids is not None

    def counts(row: TrainingRow, evidence: Evidence) -> bool:
        return not (method.policy_gradient.drop_uniform_groups and row.uniform)

    whole = _Shares(0.0, 1.0, 0.0, False, lambda row: False, counts)
    match method.blend:
        case Convex(distillation=share):
            return replace(
                whole,
                distillation=share,
                gradient=1 - share,
                distils=(lambda row: False) if share == 0 else has_context,
                reinforces=(lambda row, evidence: False) if share == 1 else counts,
            )
        case Routed():

            def routed(row: TrainingRow) -> bool:
                return has_context(row) and row.correct is False

            return replace(
                whole,
                distillation=1.0,
                one_mean=True,
                distils=routed,
                reinforces=lambda row, evidence: counts(row, evidence) and not routed(row),
            )
        case Regularised() as blend:
            return replace(
                whole,
                distillation=blend.distillation * _ramp(blend, progress),
                reference=blend.reference,
                distils=lambda row: (
                    has_context(row) and (row.advantage > 0 or not blend.only_positive)
                ),
            )
        case Shaped(shape=ContrastShape()):
            return replace(
                whole,
                reinforces=lambda row, evidence: (
                    evidence.teacher is not None and evidence.negatives is not None
                ),
            )
        case Shaped():
            return whole


def _ramp(blend: Regularised, progress: Progress) -> float:
    up = min(1.0, (progress.step + 1) / blend.warmup_steps) if blend.warmup_steps else 1.0
    left = progress.steps - progress.step
    down = min(1.0, left / blend.decay_steps) if blend.decay_steps else 1.0
    return up * down


def _scales(lengths: Sequence[int], method: Method, progress: Progress) -> list[float]:
    """The weight of one token of each row; a length of 0 means the row takes no part."""
    rows = sum(length > 0 for length in lengths)
    match method.reduction:
        case "token_mean":
            return [1.0 / max(sum(lengths), 1)] * len(lengths)
        case "sequence_mean":
            return [1.0 / max(length, 1) / max(rows, 1) for length in lengths]
        case "constant_length":
            return [1.0 / progress.max_new_tokens / max(rows, 1)] * len(lengths)


# ---- token weights


def _kept(length: int, method: Method) -> tuple[int, int]:
    start, stop = 0, length
    for weight in method.token_weights:
        if isinstance(weight, TokenRange):
            start = max(start, weight.skip_first)
            stop = min(stop, weight.up_to if weight.up_to is not None else length)
    return start, stop


def _position(length: int, method: Method) -> Tensor:
    found = torch.ones(length)
    for weight in method.token_weights:
        if isinstance(weight, PositionRise):
            found = found * position_weights(
                length, floor=weight.floor, midpoint=weight.midpoint, width=weight.width
            )
    return found


def _confidence(
    method: Method,
    evidence: Sequence[Evidence],
    distilled: Sequence[bool],
    kept: Sequence[tuple[int, int]],
) -> list[Tensor | float]:
    """Per row the weight of its kept tokens; the mean over all of them is 1."""
    settings = [w for w in method.token_weights if isinstance(w, TeacherConfidence)]
    chosen = [i for i, d in enumerate(distilled) if d]
    if not settings or not chosen:
        return [1.0] * len(evidence)
    parts = []
    for i in chosen:
        scores = evidence[i].teacher
        assert scores is not None
        parts.append(scores.entropies[slice(*kept[i])])
    weights = confidence_weights(torch.cat(parts), beta=settings[0].beta)
    found: list[Tensor | float] = [1.0] * len(evidence)
    for i, part in zip(chosen, weights.split([len(part) for part in parts]), strict=True):
        found[i] = part
    return found
