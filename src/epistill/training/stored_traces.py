"""The traces of a supervised run: sampled once, kept in the run directory, read back on resume."""

from __future__ import annotations

import logging
from dataclasses import asdict
from typing import Any

from epistill.config import RunConfig
from epistill.errors import Damaged
from epistill.json_files import write_jsonl
from epistill.records import (
    Grade,
    GradedRollout,
    GradeStatus,
    Message,
    Problem,
    rollout_from_json,
    rollout_to_json,
)
from epistill.rollouts.model import LanguageModel
from epistill.store import TRACES, RunStore
from epistill.tasks.coverage import Curriculum
from epistill.tasks.grading import Grader
from epistill.training.batches import collect_traces
from epistill.world import World


def stored_traces(
    config: RunConfig,
    store: RunStore,
    student: LanguageModel,
    curriculum: Curriculum,
    grader: Grader,
    world: World,
) -> list[GradedRollout] | None:
    """The method's traces; None for on-policy methods."""
    if config.method.traces is None:
        return None
    stored = world.on_first(lambda: _whole_traces(store))
    if stored is None:
        collected = collect_traces(student, config, curriculum, grader)
        stored = [_trace_row(item) for item in collected]
        world.on_first(lambda: store.write_final(write_jsonl, TRACES, stored or []))
    return [_trace_from(row) for row in stored]


def _whole_traces(store: RunStore) -> list[dict[str, Any]] | None:
    """The stored ones; None where they are to be collected (again: they come out the same)."""
    try:
        return store.read_final(TRACES)
    except Damaged as error:
        logging.getLogger("epistill").warning("%s; they are collected again", error.found)
        return None


def _trace_row(item: GradedRollout) -> dict[str, Any]:
    return {
        "problem": {
            "id": item.problem.id,
            "answer": item.problem.answer,
            "grader": item.problem.grader,
            "messages": [asdict(message) for message in item.problem.messages],
        },
        "rollout": rollout_to_json(item.rollout),
        "opened_thinking": item.opened_thinking,
        "extracted": item.grade.extracted,
    }


def _trace_from(row: dict[str, Any]) -> GradedRollout:
    problem = row["problem"]
    return GradedRollout(
        Problem(
            id=problem["id"],
            messages=tuple(Message(**message) for message in problem["messages"]),
            answer=problem["answer"],
            grader=problem["grader"],
        ),
        rollout_from_json(row["rollout"]),
        Grade(GradeStatus.CORRECT, row["extracted"]),
        row["opened_thinking"],
    )
