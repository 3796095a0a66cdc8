"""The optimiser steps of one batch, by one process or many; steps that are no number are skipped.

Enters: a `Learner` and a `Batch`. Leaves: changed weights, and the numbers for the metrics. Every
process plans the signals of the whole batch and runs its share of the micro-batches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any

import torch

from epistill.config import RunConfig
from epistill.errors import EpistillError
from epistill.store import RunStore
from epistill.training.batches import Batch
from epistill.training.pre_step_scores import gather_evidence
from epistill.training.sharding import gathered, refresh, sum_gradients
from epistill.training.step import StepResult, accumulate_gradients
from epistill.training.step_records import Progress, TrainingRow
from epistill.training.train_state import Learner, base_rate
from epistill.world import World

SKIPS_ALLOWED = 3  # optimiser steps in a row without a finite gradient, then the run stops


def update(
    config: RunConfig,
    store: RunStore,
    learner: Learner,
    batch: Batch,
    step: int,
    world: World,
) -> dict[str, Any]:
    """`updates_per_batch` optimiser steps over equal parts of the batch; mean of their numbers.

    Raises:
        EpistillError: The rows cannot be split, or the third step in a row was not a number; then
            the batch is in the run directory, as JSON.
    """
    parts = config.updates_per_batch
    if len(batch.rows) % parts:
        raise EpistillError(
            f"{len(batch.rows)} rows cannot be split into {parts} equal updates; expected "
            "updates_per_batch to divide problems_per_step * samples_per_problem"
        )
    size = len(batch.rows) // parts
    rate = base_rate(config) * min(1.0, (step + 1) / max(config.warmup_steps, 1))
    for group in learner.optimizer.param_groups:
        group["lr"] = rate
    results: list[StepResult] = []
    norms: list[float] = []
    skipped = 0
    learner.trained.network.train()
    for part in range(parts):
        learner.optimizer.zero_grad(set_to_none=True)
        rows = batch.rows[part * size : (part + 1) * size]
        result = gradients_of_step(config, learner, rows, step * parts + part)
        if result.trained_rows == 0:
            results.append(result)
            continue  # nothing to learn from: weights, optimiser and teacher stay as they are
        parameters = [p for group in learner.optimizer.param_groups for p in group["params"]]
        sum_gradients(parameters, world)
        norm = float(gathered(torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)))
        if not (math.isfinite(norm) and math.isfinite(result.loss)):
            skipped += 1
            learner.skipped_in_a_row += 1
            if learner.skipped_in_a_row >= SKIPS_ALLOWED:
                _stop(store, batch, rows, result, norm, step, world)
            continue
        learner.skipped_in_a_row = 0
        results.append(result)
        norms.append(norm)
        learner.optimizer.step()
        if learner.teacher is not None:
            learner.teacher.after_step()
    learner.optimizer.zero_grad(set_to_none=True)
    learner.trained.network.eval()
    refresh(learner.student, learner.trained)
    averaged = {
        field.name: mean([getattr(result, field.name) for result in results])
        for field in fields(StepResult)
    }
    return {
        **averaged,
        "gradient_norm": mean(norms),
        "learning_rate": rate,
        "skipped_steps": skipped,
    }


def gradients_of_step(
    config: RunConfig, learner: Learner, rows: Sequence[TrainingRow], number: int
) -> StepResult:
    """Leave the gradient of one optimiser step in the trained parameters."""
    student, teacher, base = learner.trained, learner.teacher, learner.base
    scoring = {
        "temperature": config.sampling.temperature or 1.0,
        "microbatch_tokens": config.microbatch_tokens,
    }
    evidence = gather_evidence(rows, config.method, student, teacher, base, **scoring)
    return accumulate_gradients(
        student,
        teacher,
        rows,
        config.method,
        base=base,
        evidence=evidence,
        progress=Progress(
            step=number,
            steps=config.steps * config.updates_per_batch,
            gate_open=learner.gate.observe(evidence),
            max_new_tokens=config.sampling.max_new_tokens,
        ),
        **scoring,
    )


def _stop(
    store: RunStore,
    batch: Batch,
    rows: Sequence[TrainingRow],
    result: StepResult,
    norm: float,
    step: int,
    world: World,
) -> None:
    name = f"stopped/step-{step:06d}.json"
    store.write_inspection(
        name,
        {
            "step": step,
            "gradient_norm": norm,
            "result": asdict(result),
            "rows": [asdict(row) for row in rows],
            "texts": [item.rollout.text for item in batch.graded],
        },
    )
    world.stop(
        f"{SKIPS_ALLOWED} optimiser steps in a row had no finite loss or gradient, the last at "
        f"step {step}; weights were not touched by them; the batch is in {store.folder / name}; "
        "lower learning_rate, or look at the batch, and start again from the last checkpoint"
    )


def mean(values: Sequence[Any]) -> float | None:
    """Over what is known; None where nothing is."""
    known = [float(value) for value in values if value is not None]
    return sum(known) / len(known) if known else None
