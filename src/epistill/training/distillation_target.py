"""What rows are distilled towards: the teacher's logits, or a target made of several views.

Enters: a method, and for every view its model and prompts, scored once per micro-batch. Leaves:
divergences and teacher log-probs chunk by chunk; only hidden states are kept, never logits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from epistill.axes import Method, PurifiedTarget, SampledToken, TopK
from epistill.objective import distillation_nats, purified_target, token_log_probs
from epistill.rollouts.align import align
from epistill.rollouts.model import Head
from epistill.teacher.weights import Teacher
from epistill.training.step_records import TrainingRow


class DistillationTarget:
    """The distillation target of one micro-batch.

    Args:
        method: Its divergence says which views there are.
        temperature: Logits are divided by it.
    """

    def __init__(self, method: Method, temperature: float) -> None:
        self._divergence = method.divergence
        self._temperature = temperature
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
        for name, prompts in self._prompts(rows).items():
            owner = teacher if name == "teacher" or base is None else base
            with owner.scoring() as model:
                batch = align(
                    prompts, [row.completion_ids for row in rows], pad_id=pad_id, device=device
                )
                self._views[name] = (batch.hidden(model), model.head())

    def _prompts(self, rows: Sequence[TrainingRow]) -> Mapping[str, list[tuple[int, ...]]]:
        views = {"teacher": [row.teacher_prompt_ids or () for row in rows]}
        if isinstance(self._divergence.target, PurifiedTarget):
            views["base"] = [row.prompt_ids for row in rows]
            views["reference"] = [row.reference_prompt_ids or () for row in rows]
        return views

    @torch.no_grad()
    def _logits(self, view: str, part: slice) -> Tensor:
        hidden, head = self._views[view]
        logits = head.logits(hidden[part])
        exact = logits if logits.dtype == torch.float64 else logits.float()
        return exact / self._temperature

    def nats(self, student_logits: Tensor, part: slice, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Divergence of each position, and the teacher's log-prob of its token; [n] each."""
        teacher_logits = self._logits("teacher", part)
        teacher_log_probs = token_log_probs(teacher_logits, ids)
        target_logits = teacher_logits
        match self._divergence.target:
            case PurifiedTarget(beta=beta, bound=bound):
                target_logits = purified_target(
                    self._logits("base", part),
                    teacher_logits,
                    self._logits("reference", part),
                    beta=beta,
                    bound=bound,
                )
            case _:
                pass
        support = self._divergence.support
        top = support if isinstance(support, TopK) else None
        nats = distillation_nats(
            student_logits,
            target_logits,
            ids,
            alpha=self._divergence.alpha,
            top_k=None if top is None else top.k,
            add_tail=top is not None and top.add_tail,
            chosen_by="student" if top is None else top.chosen_by,
            sampled_token=isinstance(support, SampledToken),
            entry_clip=self._divergence.entry_clip,
        )
        return nats, teacher_log_probs
