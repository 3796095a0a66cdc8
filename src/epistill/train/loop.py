"""The loop, one for all methods: sample, grade, score, step, record; resumes bit for bit.

Enters: a `RunConfig`, a store, the student. Leaves: metrics per step, checkpoints, and the trained
student in place. It evaluates nothing itself: `on_step` is called after every step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch

from epistill.axes import FrozenWeights, Method
from epistill.config import RunConfig
from epistill.errors import EpistillError
from epistill.metrics.epistemic import official_substring_count, total_markers
from epistill.records import Grade, GradedRollout, GradeStatus, Problem, Rollout
from epistill.rollouts.model import LanguageModel
from epistill.rollouts.prompts import split_thinking
from epistill.seeds import derive_seed
from epistill.store import RunStore
from epistill.tasks.coverage import Curriculum, make_curriculum
from epistill.tasks.grading import Grader
from epistill.teacher.weights import Teacher, make_teacher
from epistill.train.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from epistill.train.evidence import gather_evidence
from epistill.train.gate import EntropyGate
from epistill.train.row import Progress
from epistill.train.rows import Batch, collect_traces, on_policy_batch, trace_batch
from epistill.train.step import StepResult, accumulate_gradients
from epistill.train.watch import Watch, pass_at_group_size

OnStep = Callable[[int, LanguageModel], None]


def train(
    config: RunConfig,
    store: RunStore,
    student: LanguageModel,
    grader: Grader,
    *,
    on_step: OnStep = lambda done, student: None,
) -> None:
    """Train the student in place.

    Args:
        config: The run.
        store: Its directory, already begun and locked; a checkpoint in it is resumed.
        student: The model to train.
        grader: Grades the rollouts.
        on_step: Called with the number of steps done and the student, also once at 0.
    """
    torch.manual_seed(derive_seed("torch", config.seed))
    parameters = [p for p in student.network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=_base_rate(config), weight_decay=config.weight_decay, betas=(0.9, 0.999)
    )
    method = config.method
    teacher = make_teacher(method.teacher, student) if method.needs_teacher else None
    base = _start_weights(method, student, teacher)
    gate = EntropyGate(method)
    checkpoints = store.folder / "checkpoints"
    curriculum = make_curriculum(config.task, config.coverage, config.seed)
    traces = _traces(config, store, student, curriculum, grader)
    done = 0
    if (latest := latest_checkpoint(checkpoints)) is not None:
        done = load_checkpoint(latest, student, optimizer, {"teacher": teacher, "base": base}, gate)
    store.rewind(done)
    watch = Watch(config, store)
    if done == 0:
        on_step(0, student)
    while done < config.steps and watch.goes_on:
        started = time.perf_counter()
        now = watch.config
        if traces is None:
            batch = on_policy_batch(student, teacher, now, curriculum, grader, done)
        else:
            batch = trace_batch(traces, config, done)
        sampled = time.perf_counter()
        numbers = _updates(now, student, teacher, base, gate, optimizer, batch, done)
        batch_numbers = _batch_metrics(batch, config.samples_per_problem, traces is None)
        store.append_metrics(watch.observe({"step": done, **batch_numbers, **numbers}))
        store.append_timing(
            {
                "step": done,
                "rollout_seconds": sampled - started,
                "update_seconds": time.perf_counter() - sampled,
            }
        )
        done += 1
        if done % config.checkpoint_every == 0 and done < config.steps:
            save_checkpoint(
                checkpoints, done, student, optimizer, {"teacher": teacher, "base": base}, gate
            )
        on_step(done, student)


def _start_weights(
    method: Method, student: LanguageModel, teacher: Teacher | None
) -> Teacher | None:
    """The weights at the start, where a method asks for them; a frozen teacher already has them."""
    if not method.needs_start or isinstance(method.teacher, FrozenWeights):
        return teacher if method.needs_start else None
    return make_teacher(FrozenWeights(), student)


def _updates(
    config: RunConfig,
    student: LanguageModel,
    teacher: Teacher | None,
    base: Teacher | None,
    gate: EntropyGate,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    step: int,
) -> dict[str, Any]:
    """`updates_per_batch` optimiser steps over equal parts of the batch; mean of their numbers."""
    parts = config.updates_per_batch
    if len(batch.rows) % parts:
        raise EpistillError(
            f"{len(batch.rows)} rows cannot be split into {parts} equal updates; expected "
            "updates_per_batch to divide problems_per_step * samples_per_problem"
        )
    size = len(batch.rows) // parts
    rate = _base_rate(config) * min(1.0, (step + 1) / max(config.warmup_steps, 1))
    for group in optimizer.param_groups:
        group["lr"] = rate
    scoring = {
        "temperature": config.sampling.temperature or 1.0,
        "microbatch_tokens": config.microbatch_tokens,
    }
    results: list[StepResult] = []
    norms: list[float] = []
    student.network.train()
    for part in range(parts):
        optimizer.zero_grad(set_to_none=True)
        rows = batch.rows[part * size : (part + 1) * size]
        evidence = gather_evidence(rows, config.method, student, teacher, base, **scoring)
        result = accumulate_gradients(
            student,
            teacher,
            rows,
            config.method,
            base=base,
            evidence=evidence,
            progress=Progress(
                step=step * parts + part,
                steps=config.steps * parts,
                gate_open=gate.observe(evidence),
                max_new_tokens=config.sampling.max_new_tokens,
            ),
            **scoring,
        )
        results.append(result)
        if result.distilled_rows == 0 and result.reinforced_rows == 0:
            continue  # nothing to learn from: weights, optimiser and teacher stay as they are
        norm = torch.nn.utils.clip_grad_norm_(
            [p for group in optimizer.param_groups for p in group["params"]], config.max_grad_norm
        )
        norms.append(float(norm))
        optimizer.step()
        if teacher is not None:
            teacher.after_step()
    student.network.eval()
    averaged = {
        name: _mean([asdict(result)[name] for result in results]) for name in asdict(results[0])
    }
    return {**averaged, "gradient_norm": _mean(norms), "learning_rate": rate}


def _batch_metrics(batch: Batch, group_size: int, on_policy: bool) -> dict[str, Any]:
    """What the responses of a batch look like; densities are ratios of sums."""
    items = batch.graded
    tokens = sum(len(item.rollout.completion_ids) for item in items)
    split = [
        split_thinking(item.rollout.text, opened_in_prompt=item.opened_thinking) for item in items
    ]
    in_thinking = sum(total_markers(part.thinking) for part in split)
    in_answer = sum(total_markers(part.answer) for part in split)
    official = sum(sum(official_substring_count(item.rollout.text).values()) for item in items)
    words = sum(len(item.rollout.text.split()) for item in items)
    return {
        "on_policy": on_policy,
        "reward": _mean([item.grade.score for item in items]),
        "pass_at_k": pass_at_group_size(items, group_size) if on_policy else None,
        "unreadable_share": _mean(
            [float(item.grade.status is GradeStatus.UNREADABLE) for item in items]
        ),
        "length_tokens": tokens / len(items),
        "truncated_share": _mean([float(i.rollout.stop_reason == "length") for i in items]),
        "markers_per_response": (in_thinking + in_answer) / len(items),
        "markers_in_thinking_per_response": in_thinking / len(items),
        "markers_in_answer_per_response": in_answer / len(items),
        "density_per_1k_tokens": 1000 * (in_thinking + in_answer) / tokens,
        "density_per_1k_words": 1000 * (in_thinking + in_answer) / words if words else None,
        "official_substring_count_per_response": official / len(items),
        "entropy_nats_per_token": _entropy(items, tokens) if on_policy else None,
        "context_too_long_rows": batch.too_long,
    }


def _entropy(items: Sequence[GradedRollout], tokens: int) -> float | None:
    if any(item.rollout.entropies is None for item in items):
        return None
    return sum(sum(item.rollout.entropies or ()) for item in items) / tokens


def _traces(
    config: RunConfig,
    store: RunStore,
    student: LanguageModel,
    curriculum: Curriculum,
    grader: Grader,
) -> list[GradedRollout] | None:
    """The method's traces, sampled once and kept in the store; None for on-policy methods."""
    if config.method.traces is None:
        return None
    stored = store.read_records("traces", "traces")
    if stored is None:
        collected = collect_traces(student, config, curriculum, grader)
        store.write_records("traces", "traces", [_trace_row(item) for item in collected])
        stored = store.read_records("traces", "traces") or []
    return [_trace_from(row) for row in stored]


