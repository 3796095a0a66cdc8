"""What the commands about traces do, as functions: `epistill.measure(...)`.

Settings as in `model_functions`. `path` is the page that `report` asks for, of `grade` its `out`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from epistill.errors import EpistillError
from epistill.library.results import Place, Result, as_path, at_least, estimate_rows, interval

if TYPE_CHECKING:
    from epistill.traces.measure import Options

MAX_SHOWN = 2_000  # traces on a page


def measure(
    traces: Place | Sequence[Place],
    *,
    by: str | None = None,
    response_field: str | None = None,
    problem_field: str | None = None,
    tokenizer: Place | None = None,
    lexicons: Sequence[str] | None = None,
    opened_thinking: bool = False,
    workers: int = 1,
    out: Place | None = None,
    report: Place | None = None,
    seed: int = 0,
) -> Result:
    """Length, markers, positions, truncation and self-corrections of any traces.

    Rows: one per file, group and number with an interval. `path` is the page.
    """
    at_least("--workers", workers, 1)
    from epistill.store import write_json
    from epistill.traces.measure import measure_files
    from epistill.traces.measure_summary import summarise_measured, warnings_of

    options = _reading_options(
        lexicons,
        by=by,
        response_field=response_field,
        problem_field=problem_field,
        tokenizer=as_path(tokenizer),
        opened=opened_thinking,
        keep=0 if report is None else MAX_SHOWN,
        seed=seed,
    )
    results = measure_files(_paths(traces), options, workers=workers)
    summary = summarise_measured(results, options)
    warnings = warnings_of(summary)
    if report is not None:
        from epistill.report.trace_pages import write_measured_page
        from epistill.traces.measured_traces import measured_traces

        shown, total = measured_traces(results, options)
        write_measured_page(
            summary, shown, total, Path(report), lexicons=options.lexicons, warnings=warnings
        )
    if out is not None:
        write_json(Path(out), summary)
    rows = (
        row
        for file in summary["files"]
        for name, group in file["groups"].items()
        for row in estimate_rows(group, file=file["file"], group=name)
    )
    return Result(summary, tuple(rows), as_path(report), tuple(warnings))


def grade(
    traces: Place | Sequence[Place],
    *,
    out: Place | None = None,
    problems: Place | None = None,
    answer_field: str | None = None,
    grader: str | None = None,
    label_field: str | None = None,
    response_field: str | None = None,
    problem_field: str | None = None,
    opened_thinking: bool = False,
    time_limit: float = 5.0,
    workers: int = 2,
) -> Result:
    """Grade every response: the same records with a verdict. Rows: one per file."""
    at_least("--workers", workers, 1)
    if not 0 < time_limit < math.inf:
        raise EpistillError(f"--time-limit is {time_limit:g}; expected finite seconds above 0")
    if grader not in (None, "math", "choice", "exact"):
        raise EpistillError(f"--grader is {grader!r}; expected math, choice or exact")
    from epistill.traces.grade import grade_files
    from epistill.traces.measure_summary import skipped_of, unread_of
    from epistill.traces.references import GradeOptions

    options = GradeOptions(
        response_field=response_field,
        problem_field=problem_field,
        opened=opened_thinking,
        answer_field=answer_field,
        problems=None if problems is None else str(problems),
        grader=grader,
        label_field=label_field,
        time_limit_s=time_limit,
        workers=workers,
    )
    files = grade_files(_paths(traces), as_path(out), options)
    named = {
        "problem": ("--problem-field", problem_field),
        "label": ("--label-field", label_field),
    }
    warnings = [
        line
        for found in files
        for line in (
            *skipped_of(found["file"], found["reading"]),
            *unread_of(found["file"], found["reading"], named),
        )
    ]
    rows = (
        {
            "file": found["file"],
            "written": found["written"],
            **found["statuses"],
            **interval(found["score"]),
        }
        for found in files
    )
    return Result({"files": files}, tuple(rows), as_path(out), tuple(warnings))


def compare(
    a: Place,
    b: Place,
    *,
    k: int | None = None,
    problems: Place | None = None,
    regrade: bool = False,
    budgets: Sequence[int] | None = None,
    common_problems: bool = False,
    allow_different_settings: bool = False,
    pool: bool = False,
    response_field: str | None = None,
    problem_field: str | None = None,
    tokenizer: Place | None = None,
    lexicons: Sequence[str] | None = None,
    opened_thinking: bool = False,
    out: Place | None = None,
    report: Place | None = None,
    seed: int = 0,
) -> Result:
    """Two sets of traces, paired by problem: differences B - A with intervals.

    Rows: one per set and measure (and budget). `path` is the page.
    """
    at_least("-k", k, 1)
    from epistill.comparison.compare import CompareOptions, compare_sides
    from epistill.store import write_json
    from epistill.tasks.grading import Grader
    from epistill.traces.measure_summary import warnings_of
    from epistill.traces.references import look_up

    reading = _reading_options(
        lexicons,
        response_field=response_field,
        problem_field=problem_field,
        tokenizer=as_path(tokenizer),
        opened=opened_thinking,
        keep=0 if report is None else MAX_SHOWN // 2,
        seed=seed,
    )
    options = CompareOptions(
        reading=reading,
        k=k,
        budgets=None if budgets is None else tuple(sorted(set(budgets))),
        references=None if problems is None else look_up(str(problems)),
        regrade=regrade,
        pool=pool,
        allow_different_settings=allow_different_settings,
        common_problems=common_problems,
    )
    with Grader() as grader:
        found = compare_sides(Path(a), Path(b), options, grader)
    summary = found.summary
    warnings = [line for side in "ab" for line in warnings_of(summary[side])]
    warnings += [*summary["differs"], *summary["unknown"]]
    for one in summary["sets"]:
        where = "" if len(summary["sets"]) == 1 else f"{one['set']}: "
        warnings += [where + line for line in one["warnings"]]
    if out is not None:
        write_json(Path(out), summary)
    if report is not None:
        from epistill.comparison.compared_traces import compared_traces
        from epistill.report.trace_pages import write_compared_page
        from epistill.traces.shift import shift_files

        shown, total = compared_traces(found)
        ours, theirs = (list(side.readings) for side in found.sides)
        page = {**summary, "shift": shift_files(ours, theirs, reading)}
        write_compared_page(page, shown, total, Path(report), lexicons=reading.lexicons)
    rows = (
        {
            "set": one["set"],
            "measure": row["measure"],
            "budget": row.get("budget"),
            **{side: row[side] and row[side]["value"] for side in "ab"},
            **interval(row["difference"]),
            "p_holm": row["p_holm"],
        }
        for one in summary["sets"]
        for row in (*one["measures"], *one["budgets"])
    )
    return Result(summary, tuple(rows), as_path(report), tuple(warnings))


def _paths(traces: Place | Sequence[Place]) -> list[Path]:
    return [Path(traces)] if isinstance(traces, str | Path) else [Path(one) for one in traces]


def _reading_options(lexicons: Sequence[str] | None, **settings: Any) -> Options:
    from epistill.traces.measure import DEFAULT_LEXICONS, Options

    return Options(lexicons=tuple(lexicons or DEFAULT_LEXICONS), **settings)
