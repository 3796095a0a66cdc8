"""The rows of one on-policy step: the student's own rollouts, graded, each with its signal.

Enters: models, a curriculum, a method. Leaves: `TrainingRow`s for `training.step`, and the graded
rollouts behind them for the metrics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from epistill.config import RunConfig
from epistill.objective import group_advantages
from epistill.records import GradedRollout, Message, Problem
from epistill.rollout_settings import VllmRollouts
from epistill.rollouts.collect import rendered, sample_and_grade
from epistill.rollouts.engine import Drawing
from epistill.rollouts.in_process_engine import InProcessEngine
from epistill.rollouts.model import LanguageModel
from epistill.rollouts.vllm_engine import VllmEngine
from epistill.seeds import derive_seed
from epistill.tasks.coverage import Curriculum
from epistill.tasks.grading import Grader
from epistill.teacher.context import SUCCESS_THRESHOLD
from epistill.teacher.weights import Teacher
from epistill.training.server_rollouts import corrected
from epistill.training.teacher_prompts import with_teacher_prompts
from epistill.training_rows import TrainingRow


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of one rollout batch.

    Attributes:
        rows: Grouped by problem.
        graded: The rollouts behind them, aligned with rows.
        too_long: Rows whose context did not fit into the model and was dropped.
        numbers: About the engine that sampled, for the metrics; empty for the in-process one.
    """

    rows: Sequence[TrainingRow]
    graded: Sequence[GradedRollout]
    too_long: int = 0
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
    push_gap: float | None = None
    if servers is not None and not servers.is_ahead:
        push_gap = servers.refresh(student, step)
    asked, drawing = _asked(config, curriculum, step)
    graded = sample_and_grade(servers or InProcessEngine(student), asked, grader, **drawing)
    if servers is not None and _ahead(config) and step + 1 < config.steps:
        push_gap = servers.refresh(student, step)  # nothing is being written now
        asked, drawing = _asked(config, curriculum, step + 1)
        servers.sample_ahead(rendered(servers, asked, config.sampling)[1], **drawing)
    rows, numbers, too_long = _rows(graded, config), {}, 0
    if servers is not None:
        rows, graded, numbers = corrected(student, rows, graded, config, step)
        numbers |= servers.request_counts()
        numbers["push_gap_nats_per_token"] = push_gap
    if teacher is not None:
        rows, too_long = with_teacher_prompts(rows, graded, student, teacher, config, grader, step)
    return Batch(rows, graded, too_long, numbers)


def _asked(
    config: RunConfig, curriculum: Curriculum, step: int
) -> tuple[list[tuple[Problem, Sequence[Message]]], Drawing]:
    """The chats of a step, and how responses to them are drawn."""
    problems = curriculum.at(step, config.problems_per_step)
    drawing: Drawing = {
        "samples": config.samples_per_problem,
        "sampling": config.sampling,
        "seed": derive_seed("rollout", config.seed, step),
        "policy_version": step,
        "entropies": True,
    }
    return [(problem, problem.messages) for problem in problems], drawing


def _ahead(config: RunConfig) -> bool:
    return isinstance(config.rollouts, VllmRollouts) and config.rollouts.ahead


def _rows(graded: Sequence[GradedRollout], config: RunConfig) -> list[TrainingRow]:
    """What the verifier says of every response, relative to its group."""
    rewards = torch.tensor([item.grade.score for item in graded], dtype=torch.float64)
    groups = rewards.view(-1, config.samples_per_problem)
    advantages = torch.zeros_like(groups)
    if config.method.blend.gradient_share > 0:
        divided = config.method.policy_gradient.normalize_std
        advantages = group_advantages(groups, normalize_std=divided)
    uniform = (groups == groups[:, :1]).all(1, keepdim=True).expand_as(groups)
    return [
        TrainingRow(
            prompt_ids=item.rollout.prompt_ids,
            completion_ids=item.rollout.completion_ids,
            old_log_probs=item.rollout.logprobs,
            advantage=advantage,
            teacher_prompt_ids=None,
            correct=item.grade.score > SUCCESS_THRESHOLD,
            uniform=alike,
            entropies=item.rollout.entropies,
        )
        for item, advantage, alike in zip(
            graded, advantages.flatten().tolist(), uniform.flatten().tolist(), strict=True
        )
    ]
