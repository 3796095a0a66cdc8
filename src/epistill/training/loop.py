"""The loop, one for all methods: sample, grade, score, step, record; resumes bit for bit.

Enters: a `RunConfig`, a store, the student. Leaves: metrics per step, checkpoints, and the trained
student in place. It evaluates nothing itself: `on_step` is called after every step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from epistill.config import RunConfig
from epistill.metrics.epistemic import official_substring_count, total_markers
from epistill.metrics.loops import is_looping
from epistill.metrics.verification import checked_response, verification_means
from epistill.records import GradedRollout, GradeStatus
from epistill.rollouts.model import LanguageModel
from epistill.rollouts.vllm_engine import VllmEngine
from epistill.rollouts.vllm_server import ServersLost
from epistill.seeds import derive_seed
from epistill.store import RunStore
from epistill.tasks.coverage import make_curriculum
from epistill.tasks.grading import Grader
from epistill.thinking import split_thinking
from epistill.training.batches import Batch, on_policy_batch
from epistill.training.checkpoint import resume, save_checkpoint
from epistill.training.optimiser_steps import mean, optimiser_steps
from epistill.training.run_monitor import RunMonitor
from epistill.training.server_rollouts import teacher_engine
from epistill.training.sharding import nowhere_whole
from epistill.training.stored_traces import stored_traces, trace_batch
from epistill.training.train_state import make_train_state
from epistill.world import current_world

OnStep = Callable[[int, LanguageModel], Mapping[str, Any] | None]


def train_student(
    config: RunConfig,
    store: RunStore,
    student: LanguageModel,
    grader: Grader,
    *,
    servers: VllmEngine | None = None,
    on_step: OnStep = lambda done, student: None,
) -> None:
    """Train the student in place; where several processes train together, all call this alike.

    Args:
        config: The run.
        store: Its directory, already begun and locked; a checkpoint in it is resumed.
        student: The model to train.
        grader: Grades the rollouts.
        servers: Write the responses (`open_engine`); None writes them in process.
        on_step: Called with the number of steps done and the student, also once at 0; returns the
            evaluation that it made, if any.
    """
    world = current_world()
    torch.manual_seed(derive_seed("torch", config.seed, *([world.rank] if world.rank else [])))
    state = make_train_state(config, student, world)
    teacher = state.teacher
    curriculum = make_curriculum(config.task, config.coverage, config.seed)
    traces = stored_traces(config, store, student, curriculum, grader, world)
    resumed = done = resume(store, state, world)
    monitor = RunMonitor(config, store, world)
    try:
        # A run may be stopped in an evaluation: then it is not recorded.
        if not world.on_first(lambda: any(point["step"] == done for point in store.curve())):
            monitor.evaluated(on_step(done, student))
        while done < config.steps and monitor.goes_on:
            started = time.perf_counter()
            now = monitor.config
            if traces is None:
                batch = on_policy_batch(student, teacher, now, curriculum, grader, done, servers)
            else:
                batch = trace_batch(traces, config, done)
            sampled = time.perf_counter()
            scorer = teacher_engine(config, servers)
            numbers = optimiser_steps(now, store, state, batch, done, world, scorer)
            batch_numbers = _batch_metrics(batch, config.samples_per_problem, traces is None)
            store.append("metrics", monitor.observe({"step": done, **batch_numbers, **numbers}))
            store.append(
                "timing",
                {
                    "step": done,
                    "rollout_seconds": sampled - started,
                    "update_seconds": time.perf_counter() - sampled,
                },
            )
            done += 1
            # Before the checkpoint: killed between, it is made again.
            monitor.evaluated(on_step(done, student))
            if done % config.checkpoint_every == 0 and done < config.steps:
                save_checkpoint(store, done, state, world)
    except ServersLost as error:  # between two steps: what was done is whole
        save_checkpoint(store, done, state, world)
        world.stop(f"{error}; the run stopped after {done} steps, with a checkpoint")
    if servers is not None and done > resumed and nowhere_whole(config, world.size):
        save_checkpoint(store, done, state, world)  # the final evaluations need the servers, too


def _batch_metrics(batch: Batch, group_size: int, on_policy: bool) -> dict[str, Any]:
    """What the responses of a batch look like; densities are ratios of sums."""
    items = batch.graded
    texts = [item.rollout.text for item in items]
    tokens = sum(len(item.rollout.completion_ids) for item in items)
    words = sum(len(text.split()) for text in texts)
    split = [split_thinking(i.rollout.text, opened_in_prompt=i.opened_thinking) for i in items]
    in_thinking = sum(total_markers(part.thinking) for part in split)
    in_answer = sum(total_markers(part.answer) for part in split)
    checked = [
        checked_response(i.rollout.text, part, i.grade.extracted)
        for i, part in zip(items, split, strict=True)
    ]
    official = sum(sum(official_substring_count(text).values()) for text in texts)
    return {
        "on_policy": on_policy,
        "reward": mean([item.grade.score for item in items]),
        "pass_at_k": pass_at_group_size(items, group_size) if on_policy else None,
        "unreadable_share": mean([item.grade.status is GradeStatus.UNREADABLE for item in items]),
        "length_tokens": tokens / len(items),
        "truncated_share": mean([item.rollout.stop_reason == "length" for item in items]),
        "looping_share": mean([is_looping(text) for text in texts]),
        **verification_means(checked),
        "markers_per_response": (in_thinking + in_answer) / len(items),
        "markers_in_thinking_per_response": in_thinking / len(items),
        "markers_in_answer_per_response": in_answer / len(items),
        "density_per_1k_tokens": 1000 * (in_thinking + in_answer) / tokens,
        "density_per_1k_words": 1000 * (in_thinking + in_answer) / words if words else None,
        "official_substring_count_per_response": official / len(items),
        "entropy_nats_per_token": _entropy(items, tokens) if on_policy else None,
        "context_too_long_rows": batch.too_long,
        "rows_with_context": sum(row.teacher_prompt_ids is not None for row in batch.rows),
        "rows_with_unequal_rewards": sum(not row.uniform for row in batch.rows),
        **batch.numbers,
    }


def pass_at_group_size(items: Sequence[GradedRollout], size: int) -> float:
    """Share of groups with a correct response: pass@k at k = the group's size.

    Args:
        items: Whole groups of `size` responses, one after another.
        size: Responses per problem.
    """
    groups = [items[start : start + size] for start in range(0, len(items), size)]
    return sum(any(item.grade.score == 1.0 for item in group) for group in groups) / len(groups)


def _entropy(items: Sequence[GradedRollout], tokens: int) -> float | None:
    known = [item.rollout.entropies for item in items if item.rollout.entropies is not None]
    return sum(map(sum, known)) / tokens if len(known) == len(items) else None
