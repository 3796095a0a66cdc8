"""What every completion token of an optimiser step counts for: the plan of the step.

Enters: `TrainingRow`s, their scores before the step, a `Method`, where training stands. Leaves: for
every row, per token, the weights of the distillation term, of the policy gradient and of the pull
to the start, and the advantage. No network is touched here; what a choice on an axis means is asked
of the choice itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from epistill.axes import Method
from epistill.shapes import Shape
from epistill.training_rows import PreStepScores, Progress, ScoredRow, TrainingRow


@dataclass(frozen=True, slots=True)
class TokenCoefficients:
    """Per completion token of one row, [T] each.

    Attributes:
        distillation: Weight of the divergence in the loss; None where the row is not distilled.
        gradient: Weight of the surrogate in the loss; None where the row is not reinforced.
        advantage: Of each token.
        reference: Weight of the squared log-ratio to the start; None for none.
    """

    distillation: Tensor | None
    gradient: Tensor | None
    advantage: Tensor
    reference: Tensor | None = None

    @property
    def distils(self) -> bool:
        """Whether the row also needs a forward pass of the target's networks."""
        return self.distillation is not None

    @property
    def active(self) -> bool:
        """Whether the row needs a forward pass of the student."""
        return any(w is not None for w in (self.distillation, self.gradient, self.reference))


def plan_coefficients(
    rows: Sequence[TrainingRow],
    scores: Sequence[PreStepScores],
    method: Method,
    progress: Progress,
) -> list[TokenCoefficients]:
    """Give every token its weights; see the module docstring.

    The weights already hold the reduction, so that the loss is their weighted sum over the step,
    however the rows are split into micro-batches.
    """
    blend, shape = method.blend, method.shape
    scored = [ScoredRow(row, one) for row, one in zip(rows, scores, strict=True)]
    distilled = [blend.distils and row.has_context and blend.distilled(row) for row in scored]
    weights = _token_weights(method, scored, distilled)
    advantages = [_advantages(row, shape, progress) for row in scored]
    reinforced = [
        advantage is not None
        and blend.reinforced(row)
        and not (method.policy_gradient.drop_uniform_groups and row.row.uniform)
        for row, advantage in zip(scored, advantages, strict=True)
    ]
    kept = [0 if weight is None else int((weight != 0).sum()) for weight in weights]
    lengths = [row.length if one else 0 for one, row in zip(reinforced, scored, strict=True)]
    if blend.one_mean:
        kept = lengths = [d or g for d, g in zip(kept, lengths, strict=True)]
    scale_d, scale_g = (_scales(counts, method, progress) for counts in (kept, lengths))
    scale_r = _scales([row.length for row in scored], method, progress)
    paths = _paths(scored, reinforced, shape, progress)
    share_d = blend.distillation_share(progress)
    found = []
    for i, row in enumerate(scored):
        ones, weight, advantage, path = torch.ones(row.length), weights[i], advantages[i], paths[i]
        if row.row.importance is not None:
            ones = torch.tensor(row.row.importance)
        d_weight = None if weight is None else weight * (share_d * scale_d[i]) * ones
        g_weight = r_weight = None
        if reinforced[i] and advantage is not None and bool((advantage != 0).any()):
            g_weight = ones * (blend.gradient_share * scale_g[i] if path is None else path)
        if blend.reference_share > 0 and row.scores.start_log_probs is not None:
            r_weight = ones * (blend.reference_share * scale_r[i])
        if advantage is None:
            advantage = torch.zeros(row.length)
        found.append(TokenCoefficients(d_weight, g_weight, advantage, r_weight))
    return found


def _advantages(row: ScoredRow, shape: Shape | None, progress: Progress) -> Tensor | None:
    """[T]; None where the row leaves the update."""
    if shape is not None and shape.needs.met_by(row.scores):
        return shape.advantages(row, progress)
    left = 1.0 if shape is None else shape.without_teacher
    return None if left is None else torch.full((row.length,), row.advantage) * left


def _scales(counts: Sequence[int], method: Method, progress: Progress) -> list[float]:
    """The weight of one token of each row; a count of 0 means the row takes no part."""
    rows = sum(count > 0 for count in counts)
    match method.reduction:
        case "token_mean":
            return [1.0 / max(sum(counts), 1)] * len(counts)
        case "sequence_mean":
            return [1.0 / max(count, 1) / max(rows, 1) for count in counts]
        case "constant_length":
            return [1.0 / progress.max_new_tokens / max(rows, 1)] * len(counts)


def _token_weights(
    method: Method, rows: Sequence[ScoredRow], distilled: Sequence[bool]
) -> list[Tensor | None]:
    """[T] of each distilled row, the product of all token weights; None where nothing is left.

    Two rounds: weights may depend on which tokens are kept, and that depends on all weights.
    """
    plain: dict[int, Tensor] = {}
    balanced: dict[int, Tensor] = {}
    for i, row in enumerate(rows):
        if not distilled[i]:
            continue
        kept = torch.ones(row.length, dtype=torch.bool)
        for _ in range(2):
            plain[i] = balanced[i] = torch.ones(row.length)
            for choice in method.token_weights:
                weight = choice.weights(row, kept)
                if choice.mean_one:
                    balanced[i] = balanced[i] * weight
                else:
                    plain[i] = plain[i] * weight
            kept = (plain[i] * balanced[i]) != 0
        if not bool(kept.any()):
            del plain[i], balanced[i]
    if any(choice.mean_one for choice in method.token_weights) and plain:
        mean = torch.cat([balanced[i][plain[i] != 0] for i in plain]).mean()
        balanced = {i: weight / mean for i, weight in balanced.items()}
    return [plain[i] * balanced[i] if i in plain else None for i in range(len(rows))]


def _paths(
    rows: Sequence[ScoredRow], reinforced: Sequence[bool], shape: Shape | None, progress: Progress
) -> list[Tensor | None]:
    """[T] weights where a shape takes two paths, each with a mean of its own; else None."""
    if shape is None or (weight := shape.apart_weight) is None:
        return [None] * len(rows)
    pairs = zip(rows, reinforced, strict=True)
    apart = [shape.apart(row, progress) if r else None for row, r in pairs]
    taken = [one for one in apart if one is not None]
    through = sum(int(one.sum()) for one in taken)
    others = sum(one.numel() for one in taken) - through
    plain, second = (torch.tensor(w / max(n, 1)) for w, n in ((1, others), (weight, through)))
    return [None if one is None else torch.where(one, second, plain) for one in apart]
