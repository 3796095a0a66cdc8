"""One optimiser step, for every method: rows with their signal in, gradients and numbers out.

Enters: `TrainingRow`s (who wrote them does not matter here), a `Method`, student and teachers.
Leaves: accumulated gradients in the student and the sums behind every logged number. No branch is
on a method's name: GRPO is distillation 0, SFT is rows with advantage 1 and a log-likelihood
surrogate. Rows without a signal cost no forward pass of either network.

    loss = sum_t d_t D_t + sum_t g_t surrogate(A_t) + sum_t r_t (log p_t - log p_start,t)^2 / 2

with the weights d, g, r and advantages A of `token_coefficients`, which hold blend and reduction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from epistill.axes import Method
from epistill.objective import at_least_float32, clipped_surrogate, tempered, token_log_probs
from epistill.objective.fused import head_loss
from epistill.rollouts.align import align, micro_batches
from epistill.rollouts.model import Head, LanguageModel
from epistill.rollouts.shared_prompts import SharedPrompts
from epistill.teacher.weights import Teacher
from epistill.training.pre_step_scores import gather_scores
from epistill.training.short_attention import short_attention_in_float32
from epistill.training.teacher_pull import pull, pull_before, pull_elsewhere
from epistill.training.token_coefficients import TokenCoefficients, plan_coefficients
from epistill.training_rows import PreStepScores, Progress, TrainingRow
from epistill.world import current_world


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one optimiser step minimised and touched.

    Attributes:
        loss: The number whose gradient was taken.
        distillation_nats_per_token: Weighted mean divergence of the distilled tokens, before the
            blend; None where no row was distilled.
        policy_gradient_loss: The verifier's part before the blend; None where the method has none.
        reference_nats_per_token: Mean of (log p - log p_start)^2 / 2; None without that term.
        teacher_log_ratio_nats_per_token: Mean of log p_T - log p_S over the sampled tokens that a
            teacher scored; None where it scored none.
        teacher_pull_on_markers_nats_per_token: The same mean over the tokens of epistemic markers.
        teacher_pull_elsewhere_nats_per_token: And over all others.
        teacher_entropy_nats_per_token: Where it was scored before the step, by this process.
        clipped_ratio_share: Share of policy-gradient tokens whose ratio was clipped.
        distilled_rows, reinforced_rows: Rows that carry each signal.
        trained_rows: Rows that carry any, the pull to the start included.
        student_tokens, padding_share: Of the student's forward passes.
    """

    loss: float
    distillation_nats_per_token: float | None
    policy_gradient_loss: float | None
    reference_nats_per_token: float | None
    teacher_log_ratio_nats_per_token: float | None
    teacher_pull_on_markers_nats_per_token: float | None
    teacher_pull_elsewhere_nats_per_token: float | None
    teacher_entropy_nats_per_token: float | None
    clipped_ratio_share: float | None
    distilled_rows: int
    reinforced_rows: int
    trained_rows: int
    student_tokens: int
    padding_share: float | None


def accumulate_gradients(
    student: LanguageModel,
    teacher: Teacher | None,
    rows: Sequence[TrainingRow],
    method: Method,
    *,
    base: Teacher | None = None,
    scores: Sequence[PreStepScores] | None = None,
    progress: Progress | None = None,
    temperature: float,
    microbatch_tokens: int,
) -> StepResult:
    """Add the gradient of the step's loss to the student's parameters.

    Where several processes train together, each adds the part of its micro-batches; the numbers
    returned are those of the whole step.

    Args:
        student: Trained; its gradients are added to, not reset.
        teacher: The method's teacher; may be None if it asks none.
        rows: All rows of the optimiser step.
        method: Where on the five axes.
        base: The weights at the start, for methods that refer to them.
        scores: Gathered beforehand (`gather_scores`); None gathers what is needed.
        progress: Where training stands; None is the first step.
        temperature: All networks' logits are divided by it, as the sampler's were.
        microbatch_tokens: Tokens per forward pass, with padding; changes memory, not the loss.
    """
    progress = progress or Progress()
    method = method.at_step(progress.step)
    if scores is None:
        settings = {"temperature": temperature, "microbatch_tokens": microbatch_tokens}
        scores = gather_scores(rows, method, student, teacher, base, **settings)
    coefficients = plan_coefficients(rows, scores, method, progress)
    step = _Step(student, method, temperature, rows, coefficients, scores)
    world = current_world()
    padded = real = 0
    for distilled in (True, False):
        chosen = [i for i, c in enumerate(coefficients) if c.active and c.distils == distilled]
        lengths = [len(rows[i].prompt_ids) + len(rows[i].completion_ids) for i in chosen]
        limit = world.batch_tokens(lengths, microbatch_tokens)
        batches = list(micro_batches(lengths, max_tokens=limit, packed=student.packs))
        widest = sum(len(batch) * max(lengths[k] for k in batch) for batch in batches)
        padded += sum(lengths) if student.packs else widest
        real += sum(lengths)
        if distilled:
            some = [rows[i] for i in chosen]
            step.shared = _shared_prompts(some, batches, method, microbatch_tokens)
        for batch, step.counted in world.deal(batches):
            step.micro_batch([chosen[k] for k in batch], teacher if distilled else None, base)
    step.sums = world.sum_numbers(step.sums)
    return step.result(real, padded)


