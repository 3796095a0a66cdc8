"""Evaluating a model: problems and a sampler in, graded records and estimates out.

Enters: graded rollouts, or a model and an evaluation set. Leaves: `EvalRecord`s, and `summarise`
turns them into avg@k, pass@k, maj@k, length and density, each with n and an interval.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from epistill.config import EvalSet, SamplingConfig
from epistill.evaluation.stats import Estimate, bootstrap_mean, maj_at_k, pass_at_k
from epistill.metrics.epistemic import total_markers
from epistill.metrics.words import count_words
from epistill.records import EvalRecord, Grade, GradedRollout, Rollout
from epistill.rollouts.collect import sample_and_grade
from epistill.rollouts.engine import Engine
from epistill.rollouts.model import LanguageModel
from epistill.rollouts.prompts import render_prompt
from epistill.seeds import derive_seed
from epistill.tasks.coverage import load_eval_problems
from epistill.tasks.grading import Grader


def evaluate_model(
    engine: Engine,
    chosen: EvalSet,
    grader: Grader,
    *,
    sampling: SamplingConfig,
    seed: int,
    keep_texts: int = 1,
) -> list[EvalRecord]:
    """Run one evaluation set.

    Args:
        engine: Samples the responses.
        chosen: Task, number of problems and samples.
        grader: Grades the responses.
        sampling: How responses are drawn.
        seed: Names the draws; equal seeds pair arms.
        keep_texts: Samples per problem whose text is kept.
    """
    problems = load_eval_problems(chosen.task, chosen.problems)
    graded = sample_and_grade(
        engine,
        [(problem, problem.messages) for problem in problems],
        grader,
        samples=chosen.samples,
        sampling=sampling,
        seed=derive_seed("evaluate", chosen.name, seed),
    )
    return eval_records(graded, keep_texts=keep_texts)


def eval_record(rollout: Rollout, grade: Grade, *, keep_text: bool) -> EvalRecord:
    """What one graded response contributes."""
    return EvalRecord(
        problem_id=rollout.problem_id,
        sample=rollout.sample,
        correct=grade.score > 0.5,
        status=grade.status.value,
        n_tokens=len(rollout.completion_ids),
        n_words=count_words(rollout.text),
        n_markers=total_markers(rollout.text),
        answer=grade.extracted,
        truncated=rollout.stop_reason == "length",
        text=rollout.text if keep_text else None,
        n_forced=None if rollout.forced is None else sum(rollout.forced),
    )


def eval_records(graded: Sequence[GradedRollout], *, keep_texts: int) -> list[EvalRecord]:
    """Records of graded rollouts; the first `keep_texts` samples of a problem keep their text."""
    return [
        eval_record(item.rollout, item.grade, keep_text=item.rollout.sample < keep_texts)
        for item in graded
    ]


def as_rows(records: Sequence[EvalRecord]) -> list[dict[str, Any]]:
    """Records for the store."""
    return [asdict(record) for record in records]


def self_contained_rows(
    records: Sequence[EvalRecord],
    model: LanguageModel,
    chosen: EvalSet,
    sampling: SamplingConfig,
) -> list[dict[str, Any]]:
    """Records with what a file of them needs to be read alone.

    Beside each record: the question and whether its prompt opened `<think>`, the reference answer
    and grader, the sampling settings, the model's name. `measure`, `grade` and `compare` read them.
    """
    problems = {p.id: p for p in load_eval_problems(chosen.task, chosen.problems)}
    beside = {
        name: {
            "question": problem.messages[-1].content,
            "opened_thinking": render_prompt(
                model.tokenizer, problem.messages, thinking=sampling.thinking
            ).opens_thinking,
            "reference": problem.answer,
            "grader": problem.grader,
            "sampling": sampling.model_dump(mode="json"),
            "model": model.name,
        }
        for name, problem in problems.items()
    }
    return [row | beside[row["problem_id"]] for row in as_rows(records)]


def grouped(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Rows by problem, in order of first appearance."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["problem_id"], []).append(row)
    return groups


def _mean(column: str) -> Callable[[Sequence[Mapping[str, Any]]], float | None]:
    """Over the responses of a problem of which it is known; None where it is of none."""

    def mean(rows: Sequence[Mapping[str, Any]]) -> float | None:
        known = [row[column] for row in rows if row.get(column) is not None]
        return float(np.mean(known)) if known else None

    return mean


def _unreadable(rows: Sequence[Mapping[str, Any]]) -> float:
    return float(np.mean([row["status"] in ("unreadable", "timeout") for row in rows]))


# Per-problem values that are averaged over problems. Densities are ratios of sums, see `summarise`.
_PER_PROBLEM = {
    "score": _mean("correct"),
    "length_tokens": _mean("n_tokens"),
    "markers_per_response": _mean("n_markers"),
    "truncated_share": _mean("truncated"),
    "unreadable_share": _unreadable,
    "forced_tokens": _mean("n_forced"),
}
MEASURES = (*_PER_PROBLEM, "density_per_1k_tokens")


def per_problem(rows: Sequence[Mapping[str, Any]], measure: str) -> dict[str, float]:
    """A measure for each problem of which it is known.

    Args:
        rows: Stored records of one evaluation.
        measure: One of MEASURES. The density of a problem is the ratio of its sums over samples, so
            that a long response weighs as much as it is long.
    """
    if measure == "density_per_1k_tokens":
        return {
            problem: 1000.0 * sum(r["n_markers"] for r in group) / sum(r["n_tokens"] for r in group)
            for problem, group in grouped(rows).items()
        }
    values = {name: _PER_PROBLEM[measure](group) for name, group in grouped(rows).items()}
    return {name: value for name, value in values.items() if value is not None}


def summarise_evaluation(
    rows: Sequence[Mapping[str, Any]], *, seed: int = 0
) -> dict[str, Estimate]:
    """Every measure that is known, with its interval; `score` is avg@k.

    Args:
        rows: Stored records of one evaluation; every problem has k samples.
        seed: Names the bootstrap.
    """
    groups = grouped(rows)
    k = min(len(group) for group in groups.values())
    found = {
        measure: bootstrap_mean(np.array(list(values.values())), seed=seed)
        for measure in MEASURES
        if (values := per_problem(rows, measure))
    }
    found[f"pass@{k}"] = bootstrap_mean(
        np.array([pass_at_k(len(g), sum(r["correct"] for r in g), k) for g in groups.values()]),
        seed=seed,
    )
    found[f"maj@{k}"] = bootstrap_mean(
        np.array(
            [
                maj_at_k([r["answer"] for r in g], [r["correct"] for r in g], k)
                for g in groups.values()
            ]
        ),
        seed=seed,
    )
    return found
