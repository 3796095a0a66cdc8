"""A preflight from settings to report.json: rollouts, teacher passes, numbers, verdicts.

Enters: a `PreflightConfig`, an engine, a folder. Leaves: a dict that holds everything the page
shows. Work is cached in the folder (`cached_engine.py`), so an interrupted call
goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from epistill.environment import describe_environment
from epistill.errors import EpistillError
from epistill.evaluation.evaluate import eval_rows, summarise_evaluation
from epistill.evaluation.stats import Estimate
from epistill.metrics.lexicon import load_lexicon
from epistill.preflights.cached_engine import CachedEngine
from epistill.preflights.context_scores import (
    ContextMeasurement,
    MarkerWords,
    Student,
    check_modes,
    measure_context,
    measure_student,
    u_nats,
)
from epistill.preflights.preflight_config import PreflightConfig
from epistill.preflights.pressure import (
    fork_threshold,
    forks,
    pressure,
    reweighted,
    rows_of,
    u_by_class,
)
from epistill.preflights.richness import richness
from epistill.preflights.token_classes import CLASSES
from epistill.preflights.verdict import advice, headline, load_thresholds, verdict_of
from epistill.records import Problem
from epistill.rollouts.engine import Engine
from epistill.rollouts.marker_tokens import first_tokens
from epistill.tasks.coverage import load_eval_problems
from epistill.tasks.grading import Grader
from epistill.teacher.context import NAMED_CONTEXTS

TRACE_TOKENS = 160  # of the heat-map's trace
# Nats that rounding may leave of u under no context: bfloat16 keeps 8 bits, so a logit between 16
# and 32 is a multiple of 1/8, and u is a difference of two log-probs.
ZERO = {"float32": 1e-3, "bfloat16": 0.25}


def run_preflight(
    config: PreflightConfig,
    engine: Engine,
    cache: Path,
    *,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Measure every context.

    Args:
        config: What.
        engine: With whom.
        cache: Folder of finished chunks.
        say: Told what is being done.

    Raises:
        EpistillError: Unknown context, unlike thinking modes, no problems, an engine that failed.
    """
    problems = load_eval_problems(config.task, config.problems)
    if not problems:
        raise EpistillError(f"no problems in {config.task}; expected at least one")
    names = _chosen_contexts(config, problems)
    markers = load_lexicon(config.markers)
    control = None if markers.control is None else load_lexicon(markers.control)
    words = MarkerWords(markers, control, first_tokens(engine.tokenizer, markers))
    remembering = CachedEngine(engine, cache)
    check_modes(remembering, problems[0], config)
    with Grader() as grader:
        say(f"student: {len(problems)} problems x {config.samples} responses, twice")
        student = measure_student(remembering, problems, config, words, grader)
        guided: dict[str, ContextMeasurement] = {}
        for name in names:
            say(f"context {name} ({len(guided) + 1} of {len(names)})")
            guided[name] = measure_context(remembering, name, student, config, words, grader)
    threshold = fork_threshold(student, config.fork_quantile)
    contexts = {
        name: _context(name, found, student, threshold, len(problems))
        for name, found in guided.items()
    }
    exact, tolerance = contexts["none"]["largest_u_nats"], ZERO[config.dtype]
    return {
        "format": 1,
        "settings": config.model_dump(mode="json"),
        "identity": dict(engine.identity),
        "problems": len(problems),
        "samples": config.samples,
        "student": _dicts(summarise_evaluation(eval_rows(student.graded, keep_texts=0))),
        "fork_threshold_nats": threshold,
        "markers": {
            "lexicon": markers.name,
            "first_tokens": len(words.first.ids),
            "missing": list(words.first.missing),
        },
        "contexts": contexts,
        "advice": advice(contexts),
        "control": {
            "largest_u_nats": exact,
            "tolerance_nats": tolerance,
            "holds": exact is not None and exact <= tolerance,
        },
        "trace": _trace(student, guided),
        "chunks": {"reused": remembering.found, "computed": remembering.asked},
        "thresholds": load_thresholds(),
        "environment": describe_environment(),
    }


def _chosen_contexts(config: PreflightConfig, problems: Sequence[Problem]) -> list[str]:
    """The contexts asked for, or all that the problems allow; then the controls."""
    solved = any(problem.solution is not None for problem in problems)
    controls = ["none", "wrong-answer"]
    controls += (
        ["other-solution", "shuffled-solution"] if solved else ["other-sibling", "shuffled-sibling"]
    )
    usual = ["answer", "sibling-no-think", "sibling", "feedback"]
    usual += ["solution-no-think", "solution"] if solved else []
    return list(dict.fromkeys([*(config.contexts or usual), *controls]))


def _context(
    name: str, guided: ContextMeasurement, student: Student, threshold: float, problems: int
) -> dict[str, Any]:
    rows, context = rows_of(guided, student), NAMED_CONTEXTS[name]
    # Over the student's responses and the held-out ones, which were scored in other batches.
    u = [row.u for row in rows]
    for i, scores in zip(guided.trace_rows, guided.trace_guided, strict=True):
        u.append(u_nats(scores, student.bare[i]))
    slack = np.concatenate([row.entropy_slack for row in rows]) if rows else None
    bare = context.source in ("none", "wrong_answer")
    found: dict[str, Any] = {
        "control": bare or context.problem == "other" or context.shuffled,
        "problems": len({item.problem.id for item in guided.own}),
        "problems_asked": problems,
        "rows": len(rows),
        "rows_asked": len(student.graded),
        "too_long": guided.too_long,
        "richness": _dicts(richness(guided, student)),
        "pressure": _dicts(pressure(rows)),
        "u_by_class": {kind: _dicts(parts) for kind, parts in u_by_class(rows).items()},
        "forks": _dicts(forks(rows, threshold)),
        "reweighted": _dicts(reweighted(rows)),
        "largest_u_nats": max((float(np.abs(values).max()) for values in u), default=None),
        # By which entropies may be too low on average: 0.0 with the full vocabulary.
        "entropy_slack_nats": None if slack is None else float(slack.mean() / 2),
        "prompt": guided.prompt,
    }
    found["verdict"] = verdict_of(found, load_thresholds())
    found["headline"] = headline(found)
    return found


def _trace(student: Student, guided: Mapping[str, ContextMeasurement]) -> dict[str, Any]:
    """One student response, token by token, u_t under every context that it has.

    The first response with a marker, not a chosen one; its first tokens where it is long.
    """
    rows = range(len(student.graded))
    chosen = next((i for i in rows if student.tokens[i].starts.any()), 0)
    tokens, bare = student.tokens[chosen], student.bare[chosen]
    u: dict[str, list[float]] = {}
    for name, found in guided.items():
        scores = found.teacher[chosen]
        if scores is not None:
            u[name] = u_nats(scores, bare)[:TRACE_TOKENS].tolist()
    return {
        "problem_id": student.graded[chosen].problem.id,
        "tokens": len(tokens.pieces),
        "pieces": list(tokens.pieces[:TRACE_TOKENS]),
        "classes": [CLASSES[kind] for kind in tokens.classes[:TRACE_TOKENS]],
        "u_nats": u,
    }


def _dicts(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value.as_dict() if isinstance(value, Estimate) else value
        for name, value in values.items()
    }