def _trace_row(item: GradedRollout) -> dict[str, Any]:
    return {
        "problem": {
            "id": item.problem.id,
            "answer": item.problem.answer,
            "grader": item.problem.grader,
            "messages": [asdict(message) for message in item.problem.messages],
        },
        "rollout": asdict(item.rollout),
        "opened_thinking": item.opened_thinking,
        "extracted": item.grade.extracted,
    }


def _trace_from(row: dict[str, Any]) -> GradedRollout:
    from epistill.records import Message

    problem = row["problem"]
    rollout = dict(row["rollout"])
    for name in ("prompt_ids", "completion_ids", "logprobs", "entropies"):
        rollout[name] = tuple(rollout[name]) if rollout[name] is not None else None
    return GradedRollout(
        Problem(
            id=problem["id"],
            messages=tuple(Message(**message) for message in problem["messages"]),
            answer=problem["answer"],
            grader=problem["grader"],
        ),
        Rollout(**rollout),
        Grade(GradeStatus.CORRECT, row["extracted"]),
        row["opened_thinking"],
    )


def _base_rate(config: RunConfig) -> float:
    return config.learning_rate or config.method.learning_rate


def _mean(values: Sequence[Any]) -> float | None:
    known = [float(value) for value in values if value is not None]
    return sum(known) / len(known) if known else None
