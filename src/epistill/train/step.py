"""One optimiser step, for every method: rows with their signal in, gradients and numbers out.

Enters: `Row`s (who wrote them does not matter here), a `Method`. Leaves: accumulated gradients in
the student and the sums behind every logged number. There is no branch on a method's name: GRPO is
blend.distillation = 0, SFT is rows with advantage 1 and a log-likelihood surrogate. Rows without a
signal cost no forward pass of either network.

    loss = d * sum_t w_t D_t / Z_D  +  (1 - d) * sum_t surrogate_t / Z_P

D_t is the divergence at completion token t of a row with a context, w_t its token weight, Z_D the
number of kept tokens of such rows; Z_P counts the completion tokens of all rows (token_mean). With
sequence_mean each row's terms are divided by its own length first, and by the number of rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from epistill.config import ImportanceClip, Method, SampledToken, TopK
from epistill.objective import (
    clipped_surrogate,
    distillation_nats,
    importance_weight,
    token_log_probs,
)
from epistill.objective.fused import head_loss
from epistill.rollouts.model import LanguageModel
from epistill.teacher.align import Aligned, align, micro_batches
from epistill.train.signal import Plan, Row, Streams


@dataclass(slots=True)
class Tally:
    """Sums over the rows of a step; `None`-free means come out of `metrics`."""

    sums: dict[str, float] = field(default_factory=dict[str, float])

    def add(self, name: str, value: Tensor | float) -> None:
        """Add to a named sum."""
        number = float(value.sum()) if isinstance(value, Tensor) else float(value)
        self.sums[name] = self.sums.get(name, 0.0) + number


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one optimiser step minimised and touched.

    Attributes:
        loss: The number whose gradient was taken.
        distillation_nats_per_token: Its distillation part before the blend; None where no row had
            a context.
        policy_gradient_loss: Its verifier part before the blend; None for pure distillation.
        teacher_log_ratio_nats_per_token: Mean of log p_T - log p_S on the sampled tokens.
        clipped_ratio_share: Share of policy-gradient tokens whose ratio was clipped.
        distilled_rows, reinforced_rows: Rows that cost a teacher pass; rows with an advantage.
        student_tokens, padding_share: Of the student's forward passes.
    """

    loss: float
    distillation_nats_per_token: float | None
    policy_gradient_loss: float | None
    teacher_log_ratio_nats_per_token: float | None
    clipped_ratio_share: float | None
    distilled_rows: int
    reinforced_rows: int
    student_tokens: int
    padding_share: float | None


def accumulate_gradients(
    student: LanguageModel,
    teacher: LanguageModel | None,
    rows: Sequence[Row],
    method: Method,
    *,
    temperature: float,
    microbatch_tokens: int,
) -> StepResult:
    """Add the gradient of the step's loss to the student's parameters.

    Args:
        student: Trained; its gradients are added to, not reset.
        teacher: Scores rows with a context; may be None if the method does not distil.
        rows: All rows of the optimiser step.
        method: Where on the five axes.
        temperature: Both networks' logits are divided by it, as the sampler's were.
        microbatch_tokens: Padded tokens per forward pass; changes memory, not the loss.
    """
    plan = Plan.of(rows, method)
    tally = Tally()
    padded = real = 0
    for distilled in (True, False):
        chosen = [i for i in plan.active if plan.distilled[i] == distilled]
        lengths = [len(rows[i].prompt_ids) + len(rows[i].completion_ids) for i in chosen]
        for batch in micro_batches(lengths, max_tokens=microbatch_tokens):
            members = [chosen[k] for k in batch]
            padded += len(members) * max(lengths[k] for k in batch)
            real += sum(lengths[k] for k in batch)
            _micro_batch(
                student, teacher if distilled else None, rows, members, plan, temperature, tally
            )
    return _result(plan, method, tally, real, padded)


