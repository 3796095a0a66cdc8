"""Evaluating a model: problems and a sampler in; a row per graded response, and estimates, out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from epistill.config import EvalSet, SamplingConfig
from epistill.evaluation.stats import Estimate, bootstrap_mean, maj_at_k, pass_at_k
from epistill.metrics.epistemic import total_markers
from epistill.metrics.verification import Checked, checked_response
from epistill.metrics.words import count_words
from epistill.records import GradedRollout
from epistill.rollouts.collect import sample_and_grade
from epistill.rollouts.engine import Engine
from epistill.rollouts.prompts import render_prompt
from epistill.seeds import derive_seed
from epistill.tasks.coverage import load_eval_problems
from epistill.tasks.grading import Grader
from epistill.thinking import split_thinking


def evaluate_model(
    engine: Engine,
    chosen: EvalSet,
    grader: Grader,
    *,
    sampling: SamplingConfig,
    seed: int,
    keep_texts: int = 1,
) -> list[dict[str, Any]]:
    """Run one evaluation set; `eval_rows` of its responses.

    Args:
        engine: Samples the responses.
        chosen: Task, number of problems and samples.
        grader: Grades the responses.
        sampling: How responses are drawn, where the set does not say so itself.
        seed: Names the draws; equal seeds pair arms.
        keep_texts: Samples per problem whose text is kept.
    """
    problems = load_eval_problems(chosen.task, chosen.problems)
    graded = sample_and_grade(
        engine,
        [(problem, problem.messages) for problem in problems],
        grader,
        samples=chosen.samples,
        sampling=chosen.drawn(sampling),
        seed=derive_seed("evaluate", chosen.name, seed),
    )
    return eval_rows(graded, keep_texts=keep_texts)


def eval_rows(graded: Sequence[GradedRollout], *, keep_texts: int) -> list[dict[str, Any]]:
    """What each response contributes, for the store; `status` tells "unreadable" from "wrong".

    The first `keep_texts` samples of a problem keep their text. `n_forced` counts tokens that a
    rule decided (`word_rules`), None where there was no rule; the last ones are the fields of
    `metrics.verification.Checked`.
    """
    rows: list[dict[str, Any]] = []
    for item in graded:
        said, answer = item.rollout, item.grade.extracted
        part = split_thinking(said.text, opened_in_prompt=item.opened_thinking)
        row = {
            "problem_id": said.problem_id,
            "sample": said.sample,
            "correct": item.grade.score > 0.5,
            "status": item.grade.status.value,
            "n_tokens": len(said.completion_ids),
            "n_words": count_words(said.text),
            "n_markers": total_markers(said.text),
            "answer": answer,
            "truncated": said.stop_reason == "length",
            "text": said.text if said.sample < keep_texts else None,
            "n_forced": None if said.forced is None else sum(said.forced),
        }
        rows.append(row | asdict(checked_response(said.text, part, answer)))
    return rows


def self_contained_rows(
    rows: Sequence[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    model: str,
    chosen: EvalSet,
    sampling: SamplingConfig,
) -> list[dict[str, Any]]:
    """Rows with what a file of them needs to be read alone, by `measure`, `grade` and `compare`.

    Beside each: the question and whether its prompt opened `<think>`, the reference answer and
    grader, the sampling settings, the model's name.
    """
    beside: dict[str, dict[str, Any]] = {}
    for problem in load_eval_problems(chosen.task, chosen.problems):
        prompt = render_prompt(tokenizer, problem.messages, thinking=sampling.thinking)
        beside[problem.id] = {
            "question": problem.messages[-1].content,
            "opened_thinking": prompt.opens_thinking,
            "reference": problem.answer,
            "grader": problem.grader,
            "sampling": sampling.model_dump(mode="json"),
            "model": model,
        }
    return [{**row, **beside[row["problem_id"]]} for row in rows]


def grouped(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Rows by problem, in order of first appearance."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["problem_id"], []).append(row)
    return groups


# What every measure of a problem is: a ratio of sums over its samples, times a factor. So in a
# density a long response weighs as much as it is long.
_RATIOS = {
    "score": ("correct", "samples", 1.0),
    "length_tokens": ("n_tokens", "samples", 1.0),
    "markers_per_response": ("n_markers", "samples", 1.0),
    "truncated_share": ("truncated", "samples", 1.0),
    "unreadable_share": ("unreadable", "samples", 1.0),
    "verified_share": ("verified", "verified_samples", 1.0),
    "committed_share": ("committed", "committed_samples", 1.0),
    "candidates": ("candidates", "candidates_samples", 1.0),
    "first_commitment": ("first_commitment", "first_commitment_samples", 1.0),
    "forced_tokens": ("n_forced", "n_forced_samples", 1.0),
    "density_per_1k_tokens": ("n_markers", "n_tokens", 1000.0),
}
MEASURES = tuple(_RATIOS)

Outcomes = Mapping[str, Sequence[Any]]  # column -> one entry per problem; `problem_outcomes`


def problem_outcomes(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """All that estimates need of an evaluation, problem by problem.

    Returns:
        Columns of equal length, in order of first appearance: problem_id, samples; sums over the
        samples of correct, n_tokens, n_markers, truncated, unreadable; majority (maj@k, where k is
        the least number of samples). Of n_forced and the fields of `Checked`, where they are known,
        also of how many samples (n_forced_samples...).
    """
    groups = grouped(rows)
    k = min(map(len, groups.values()), default=0)
    columns: dict[str, list[Any]] = {
        "problem_id": list(groups),
        "samples": [len(g) for g in groups.values()],
        "unreadable": [
            sum(r["status"] in ("unreadable", "timeout") for r in g) for g in groups.values()
        ],
        "majority": [
            maj_at_k([r["answer"] for r in g], [r["correct"] for r in g], k)
            for g in groups.values()
        ],
    }
    for name in ("correct", "n_tokens", "n_markers", "truncated"):
        columns[name] = [sum(r[name] for r in g) for g in groups.values()]
    for name in ("n_forced", *Checked.__match_args__):
        known = [[v for r in g if (v := r.get(name)) is not None] for g in groups.values()]
        if any(known):
            columns |= {name: list(map(sum, known)), f"{name}_samples": list(map(len, known))}
    return columns


def per_problem(outcomes: Outcomes, measure: str) -> dict[str, float]:
    """A measure (one of MEASURES) for each problem of `problem_outcomes` of which it is known."""
    above, below, factor = _RATIOS[measure]
    if above not in outcomes:
        return {}
    columns = (outcomes[name] for name in ("problem_id", above, below))
    return {problem: factor * a / b for problem, a, b in zip(*columns, strict=True) if b}


def summarise_outcomes(outcomes: Outcomes) -> dict[str, Estimate]:
    """Every measure that is known, with its interval; `score` is avg@k.

    Args:
        outcomes: Of `problem_outcomes`, with at least one problem.
    """
    k = min(outcomes["samples"])
    pairs = zip(outcomes["samples"], outcomes["correct"], strict=True)
    columns = {measure: list(per_problem(outcomes, measure).values()) for measure in MEASURES}
    columns[f"pass@{k}"] = [pass_at_k(n, correct, k) for n, correct in pairs]
    columns[f"maj@{k}"] = list(outcomes["majority"])
    return {
        name: bootstrap_mean(np.array(column, dtype=np.float64))
        for name, column in columns.items()
        if column
    }


def summarise_evaluation(rows: Sequence[Mapping[str, Any]]) -> dict[str, Estimate]:
    """`summarise_outcomes` of the stored records of one evaluation."""
    return summarise_outcomes(problem_outcomes(rows))
