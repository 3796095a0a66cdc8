"""The optimiser steps of one batch, by one process or many; steps that are no number are skipped.

Enters: a `TrainState` and a `Batch`. Leaves: changed weights, and the numbers for the metrics.
Every process plans the coefficients of the whole batch and runs its share of the micro-batches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any

import torch

from epistill.config import RunConfig
from epistill.errors import EpistillError
from epistill.rollouts.engine import Engine
from epistill.store import RunStore
from epistill.training.batches import Batch
from epistill.training.pre_step_scores import gather_scores
from epistill.training.sharding import gathered, refresh, sum_gradients
from epistill.training.step import StepResult, accumulate_gradients
from epistill.training.train_state import TrainState, base_rate
from epistill.training_rows import PreStepScores, Progress, TrainingRow
from epistill.world import World

SKIPS_ALLOWED = 3  # optimiser steps in a row without a finite gradient, then the run stops


def optimiser_steps(
    config: RunConfig,
    store: RunStore,
    state: TrainState,
    batch: Batch,
    step: int,
    world: World,
    teacher_engine: Engine | None = None,
) -> dict[str, Any]:
    """`updates_per_batch` optimiser steps over equal parts of the batch; mean of their numbers.

    Scores before the step, teachers and schedules count rollout batches, as SDPO's and RLCSD's code
    does: they are the same for all parts of one. `teacher_engine` is `gather_scores`'s.

    Raises:
        ServersLost: They were the teacher's; nothing has changed yet.
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
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    parameters = [p for group in state.optimizer.param_groups for p in group["params"]]
    results: list[StepResult] = []
    norms: list[float] = []
    skipped = 0
    scores = gather_scores(
        batch.rows,
        config.method,
        state.trained,
        state.teacher,
        state.base,
        teacher_engine=teacher_engine,
        **_scoring(config),
    )
    if config.method.shape is not None:
        config.method.shape.remember(state.memory, scores)
    state.trained.network.train()
    for start in range(0, len(batch.rows), size):
        state.optimizer.zero_grad(set_to_none=True)
        own = slice(start, start + size)
        result = gradients_of_step(config, state, batch.rows[own], scores[own], step)
        if result.trained_rows == 0:
            results.append(result)
            continue  # nothing to learn from: weights, optimiser and teacher stay as they are
        sum_gradients(parameters, world)
        norm = float(gathered(torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)))
        if not (math.isfinite(norm) and math.isfinite(result.loss)):
            skipped += 1
            state.skipped_in_a_row += 1
            if state.skipped_in_a_row >= SKIPS_ALLOWED:
                _stop(store, batch, batch.rows[own], result, norm, step, world)
            continue
        state.skipped_in_a_row = 0
        results.append(result)
        norms.append(norm)
        state.optimizer.step()
    if state.teacher is not None and norms:
        state.teacher.after_batch()
    state.optimizer.zero_grad(set_to_none=True)
    state.trained.network.eval()
    refresh(state.student, state.trained)
    names = (field.name for field in fields(StepResult))
    return {
        **{name: mean([getattr(result, name) for result in results]) for name in names},
        "gradient_norm": mean(norms),
        "learning_rate": rate,
        "skipped_steps": skipped,
    }


def gradients_of_step(
    config: RunConfig,
    state: TrainState,
    rows: Sequence[TrainingRow],
    scores: Sequence[PreStepScores] | None,
    step: int,
) -> StepResult:
    """Leave the gradient of one optimiser step in the trained parameters.

    Without scores of its rows they are scored now; `step` counts rollout batches.
    """
    longest = config.sampling.max_new_tokens
    progress = Progress(step, config.steps, memory=state.memory, max_new_tokens=longest)
    return accumulate_gradients(
        state.trained,
        state.teacher,
        rows,
        config.method,
        base=state.base,
        scores=scores,
        progress=progress,
        **_scoring(config),
    )


def _scoring(config: RunConfig) -> dict[str, Any]:
    """Logits are divided by the sampling's temperature; a likelihood of traces is at 1."""
    sampled = config.method.traces is None
    return {
        "temperature": config.sampling.temperature or 1.0 if sampled else 1.0,
        "microbatch_tokens": config.most_microbatch_tokens,
    }


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
