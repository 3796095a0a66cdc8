"""The traces of a supervised run: sampled once, kept in the run directory, read back on resume."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from epistill.axes import Context
from epistill.config import RunConfig
from epistill.errors import Damaged, EpistillError
from epistill.json_files import write_jsonl
from epistill.metrics.text_edits import as_long_as
from epistill.records import (
    Grade,
    GradedRollout,
    GradeStatus,
    Message,
    Problem,
    Rollout,
    rollout_from_json,
    rollout_to_json,
)
from epistill.rollouts.collect import sample_and_grade
from epistill.rollouts.in_process_engine import InProcessEngine
from epistill.rollouts.model import LanguageModel
from epistill.rollouts.prompts import render_prompt
from epistill.seeds import derive_seed, named_random
from epistill.store import TRACES, RunStore
from epistill.tasks.coverage import Curriculum, in_passes
from epistill.tasks.grading import Grader
from epistill.teacher.guided import guided_rollouts
from epistill.thinking import OPEN
from epistill.training.batches import Batch
from epistill.training.edited_traces import edited_traces, said, traces_of_file
from epistill.training_rows import TrainingRow
from epistill.world import World

TRACE_ROUND = 64  # problems sampled at a time while traces are collected
MAX_TRACE_ROUNDS = 50
LEAST_MATCHED = 0.95  # of the lengths to match; there may be no trace of the others


def stored_traces(
    config: RunConfig,
    store: RunStore,
    student: LanguageModel,
    curriculum: Curriculum,
    grader: Grader,
    world: World,
) -> list[GradedRollout] | None:
    """The method's traces; None for on-policy methods."""
    wanted = config.method.traces
    if wanted is None:
        return None
    if wanted.written_by == "data":  # cheap, and the same again: nothing is kept
        own = _own_solutions(student, curriculum, config, wanted.count)
        return edited_traces(own, wanted.edits, student, config) if wanted.edits else own
    stored = world.on_first(lambda: _whole_traces(store))
    if stored is None:
        if wanted.file is not None:
            collected = traces_of_file(student, config, wanted, grader)
        else:
            collected = collect_traces(student, config, curriculum, grader)
        if wanted.edits:
            collected = edited_traces(collected, wanted.edits, student, config)
        stored = [_trace_row(item) for item in collected]
        world.on_first(lambda: store.write_final(write_jsonl, TRACES, stored or []))
    return [_trace_from(row) for row in stored]


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
    rounds = partial(_right_responses, student, config, curriculum, grader)
    own: Iterable[list[GradedRollout]] = rounds(wanted.context)
    if wanted.shortest:
        own = map(_shortest, own)
    if wanted.as_long_as is None:
        return _enough(own, wanted.count)
    lengths = _tokens(_enough(rounds(wanted.as_long_as), wanted.count))
    rng = partial(named_random, "as_long_as", config.seed)
    return _enough(
        own,
        wanted.count,
        lambda kept: [kept[i] for i in as_long_as(_tokens(kept), lengths, rng())],
        least=math.ceil(LEAST_MATCHED * wanted.count),
    )


def _enough(
    rounds: Iterable[list[GradedRollout]],
    count: int,
    chosen_of: Callable[[list[GradedRollout]], list[GradedRollout]] = lambda kept: kept,
    least: int | None = None,
) -> list[GradedRollout]:
    """The first so many that are chosen of what the rounds so far have brought, `least` of all."""
    kept = list[GradedRollout]()
    for right in rounds:
        kept += right
        if len(kept) >= count and len(chosen := chosen_of(kept)) >= count:
            return chosen[:count]
    if len(chosen := chosen_of(kept)) >= (least or count):
        return chosen
    raise EpistillError(
        f"only {len(chosen)} correct traces to keep after {MAX_TRACE_ROUNDS * TRACE_ROUND} "
        f"problems; expected {count}; lower method.traces.count or choose easier problems"
    )


def _tokens(traces: Sequence[GradedRollout]) -> list[int]:
    return [len(item.rollout.completion_ids) for item in traces]


