"""Which rows and tokens carry a signal, and with what weight: the plan of one optimiser step.

Enters: `Row`s and a `Method`. Leaves: per row whether it is distilled or reinforced, and per token
the weights of both terms, flat and aligned with the completions. No network is touched here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from epistill.config import Method, TokenRange


@dataclass(frozen=True, slots=True)
class Row:
    """One response with its training signal.

    Attributes:
        prompt_ids: What the student read.
        completion_ids: The response.
        old_log_probs: log p of its tokens when it was sampled, at the sampling temperature; None
            for traces nobody's policy sampled (then the surrogate is the log-likelihood).
        advantage: The verifier's signal, the same for all its tokens.
        teacher_prompt_ids: What the teacher read; None where there is no context.
    """

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    old_log_probs: tuple[float, ...] | None
    advantage: float
    teacher_prompt_ids: tuple[int, ...] | None

    def __post_init__(self) -> None:
        if self.old_log_probs is not None and len(self.old_log_probs) != len(self.completion_ids):
            raise ValueError("old_log_probs and completion_ids differ in length")


@dataclass(frozen=True, slots=True)
class Plan:
    """Which rows take part, and the weight of each row's tokens in both terms.

    Attributes:
        distilled, reinforced: Per row, whether it carries that signal.
        kept: Per row, the range of completion tokens that distillation keeps.
        distillation_scale, gradient_scale: Per row, the weight of one token in its mean.
    """

    method: Method
    distilled: tuple[bool, ...]
    reinforced: tuple[bool, ...]
    kept: tuple[tuple[int, int], ...]
    distillation_scale: tuple[float, ...]
    gradient_scale: tuple[float, ...]

    @property
    def active(self) -> list[int]:
        """Rows that need a forward pass."""
        return [
            i
            for i, (d, r) in enumerate(zip(self.distilled, self.reinforced, strict=True))
            if d or r
        ]

    @staticmethod
    def of(rows: Sequence[Row], method: Method) -> Plan:
        """Plan the step."""
        share = method.blend.distillation
        kept = tuple(_kept_range(len(row.completion_ids), method) for row in rows)
        distilled = tuple(
            share > 0 and row.teacher_prompt_ids is not None and start < stop
            for row, (start, stop) in zip(rows, kept, strict=True)
        )
        reinforced = tuple(share < 1 and row.advantage != 0.0 for row in rows)
        lengths = [len(row.completion_ids) for row in rows]
        kept_lengths = [
            stop - start if d else 0 for d, (start, stop) in zip(distilled, kept, strict=True)
        ]
        if method.reduction == "token_mean":
            by_distillation = [1.0 / max(sum(kept_lengths), 1)] * len(rows)
            by_gradient = [1.0 / max(sum(lengths), 1)] * len(rows)
        else:
            by_distillation = [1.0 / max(n, 1) / max(sum(distilled), 1) for n in kept_lengths]
            by_gradient = [1.0 / n / len(rows) for n in lengths]
        return Plan(
            method,
            distilled,
            reinforced,
            kept,
            tuple(by_distillation),
            tuple(by_gradient),
        )


def _kept_range(length: int, method: Method) -> tuple[int, int]:
    start, stop = 0, length
    for weight in method.token_weights:
        if isinstance(weight, TokenRange):
            start = max(start, weight.skip_first)
            stop = min(stop, weight.up_to if weight.up_to is not None else length)
    return start, stop


@dataclass(frozen=True, slots=True)
class Streams:
    """Per completion token, flat and aligned with `Aligned.token_ids`; [N] each.

    Attributes:
        distillation: Weight of D_t in the loss; 0 where not kept.
        gradient: Weight of the surrogate in the loss.
        advantage: Of the token's row.
        old_log_probs: None where a row has none (traces).
    """

    distillation: Tensor
    gradient: Tensor
    advantage: Tensor
    old_log_probs: Tensor | None

    @staticmethod
    def of(
        rows: Sequence[Row], members: Sequence[int], plan: Plan, device: torch.device
    ) -> Streams:
        """Streams of the chosen rows, in their order."""
        share = plan.method.blend.distillation
        distillation, gradient, advantage, old = [], [], [], []
        for i in members:
            length = len(rows[i].completion_ids)
            start, stop = plan.kept[i]
            weight = torch.zeros(length)
            if plan.distilled[i]:
                weight[start:stop] = share * plan.distillation_scale[i]
            distillation.append(weight)
            scale = (1 - share) * plan.gradient_scale[i] if plan.reinforced[i] else 0.0
            gradient.append(torch.full((length,), scale))
            advantage.append(torch.full((length,), rows[i].advantage))
            old.append(rows[i].old_log_probs)
        known = None
        if all(values is not None for values in old):
            known = torch.tensor([v for values in old for v in values or ()], device=device)
        return Streams(
            torch.cat(distillation).to(device),
            torch.cat(gradient).to(device),
            torch.cat(advantage).to(device),
            known,
        )
