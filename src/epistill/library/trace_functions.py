"""What the commands about traces do, as functions: `epistill.measure(...)`.

Every function imports what it needs when it is called. `path` is the page that `report` asks for,
of `grade` its `out`. Settings as in `--help`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from epistill.errors import EpistillError, did_you_mean
from epistill.library.results import (
    Export,
    Flag,
    Lexicons,
    Page,
    Place,
    ProblemField,
    Result,
    Seed,
    Traces,
    Workers,
    Written,
    as_path,
    at_least_one,
    interval,
)
from epistill.number_rows import estimate_rows

if TYPE_CHECKING:
    from epistill.traces.options import Options

MAX_SHOWN = 2_000  # traces on a page
Side = Annotated[Place, Flag("Trace file, folder of them, or run directory.")]
ResponseField = Annotated[str | None, Flag("Where responses are, e.g. output or rollout.text.")]
AnswerField = Annotated[str | None, Flag("Field of the reference answer.")]
TokenizerFolder = Annotated[Place | None, Flag("Folder with tokenizer.json, for tokens.")]
Opened = Annotated[bool, Flag("The prompts ended inside <think>.")]


def measure(
    traces: Traces,
    *,
    by: Annotated[str | None, Flag("Field whose values make groups.")] = None,
    response_field: ResponseField = None,
    problem_field: ProblemField = None,
    tokenizer: TokenizerFolder = None,
    lexicons: Lexicons = None,
    opened_thinking: Opened = False,
    workers: Workers = 1,
    out: Written = None,
    report: Page = None,
    export: Export = None,
    seed: Seed = 0,
) -> Result:
    """Length, markers, controls, positions, truncation and self-corrections of any traces.

    Rows: one per file, group and number with an interval.
    """
    at_least_one("--workers", workers)
    from epistill.store import write_json
    from epistill.traces.measure import measure_files
    from epistill.traces.measure_summary import measured_traces, summarise_measured, warnings_of

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

        shown, total = measured_traces(results, options)
        write_measured_page(
            summary, shown, total, Path(report), lexicons=options.lexicons, warnings=warnings
        )
    if out is not None:
        write_json(Path(out), summary)
    rows = [
        row
        for file in summary["files"]
        for name, group in file["groups"].items()
        for row in estimate_rows(group, file=file["file"], group=name)
    ]
    if export is not None:
        from epistill.report.exports import export_measured

        warnings += export_measured(summary, rows, Path(export))
    return Result(summary, tuple(rows), as_path(report), tuple(warnings))


def shift(
    a: Annotated[Place, Flag("Traces, or a folder of them.")],
    b: Annotated[Place, Flag("The others; differences are B minus A.")],
    *,
    response_field: ResponseField = None,
    problem_field: ProblemField = None,
    lexicons: Lexicons = None,
    workers: Workers = 1,
    out: Written = None,
) -> Result:
    """Which words moved most between two sets of traces, and where the markers stand.

    Rows: one per word.
    """
    at_least_one("--workers", workers)
    from epistill.store import write_json
    from epistill.traces.measure_summary import skipped_of
    from epistill.traces.shift import shift_files

    options = _reading_options(lexicons, response_field=response_field, problem_field=problem_field)
    found = shift_files([Path(a)], [Path(b)], options, workers=workers)
    if out is not None:
        write_json(Path(out), found)
    sides = ((a, found["a"]), (b, found["b"]))
    warnings = [line for path, side in sides for line in skipped_of(str(path), side["reading"])]
    return Result(found, tuple(found["words"]), None, tuple(warnings))


def grade(
    traces: Traces,
    *,
    out: Annotated[
        Place | None,
        Flag("File, or folder for several; default: NAME.graded.jsonl beside each."),
    ] = None,
    problems: Annotated[
        Place | None, Flag("File of problems with answers; default: in the records.")
    ] = None,
    answer_field: AnswerField = None,
    grader: Annotated[
        str | None, Flag("math, choice or exact; default: by the reference answers.")
    ] = None,
    label_field: Annotated[
        str | None, Flag("Older verdict to compare with, e.g. is_correct.")
    ] = None,
    response_field: ResponseField = None,
    problem_field: ProblemField = None,
    opened_thinking: Opened = False,
    time_limit: Annotated[float, Flag("Processor seconds for one answer.")] = 5.0,
    workers: Workers = 2,
) -> Result:
    """Grade every response: the same records with a verdict; agreement with older labels.

    Rows: one per file.
    """
    at_least_one("--workers", workers)
    if not 0 < time_limit < math.inf:
        raise EpistillError(f"--time-limit is {time_limit:g}; expected finite seconds above 0")
    if grader is not None and grader not in (known := ("math", "choice", "exact")):
        near = did_you_mean(grader, known)
        raise EpistillError(f"--grader is {grader!r}; expected math, choice or exact{near}")
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
    warnings: list[str] = []
    for found in files:
        warnings += skipped_of(found["file"], found["reading"])
        warnings += unread_of(found["file"], found["reading"], named)
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


def edit(
    traces: Traces,
    rules: Annotated[
        Sequence[str] | None,
        Flag(
            "delete WORDS, swap WORDS=NEW, inject WORDS@PLACE, cut PATTERN or cut-rechecks; "
            "repeatable, in order; none only brings traces into one form.",
            ("--rule",),
        ),
    ] = None,
    *,
    out: Annotated[Place, Flag("The one file that is written (JSONL).")],
    share: Annotated[float, Flag("Of inject's places, drawn at random.")] = 1.0,
    match_lengths: Annotated[
        Place | None, Flag("Keep so many responses as are as long as those of this.")
    ] = None,
    answer_field: AnswerField = None,
    response_field: ResponseField = None,
    problem_field: ProblemField = None,
    opened_thinking: Opened = False,
    seed: Seed = 0,
) -> Result:
    """Delete, swap or inject markers, cut re-checks, match lengths: is it the words?

    Rows: one per rule. `path` is what was written.
    """
    if not 0 < share <= 1:
        raise EpistillError(f"--share is {share:g}; expected a share above 0 and at most 1")
    from epistill.traces.edit import edit_files
    from epistill.traces.measure_summary import skipped_of
    from epistill.traces.references import GradeOptions

    found = edit_files(
        _paths(traces),
        Path(out),
        rules or (),
        share=share,
        match_lengths=as_path(match_lengths),
        options=GradeOptions(response_field, problem_field, opened_thinking, answer_field),
        seed=seed,
    )
    warnings = [
        line for file, reading in found["reading"].items() for line in skipped_of(file, reading)
    ]
    rows = ({"rule": rule, **counts} for rule, counts in found["edits"].items())
    return Result(found, tuple(rows), Path(out), tuple(warnings))


def compare(
    a: Side,
    b: Side,
    *,
    k: Annotated[int | None, Flag("For pass@k, maj@k; default: all.", ("-k",))] = None,
    problems: Annotated[
        Place | None, Flag("File with reference answers, where traces hold none.")
    ] = None,
    regrade: Annotated[bool, Flag("Do not trust the recorded scores.")] = False,
    budgets: Annotated[
        Sequence[int] | None, Flag("Where to cut responses, e.g. 1000,2000,4000.")
    ] = None,
    common_problems: Annotated[bool, Flag("Compare what both answer.")] = False,
    allow_different_settings: Annotated[bool, Flag("Of sampling, or of questions.")] = False,
    pool: Annotated[bool, Flag("All files of a folder are one set.")] = False,
    response_field: ResponseField = None,
    problem_field: ProblemField = None,
    tokenizer: TokenizerFolder = None,
    lexicons: Lexicons = None,
    opened_thinking: Opened = False,
    out: Written = None,
    report: Page = None,
    export: Export = None,
    seed: Seed = 0,
) -> Result:
    """Differences B - A on the same problems: scores, length, doubt, budgets, with intervals.

    Rows: one per set and measure (and budget).
    """
    at_least_one("-k", k)
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
    rows = [
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
    ]
    if report is not None or export is not None:
        from epistill.traces.shift import shift_files

        ours, theirs = (list(side.readings) for side in found.sides)
        page = {**summary, "shift": shift_files(ours, theirs, reading)}
        if report is not None:
            from epistill.comparison.compare import compared_traces
            from epistill.report.trace_pages import write_compared_page

            shown, total = compared_traces(found)
            write_compared_page(page, shown, total, Path(report), lexicons=reading.lexicons)
        if export is not None:
            from epistill.report.exports import export_compared

            warnings += export_compared(page, rows, Path(export))
    return Result(summary, tuple(rows), as_path(report), tuple(warnings))


def _paths(traces: Place | Sequence[Place]) -> list[Path]:
    return [Path(traces)] if isinstance(traces, str | Path) else [Path(one) for one in traces]


def _reading_options(lexicons: Sequence[str] | None, **settings: Any) -> Options:
    from epistill.traces.options import DEFAULT_LEXICONS, Options

    return Options(lexicons=tuple(lexicons or DEFAULT_LEXICONS), **settings)
