"""Where training rows come from: the student's own rollouts, or traces sampled beforehand.

Enters: models, a curriculum, a method. Leaves: `TrainingRow`s for `training.step`, and the graded
rollouts behind them for the metrics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from epistill.config import RunConfig
from epistill.errors import EpistillError
from epistill.metrics.epistemic import marker_spans
from epistill.objective import group_advantages
from epistill.records import GradedRollout
from epistill.rollouts.collect import sample_and_grade
from epistill.rollouts.in_process_engine import InProcessEngine
from epistill.rollouts.model import LanguageModel
from epistill.rollouts.offsets import tokens_in_spans
from epistill.rollouts.vllm_engine import VllmEngine
from epistill.seeds import derive_seed, named_random
from epistill.tasks.coverage import Curriculum
from epistill.tasks.grading import Grader
from epistill.teacher.context import SUCCESS_THRESHOLD
from epistill.teacher.guided import guided_rollouts
from epistill.teacher.weights import Teacher
from epistill.training.server_rollouts import correct
from epistill.training.teacher_prompts import TeacherPrompts, teacher_prompts
from epistill.training_rows import TrainingRow

TRACE_ROUND = 64  # problems sampled at a time while traces are collected
MAX_TRACE_ROUNDS = 50


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of one rollout batch.

    Attributes:
        rows: Grouped by problem.
        graded: The rollouts behind them, aligned with rows.
        too_long: Rows whose context did not fit into the model and was dropped.
        numbers: About the engine that sampled, for the metrics; empty for the in-process one.
    """

    rows: tuple[TrainingRow, ...]
    graded: tuple[GradedRollout, ...]
    too_long: int
    numbers: Mapping[str, Any] = field(default_factory=dict[str, Any])


def on_policy_batch(
    student: LanguageModel,
    teacher: Teacher | None,
    config: RunConfig,
    curriculum: Curriculum,
    grader: Grader,
    step: int,
    servers: VllmEngine | None = None,
) -> Batch:
    """Sample, grade and give each response its signal.

    Raises:
        ServersLost: An engine outside this process is gone.
    """
    pushed = {} if servers is None else servers.refresh(student, step)
    problems = curriculum.at(step, config.problems_per_step)
    graded = sample_and_grade(
        servers or InProcessEngine(student),
        [(problem, problem.messages) for problem in problems],
        grader,
        samples=config.samples_per_problem,
        sampling=config.sampling,
        seed=derive_seed("rollout", config.seed, step),
        policy_version=step,
        entropies=True,
    )
    corrected = None if servers is None else correct(student, graded, config, step)
    if corrected is not None:
        graded = corrected.graded
    method, size = config.method, config.samples_per_problem
    rewards = torch.tensor([item.grade.score for item in graded], dtype=torch.float64)
    groups = rewards.view(-1, size)
    advantages = [0.0] * len(graded)
    if method.blend.gradient_share > 0:
        table = group_advantages(groups, normalize_std=method.policy_gradient.normalize_std)
        advantages = table.flatten().tolist()
    uniform = (groups.amax(1) == groups.amin(1)).repeat_interleave(size).tolist()
    prompts = TeacherPrompts.none(len(graded))
    if teacher is not None:
        prompts = teacher_prompts(student, teacher, config, graded, grader, step)
    rows = tuple(
        TrainingRow(
            prompt_ids=item.rollout.prompt_ids,
            completion_ids=item.rollout.completion_ids,
            old_log_probs=item.rollout.logprobs if corrected is None else corrected.log_probs[i],
            advantage=advantages[i],
            teacher_prompt_ids=prompts.context[i],
            correct=item.grade.score > SUCCESS_THRESHOLD,
            uniform=uniform[i],
            negative_prompt_ids=prompts.negatives[i],
            reference_prompt_ids=prompts.reference[i],
            entropies=item.rollout.entropies if corrected is None else corrected.entropies[i],
            markers=None
            if prompts.context[i] is None
            else tokens_in_spans(student.tokenizer, item.rollout.completion_ids, marker_spans),
            importance=None if corrected is None else corrected.weights[i],
        )
        for i, item in enumerate(graded)
    )
    numbers: dict[str, Any] = {}
    if servers is not None and corrected is not None:
        numbers = {
            **corrected.numbers,
            **servers.request_counts(),
            "push_gap_nats_per_token": pushed.get("gap_nats_per_token"),
        }
    return Batch(rows, tuple(graded), prompts.too_long, numbers)


def collect_traces(
    student: LanguageModel, config: RunConfig, curriculum: Curriculum, grader: Grader
) -> list[GradedRollout]:
    """Sample correct traces for SFT until there are enough.

    Unguided: the model's own correct responses. Guided: its correct responses under the method's
    context. Both keep only correct ones (the paper's 800).

    Raises:
        EpistillError: Too few correct ones after many rounds.
    """
    wanted = config.method.traces
    assert wanted is not None
    engine = InProcessEngine(student)
    kept: list[GradedRollout] = []
    for round_number in range(MAX_TRACE_ROUNDS):
        problems = curriculum.at(round_number, TRACE_ROUND)
        graded = sample_and_grade(
            engine,
            [(problem, problem.messages) for problem in problems],
            grader,
            samples=config.samples_per_problem,
            sampling=config.sampling,
            seed=derive_seed("traces", config.seed, round_number),
        )
        if wanted.context.source != "none":
            bare = {item.problem.id: item.rollout.prompt_ids for item in graded}
            guided = guided_rollouts(
                engine,
                wanted.context,
                graded,
                grader,
                samples=config.samples_per_problem,
                sampling=config.sampling,
                seed=derive_seed("guided_traces", config.seed, round_number),
            )
            graded = [_without_context(item, bare[item.problem.id]) for item in guided]
        kept += [item for item in graded if item.grade.score == 1.0]
        if len(kept) >= wanted.count:
            return kept[: wanted.count]
    raise EpistillError(
        f"only {len(kept)} correct traces after {MAX_TRACE_ROUNDS * TRACE_ROUND} problems; "
        f"expected {wanted.count}; lower method.traces.count or choose easier problems"
    )


def _without_context(item: GradedRollout, prompt_ids: tuple[int, ...]) -> GradedRollout:
    """The same response as an answer to the bare question: what SFT teaches."""
    return replace(item, rollout=replace(item.rollout, prompt_ids=prompt_ids))


def trace_batch(traces: Sequence[GradedRollout], config: RunConfig, step: int) -> Batch:
    """The traces of one step: whole passes in seeded order; advantage 1, log-likelihood."""
    size = config.problems_per_step * config.samples_per_problem
    chosen: list[GradedRollout] = []
    for position in range(step * size, (step + 1) * size):
        epoch, offset = divmod(position, len(traces))
        order = list(range(len(traces)))
        named_random("trace_order", config.seed, epoch).shuffle(order)
        chosen.append(traces[order[offset]])
    rows = tuple(
        TrainingRow(item.rollout.prompt_ids, item.rollout.completion_ids, None, 1.0, None)
        for item in chosen
    )
    return Batch(rows, tuple(chosen), 0)
