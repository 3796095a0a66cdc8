"""The self-distillation loss for TRL's trainers: their loop, their contexts, this package's loss.

    class Trainer(SelfDistillationLoss, SDPOTrainer): ...   # or TRL's SDFTTrainer

Enters: what the trainer built, with its own settings (`distillation_mode`, `distillation_alpha`,
...). Leaves: the loss of `objective.self_distillation_loss`, as a mean over the kept tokens of the
whole optimiser step: rows without a context do not dilute it, and neither micro-batches nor
processes change it. Contexts, teachers and networks stay TRL's (docs/methods.md says what differs).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from epistill.errors import EpistillError
from epistill.objective import self_distillation_loss


class SelfDistillationLoss:
    """Stands before `SDPOTrainer` or `SDFTTrainer` (TRL 1.16, `trl.experimental`) in a class.

    A `distillation_weight` below 1 mixes the loss with TRL's policy loss as before. Teachers that
    a vLLM server scores (`use_teacher_server`) keep TRL's loss.
    """

    accelerator: Any
    args: Any
    model: Any
    _buffered_inputs: list[Mapping[str, Any]] | None
    _log_self_distillation_metric: Any

    def _compute_self_distillation_loss(
        self, model: Any, inputs: Mapping[str, Any], distillation_logits: Any
    ) -> Tensor:
        """The part of this micro-batch, times micro-batches and processes, which TRL averages."""
        mask = distillation_logits.loss_mask
        sizes = [mask.sum() if one is inputs else self._kept(one) for one in self._step_of(inputs)]
        total = self.accelerator.gather(torch.stack(sizes).sum()).sum()
        settings, old = self.args, inputs.get("old_per_token_logps")
        by_mode = {
            "topk_logits": {
                "top_k": settings.distillation_topk,
                "add_tail": settings.distillation_add_tail,
            },
            "sampled_token": {"sampled_token": True},
        }
        loss = distillation_logits.student_logits.sum() * 0.0
        if bool(mask.any()):
            loss = self_distillation_loss(
                distillation_logits.student_logits,
                distillation_logits.teacher_logits,
                distillation_logits.completion_ids,
                mask,
                alpha=settings.distillation_alpha,
                is_clip=None if old is None else settings.distillation_is_clip,
                old_log_probs=old,
                **by_mode.get(settings.distillation_mode, {}),
            )
            loss = loss * mask.sum() * len(sizes) * self.accelerator.num_processes / total
        shown = self.accelerator.gather(loss.detach()).mean().item()
        self._log_self_distillation_metric("train" if model.training else "eval", shown)
        return loss

    def _step_of(self, inputs: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """The micro-batches of the optimiser step that this one belongs to, on this process."""
        if not self.model.training:
            return [inputs]
        drawn, each = self._buffered_inputs or [], self.args.gradient_accumulation_steps
        if len(drawn) % each:
            raise EpistillError(
                f"steps_per_generation is {len(drawn)} and gradient_accumulation_steps {each}; "
                "expected a multiple of it, so that the tokens of a step are known at its start"
            )
        place = next(i for i, one in enumerate(drawn) if one is inputs)
        return list(drawn[place - place % each : place - place % each + each])

    def _kept(self, inputs: Mapping[str, Any]) -> Tensor:
        """Tokens of a micro-batch that TRL's trainers will distil."""
        mask = inputs["completion_mask"][:, getattr(self, "num_loss_tokens_to_skip", 0) :]
        rows = inputs.get("self_distillation_mask")
        return mask.sum() if rows is None else (mask * rows.unsqueeze(1)).sum()