def _right_responses(
    student: LanguageModel,
    config: RunConfig,
    curriculum: Curriculum,
    grader: Grader,
    context: Context,
) -> Iterator[list[GradedRollout]]:
    """The correct responses of one round of problems after another."""
    engine, drawn = InProcessEngine(student), config.samples_per_problem
    for round_number in range(MAX_TRACE_ROUNDS):
        problems = curriculum.at(round_number, TRACE_ROUND)
        chats = [(problem, problem.messages) for problem in problems]
        seed = derive_seed("traces", config.seed, round_number)
        graded = sample_and_grade(
            engine, chats, grader, samples=drawn, sampling=config.sampling, seed=seed
        )
        if context.source != "none":
            bare = {item.problem.id: item.rollout.prompt_ids for item in graded}
            guided = guided_rollouts(
                engine,
                context,
                graded,
                grader,
                samples=drawn,
                sampling=config.sampling,
                seed=derive_seed("guided_traces", config.seed, round_number),
            )
            graded = [  # the same responses as answers to the bare question: what SFT teaches
                replace(item, rollout=replace(item.rollout, prompt_ids=bare[item.problem.id]))
                for item in guided
            ]
        yield [item for item in graded if item.grade.score == 1.0]


def _shortest(graded: Sequence[GradedRollout]) -> list[GradedRollout]:
    """Of each problem the response with the fewest tokens."""
    found: dict[str, GradedRollout] = {}
    for item in graded:
        best = found.setdefault(item.problem.id, item)  # keeps the problems' order
        if len(item.rollout.completion_ids) < len(best.rollout.completion_ids):
            found[item.problem.id] = item
    return list(found.values())


def _own_solutions(
    student: LanguageModel, curriculum: Curriculum, config: RunConfig, count: int
) -> list[GradedRollout]:
    """The problems' own solutions as responses; nobody sampled them, so log-probs are unknown."""
    if student.tokenizer.eos_token_id is None:
        raise EpistillError(
            f"the tokenizer of {student.name!r} names no end token to learn; expected eos_token in "
            "its tokenizer_config.json"
        )
    pool = curriculum.pool
    found: list[GradedRollout] = []
    for problem in curriculum.at(0, count if pool is None else min(count, len(pool))):
        if problem.solution is None:
            raise EpistillError(
                f"problem {problem.id!r} has no solution to learn from; expected one in every "
                "record, or traces.written_by = 'model'"
            )
        prompt = render_prompt(
            student.tokenizer, problem.messages, thinking=config.sampling.thinking
        )
        text = problem.solution
        if prompt.opens_thinking:
            text = text.removeprefix(OPEN).lstrip("\n")
        blank = Rollout(problem.id, 0, prompt.ids, (0,), (0.0,), "eos", text)
        grade = Grade(GradeStatus.CORRECT, problem.answer)
        found.append(
            GradedRollout(problem, said(text, student, blank), grade, prompt.opens_thinking)
        )
    return found


def trace_batch(traces: Sequence[GradedRollout], config: RunConfig, step: int) -> Batch:
    """The traces of one step: whole passes in seeded order; advantage 1, log-likelihood."""
    size = config.problems_per_step * config.samples_per_problem
    chosen = in_passes(traces, step, size, "trace_order", config.seed)
    rows = [
        TrainingRow(item.rollout.prompt_ids, item.rollout.completion_ids, None, 1.0, None)
        for item in chosen
    ]
    return Batch(rows, chosen)


def _whole_traces(store: RunStore) -> list[dict[str, Any]] | None:
    """The stored ones; None where they are to be collected (again: they come out the same)."""
    try:
        return store.read_final(TRACES)
    except Damaged as error:
        logging.getLogger("epistill").warning("%s; they are collected again", error.found)
        return None


def _trace_row(item: GradedRollout) -> dict[str, Any]:
    problem = item.problem
    return {
        "problem": {
            "id": problem.id,
            "answer": problem.answer,
            "grader": problem.grader,
            "messages": [asdict(message) for message in problem.messages],
        },
        "rollout": rollout_to_json(item.rollout),
        "opened_thinking": item.opened_thinking,
        "extracted": item.grade.extracted,
    }


def _trace_from(row: dict[str, Any]) -> GradedRollout:
    messages = tuple(Message(**message) for message in row["problem"]["messages"])
    return GradedRollout(
        Problem(**{**row["problem"], "messages": messages}),
        rollout_from_json(row["rollout"]),
        Grade(GradeStatus.CORRECT, row["extracted"]),
        row["opened_thinking"],
    )