@dataclass(slots=True)
class _Step:
    """State of one step: what it works on, and the running sums of its numbers.

    Attributes:
        shared: Prompts of the distilled rows, by view.
        counted: False for a micro-batch that only keeps this process in step with the others.
    """

    student: LanguageModel
    method: Method
    temperature: float
    rows: Sequence[TrainingRow]
    coefficients: Sequence[TokenCoefficients]
    scores: Sequence[PreStepScores]
    shared: Mapping[str, SharedPrompts] = field(default_factory=dict[str, SharedPrompts])
    sums: dict[str, float] = field(default_factory=dict[str, float])
    counted: bool = True

    def micro_batch(
        self, members: Sequence[int], teacher: Teacher | None, base: Teacher | None
    ) -> None:
        """Forward and backward of some rows; with a teacher, they are distilled rows."""
        rows = [self.rows[i] for i in members]
        streams = self._streams(members)
        views = {} if teacher is None else self._views(teacher, base)
        student = self.student
        prompts = [row.prompt_ids for row in rows]
        batch = align(student, prompts, [row.completion_ids for row in rows])
        head = student.head()

        def of_chunk(raw: Tensor, part: slice) -> Tensor:
            logits = tempered(head.finish(at_least_float32(raw)), self.temperature)
            here = {name: None if s is None else s[part] for name, s in streams.items()}
            seen = {name: (hidden[part], theirs) for name, (hidden, theirs) in views.items()}
            return self._chunk(logits, batch.token_ids[part], here, seen)

        with short_attention_in_float32():
            loss = head_loss(batch.hidden(student), head.weight, head.bias, of_chunk)
            self._add("loss", loss.detach())
            loss.backward()

    @torch.no_grad()
    def _views(self, teacher: Teacher, base: Teacher | None) -> dict[str, tuple[Tensor, Head]]:
        """What the target is made of: hidden states [N, H] and head, never logits, by view."""
        found: dict[str, tuple[Tensor, Head]] = {}
        for name in ("teacher", *self.method.divergence.target.views):
            owner = teacher if name in ("teacher", "wrong_sibling") or base is None else base
            with owner.scoring() as model:
                found[name] = self.shared[name].hidden(model), model.head()
        return found

    def _streams(self, members: Sequence[int]) -> dict[str, Tensor | None]:
        """What is known of the rows' tokens, flat as the batch's completion tokens are; [N]."""
        rows = [self.rows[i] for i in members]

        def joined(parts: Sequence[Any], *, missing: bool = False) -> Tensor | None:
            """None where it is not known of all rows; or of none, where it may be missing (0)."""
            unknown = [part is None for part in parts]
            if all(unknown) or (any(unknown) and not missing):
                return None
            filled = [
                torch.zeros(len(row.completion_ids)) if part is None else torch.as_tensor(part)
                for row, part in zip(rows, parts, strict=True)
            ]
            return torch.cat(filled).to(self.student.device)

        found: dict[str, Tensor | None] = {}
        for name in ("distillation", "gradient", "advantage", "reference"):
            parts = [getattr(self.coefficients[i], name) for i in members]
            stream = joined(parts, missing=True)
            found[name] = stream if stream is None or self.counted else torch.zeros_like(stream)
        found["old"] = joined([row.old_log_probs for row in rows])
        found["markers"] = joined([row.markers for row in rows])
        found["start"] = joined([self.scores[i].start_log_probs for i in members])
        return found

    def _chunk(
        self,
        logits: Tensor,
        ids: Tensor,
        here: dict[str, Tensor | None],
        views: dict[str, tuple[Tensor, Head]],
    ) -> Tensor:
        """The weighted sum of all terms over one chunk of positions."""
        log_probs, old = token_log_probs(logits, ids), here["old"]
        total = torch.zeros((), device=logits.device, dtype=logits.dtype)
        if (weight := here["gradient"]) is not None and bool((weight != 0).any()):
            loss = weight * self._surrogate(log_probs, old, here["advantage"], weight)
            total = total + loss.sum()
            self._add("gradient", loss.detach())
        if (weight := here["reference"]) is not None and here["start"] is not None:
            squared = 0.5 * (log_probs - here["start"]).square()
            total = total + (weight * squared).sum()
            self._add("reference", squared.detach())
            self._add("reference_tokens", float(len(ids)))
        if (weight := here["distillation"]) is not None:
            counted = (weight != 0).float()
            nats, teacher_log_probs = self._distance(logits, ids, views)
            for choice in self.method.token_weights:
                factor = choice.while_training(log_probs.detach(), old)
                weight = weight if factor is None else weight * factor
            loss = weight * nats
            total = total + loss.sum()
            self._add("distillation", loss.detach())
            u = teacher_log_probs - log_probs.detach()
            for name, value in pull(u, counted, here["markers"]).items():
                self._add(name, value)
        return total

    def _distance(
        self, logits: Tensor, ids: Tensor, views: dict[str, tuple[Tensor, Head]]
    ) -> tuple[Tensor, Tensor]:
        """Divergence of each position, and the teacher's log-prob of its token; [n] each."""
        divergence = self.method.divergence
        heat = self.temperature if divergence.tempered else 1.0
        with torch.no_grad():
            seen = {
                name: tempered(at_least_float32(head.logits(hidden)), heat)
                for name, (hidden, head) in views.items()
            }
            teacher_log_probs = token_log_probs(seen["teacher"], ids)
            target = divergence.target.logits({**seen, "student": logits.detach()})
        nats = divergence.support.nats(
            logits, target, ids, alpha=divergence.alpha, entry_clip=divergence.entry_clip
        )
        if divergence.cap_nats is not None:
            nats = nats.clamp(max=divergence.cap_nats)
        return nats, teacher_log_probs

    def _surrogate(
        self, log_probs: Tensor, old: Tensor | None, advantage: Tensor | None, weight: Tensor
    ) -> Tensor:
        assert advantage is not None
        if old is None:
            return -advantage * log_probs
        clip = self.method.policy_gradient
        ratio = (log_probs.detach() - old).exp()
        low, high = 1 - clip.clip_low, 1 + clip.clip_high
        outside = torch.where(advantage > 0, ratio > high, ratio < low) & (weight != 0)
        self._add("clipped", outside.float())
        self._add("gradient_tokens", (weight != 0).float())
        return clipped_surrogate(
            log_probs,
            old,
            advantage,
            clip_low=clip.clip_low,
            clip_high=clip.clip_high,
            dual_clip=clip.dual_clip,
        )

    def _add(self, name: str, value: Tensor | float) -> None:
        if self.counted:
            number = float(value.sum()) if isinstance(value, Tensor) else value
            self.sums[name] = self.sums.get(name, 0.0) + number

    def result(self, real: int, padded: int) -> StepResult:
        """The numbers of the step, each under its own name."""
        sums, before = self.sums, pull_before(self.rows, self.scores)
        pulled = before or sums
        weights = [c.distillation for c in self.coefficients if c.distillation is not None]
        weight = sum(float(one.sum()) for one in weights)
        share = self.method.blend.gradient_share
        return StepResult(
            loss=sums.get("loss", 0.0),
            distillation_nats_per_token=sums.get("distillation", 0.0) / weight if weight else None,
            policy_gradient_loss=sums.get("gradient", 0.0) / share if share else None,
            reference_nats_per_token=_mean(sums, "reference", "reference_tokens"),
            teacher_log_ratio_nats_per_token=_mean(pulled, "u", "u_tokens"),
            teacher_pull_on_markers_nats_per_token=_mean(pulled, "u_on_markers", "u_marker_tokens"),
            teacher_pull_elsewhere_nats_per_token=pull_elsewhere(pulled),
            teacher_entropy_nats_per_token=_mean(before, "entropy", "u_tokens"),
            clipped_ratio_share=_mean(sums, "clipped", "gradient_tokens"),
            distilled_rows=len(weights),
            reinforced_rows=sum(c.gradient is not None for c in self.coefficients),
            trained_rows=sum(c.active for c in self.coefficients),
            student_tokens=real,
            padding_share=1 - real / padded if padded else None,
        )


def _shared_prompts(
    distilled: Sequence[TrainingRow],
    batches: Sequence[Sequence[int]],
    method: Method,
    most_tokens: int,
) -> dict[str, SharedPrompts]:
    """By view of the target."""
    completions = [row.completion_ids for row in distilled]
    return {
        view: SharedPrompts(
            [row.prompt_of(view) for row in distilled],
            completions,
            batches,
            most_tokens=most_tokens,
        )
        for view in ("teacher", *method.divergence.target.views)
    }


def _mean(sums: Mapping[str, float], top: str, bottom: str) -> float | None:
    return sums[top] / sums[bottom] if top in sums and sums.get(bottom) else None