def _micro_batch(
    student: LanguageModel,
    teacher: LanguageModel | None,
    rows: Sequence[Row],
    members: Sequence[int],
    plan: Plan,
    temperature: float,
    tally: Tally,
) -> None:
    device = student.device
    completions = [rows[i].completion_ids for i in members]
    batch = align(
        [rows[i].prompt_ids for i in members], completions, pad_id=student.pad_id, device=device
    )
    streams = Streams.of(rows, members, plan, device)
    teacher_hidden = None
    if teacher is not None:
        prompts = [rows[i].teacher_prompt_ids or () for i in members]
        theirs = align(prompts, completions, pad_id=student.pad_id, device=device)
        with torch.no_grad():
            teacher_hidden = theirs.hidden(teacher)
    head = student.head()
    loss = head_loss(
        batch.hidden(student),
        head.weight,
        head.bias,
        lambda raw, part: _chunk_loss(
            head.finish(raw.float()) / temperature,
            None
            if teacher is None or teacher_hidden is None
            else _logits_of(teacher, teacher_hidden[part], temperature),
            part,
            batch,
            streams,
            plan.method,
            tally,
        ),
    )
    tally.add("loss", loss.detach())
    loss.backward()


@torch.no_grad()
def _logits_of(model: LanguageModel, hidden: Tensor, temperature: float) -> Tensor:
    return model.head().logits(hidden).float() / temperature


def _chunk_loss(
    student_logits: Tensor,
    teacher_logits: Tensor | None,
    part: slice,
    batch: Aligned,
    streams: Streams,
    method: Method,
    tally: Tally,
) -> Tensor:
    """The weighted sum of both terms over one chunk of positions."""
    ids = batch.token_ids[part]
    log_probs = token_log_probs(student_logits, ids)
    old = None if streams.old_log_probs is None else streams.old_log_probs[part]
    total = torch.zeros((), device=student_logits.device)
    weight = streams.gradient[part]
    if bool((weight != 0).any()):
        advantage = streams.advantage[part]
        surrogate = _surrogate(log_probs, old, advantage, method)
        total = total + (weight * surrogate).sum()
        tally.add("policy_gradient", (weight * surrogate).detach())
        if old is not None:
            ratio = (log_probs.detach() - old).exp()
            low, high = 1 - method.policy_gradient.clip_low, 1 + method.policy_gradient.clip_high
            outside = torch.where(advantage > 0, ratio > high, ratio < low) & (weight != 0)
            tally.add("clipped", outside.float())
            tally.add("gradient_tokens", (weight != 0).float())
    if teacher_logits is not None:
        weight = streams.distillation[part]
        nats = _divergence(student_logits, teacher_logits, ids, method)
        for setting in method.token_weights:
            if isinstance(setting, ImportanceClip) and old is not None:
                weight = weight * importance_weight(log_probs, old, clip=setting.clip)
        total = total + (weight * nats).sum()
        tally.add("distillation", (weight * nats).detach())
        u = token_log_probs(teacher_logits, ids) - log_probs.detach()
        counted = (streams.distillation[part] != 0).float()
        tally.add("teacher_log_ratio", u * counted)
        tally.add("distillation_tokens", counted)
    return total


def _surrogate(log_probs: Tensor, old: Tensor | None, advantage: Tensor, method: Method) -> Tensor:
    if old is None:
        return -advantage * log_probs
    clip = method.policy_gradient
    return clipped_surrogate(
        log_probs, old, advantage, clip_low=clip.clip_low, clip_high=clip.clip_high
    )


def _divergence(student: Tensor, teacher: Tensor, ids: Tensor, method: Method) -> Tensor:
    setting, support = method.divergence, method.divergence.support
    top = support if isinstance(support, TopK) else None
    return distillation_nats(
        student,
        teacher,
        ids,
        alpha=setting.alpha,
        top_k=None if top is None else top.k,
        add_tail=top is not None and top.add_tail,
        chosen_by="student" if top is None else top.chosen_by,
        sampled_token=isinstance(support, SampledToken),
        entry_clip=setting.entry_clip,
    )


def _result(plan: Plan, method: Method, tally: Tally, real: int, padded: int) -> StepResult:
    sums, share = tally.sums, method.blend.distillation

    def ratio(top: str, bottom: str) -> float | None:
        return sums[top] / sums[bottom] if sums.get(bottom) else None

    return StepResult(
        loss=sums.get("loss", 0.0),
        distillation_nats_per_token=(
            sums.get("distillation", 0.0) / share if any(plan.distilled) else None
        ),
        policy_gradient_loss=sums.get("policy_gradient", 0.0) / (1 - share) if share < 1 else None,
        teacher_log_ratio_nats_per_token=ratio("teacher_log_ratio", "distillation_tokens"),
        clipped_ratio_share=ratio("clipped", "gradient_tokens"),
        distilled_rows=sum(plan.distilled),
        reinforced_rows=sum(plan.reinforced),
        student_tokens=real,
        padding_share=1 - real / padded if padded else None,
    )
