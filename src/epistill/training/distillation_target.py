"""What rows are distilled towards: the teacher's logits, or a target made of several views.

Enters: a method, and for every view its model and prompts, scored once per micro-batch. Leaves:
divergences and teacher log-probs chunk by chunk; only hidden states are kept, never logits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from epistill.axes import Method
from epistill.objective import token_log_probs
from epistill.rollouts.align import align
from epistill.rollouts.model import Head
from epistill.teacher.weights import Teacher
from epistill.training_rows import TrainingRow


class DistillationTarget:
    """The distillation target of one micro-batch.

    Args:
        method: Its divergence says which views there are.
        temperature: Logits are divided by it.
    """

    def __init__(self, method: Method, temperature: float) -> None:
        self._divergence = method.divergence
        self._temperature = temperature if method.divergence.tempered else 1.0
        self._views: dict[str, tuple[Tensor, Head]] = {}

    @torch.no_grad()
    def score(
        self,
        rows: Sequence[TrainingRow],
        teacher: Teacher,
        base: Teacher | None,
        pad_id: int,
        device: torch.device,
    ) -> None:
        """Run the target's networks over the rows' completions, once per view."""
        prompts = {
            "teacher": [row.teacher_prompt_ids or () for row in rows],
            "start": [row.prompt_ids for row in rows],
            "context_alone": [row.reference_prompt_ids or () for row in rows],
        }
        for name in ("teacher", *self._divergence.target.views):
            owner = teacher if name == "teacher" or base is None else base
            with owner.scoring() as model:
                batch = align(
                    prompts[name],
                    [row.completion_ids for row in rows],
                    pad_id=pad_id,
                    device=device,
                )
                self._views[name] = (batch.hidden(model), model.head())

    @torch.no_grad()
    def _logits(self, view: str, part: slice) -> Tensor:
        hidden, head = self._views[view]
        logits = head.logits(hidden[part])
        exact = logits if logits.dtype == torch.float64 else logits.float()
        return exact / self._temperature

    def nats(self, student_logits: Tensor, part: slice, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Divergence of each position, and the teacher's log-prob of its token; [n] each."""
        divergence = self._divergence
        seen = {view: self._logits(view, part) for view in self._views}
        teacher_log_probs = token_log_probs(seen["teacher"], ids)
        nats = divergence.support.nats(
            student_logits,
            divergence.target.logits({**seen, "student": student_logits.detach()}),
            ids,
            alpha=divergence.alpha,
            entry_clip=divergence.entry_clip,
        )
        if divergence.cap_nats is not None:
            nats = nats.clamp(max=divergence.cap_nats)
        return nats, teacher_log_probs
