"""A preflight from settings to report.json: rollouts, teacher passes, numbers, verdicts.

Enters: a `PreflightConfig`, an engine, a folder. Leaves: a dict that holds everything the page
shows. Work is cached in the folder (`cached_engine.py`), so an interrupted call
goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from epistill.environment import describe_environment
from epistill.errors import EpistillError, did_you_mean
from epistill.evaluation.evaluate import as_rows, eval_records, summarise_evaluation
from epistill.evaluation.stats import Estimate
from epistill.metrics.lexicon import load_lexicon
from epistill.preflights.cached_engine import CachedEngine
from epistill.preflights.context_scores import (
    ContextMeasurement,
    MeasurementSettings,
    Student,
    check_modes,
    measure_context,
    measure_student,
    u_nats,
)
from epistill.preflights.preflight_config import PreflightConfig
from epistill.preflights.pressure import (
    GuidedResponse,
    fork_threshold,
    forks,
    pressure,
    reweighted,
    rows_of,
    u_by_class,
)
from epistill.preflights.richness import richness
from epistill.preflights.token_classes import CLASSES, first_tokens
from epistill.preflights.verdict import advice, headline, load_thresholds, verdict_of
from epistill.records import Problem
from epistill.rollouts.engine import Engine
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
    names = chosen_contexts(config, problems)
    settings = measurement_settings(config, engine)
    remembering = CachedEngine(engine, cache)
    check_modes(remembering, problems[0], settings)
    with Grader() as grader:
        say(f"student: {len(problems)} problems x {settings.samples} responses, twice")
        student = measure_student(remembering, problems, settings, grader)
        guided: dict[str, ContextMeasurement] = {}
        for name in names:
            say(f"context {name} ({len(guided) + 1} of {len(names)})")
            guided[name] = measure_context(remembering, name, student, settings, grader)
    threshold = fork_threshold(student, config.fork_quantile)
    contexts = {
        name: _context(name, found, student, threshold, len(problems))
        for name, found in guided.items()
    }
    plain = summarise_evaluation(as_rows(eval_records(student.graded, keep_texts=0)))
    exact = contexts["none"]["largest_u_nats"]
    return {
        "format": 1,
        "settings": config.model_dump(mode="json"),
        "identity": dict(engine.identity),
        "problems": len(problems),
        "samples": settings.samples,
        "student": {name: value.as_dict() for name, value in plain.items()},
        "fork_threshold_nats": threshold,
        "markers": {
            "lexicon": settings.markers.name,
            "first_tokens": len(settings.first.ids),
            "missing": list(settings.first.missing),
        },
        "contexts": contexts,
        "advice": advice(contexts),
        "control": {
            "largest_u_nats": exact,
            "tolerance_nats": ZERO[config.dtype],
            "holds": exact is not None and exact <= ZERO[config.dtype],
        },
        "trace": _trace(student, guided),
        "chunks": {"reused": remembering.found, "computed": remembering.asked},
        "thresholds": load_thresholds(),
        "environment": describe_environment(),
    }


def measurement_settings(config: PreflightConfig, engine: Engine) -> MeasurementSettings:
    """The settings that measuring needs, resolved."""
    markers = load_lexicon(config.markers)
    thinking = config.teacher_thinking
    return MeasurementSettings(
        samples=config.samples,
        sampling=config.sampling,
        teacher_thinking=config.sampling.thinking if thinking == "same" else thinking,
        seed=config.seed,
        markers=markers,
        control=None if markers.control is None else load_lexicon(markers.control),
        first=first_tokens(engine.tokenizer, markers),
        allow_mode_mismatch=config.allow_mode_mismatch,
    )


def chosen_contexts(config: PreflightConfig, problems: Sequence[Problem]) -> list[str]:
    """The contexts asked for, or all that the problems allow; then the controls.

    Raises:
        EpistillError: An unknown name.
    """
    solved = any(problem.solution is not None for problem in problems)
    controls = ["none", "wrong-answer"]
    controls += (
        ["other-solution", "shuffled-solution"] if solved else ["other-sibling", "shuffled-sibling"]
    )
    usual = ["answer", "sibling-no-think", "sibling", "feedback"]
    usual += ["solution-no-think", "solution"] if solved else []
    for name in config.contexts:
        if name not in NAMED_CONTEXTS:
            raise EpistillError(
                f"no context {name!r}; expected some of {', '.join(NAMED_CONTEXTS)}"
                f"{did_you_mean(name, NAMED_CONTEXTS)}"
            )
    return list(dict.fromkeys([*(config.contexts or usual), *controls]))


def _context(
    name: str, guided: ContextMeasurement, student: Student, threshold: float, problems: int
) -> dict[str, Any]:
    rows = rows_of(guided, student)
    found: dict[str, Any] = {
        "control": _is_control(name),
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
        "largest_u_nats": _largest_u(rows, guided, student),
        "entropy_slack_nats": _entropy_slack(rows),
        "prompt": None if guided.prompt is None else asdict(guided.prompt),
    }
    found["verdict"] = verdict_of(found, load_thresholds())
    found["headline"] = headline(found)
    return found


def _largest_u(
    rows: Sequence[GuidedResponse], guided: ContextMeasurement, student: Student
) -> float | None:
    """Over the student's responses and the held-out ones, which were scored in other batches."""
    found = [row.u for row in rows]
    found += [
        u_nats(scores, student.bare[i])
        for i, scores in zip(guided.trace_rows, guided.trace_guided, strict=True)
    ]
    return max((float(np.abs(u).max()) for u in found), default=None)


def _is_control(name: str) -> bool:
    context = NAMED_CONTEXTS[name]
    return (
        context.source in ("none", "wrong_answer") or context.problem == "other" or context.shuffled
    )


def _entropy_slack(rows: Sequence[GuidedResponse]) -> float | None:
    """Mean nats by which entropies may be too low: 0.0 with the full vocabulary."""
    if not rows:
        return None
    return float(np.concatenate([row.entropy_slack for row in rows]).mean() / 2)


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
