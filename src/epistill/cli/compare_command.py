"""The command that compares two sets of traces."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from epistill.cli.common import Json, app, at_least, say, warn
from epistill.cli.trace_commands import (
    MAX_SHOWN,
    Lexicons,
    Opened,
    Page,
    ProblemField,
    ResponseField,
    Seed,
    TokenizerFolder,
)
from epistill.errors import EpistillError

Side = Annotated[Path, typer.Argument(help="Trace file, folder of them, or run directory.")]


@app.command()
def compare(
    a: Side,
    b: Side,
    k: Annotated[int | None, typer.Option("-k", help="For pass@k, maj@k; default: all.")] = None,
    problems: Annotated[
        str | None, typer.Option(help="File with reference answers, where traces hold none.")
    ] = None,
    regrade: Annotated[
        bool, typer.Option("--regrade", help="Do not trust the recorded scores.")
    ] = False,
    budgets: Annotated[
        str | None, typer.Option(help="Where to cut responses, e.g. 1000,2000,4000.")
    ] = None,
    common_problems: Annotated[
        bool, typer.Option("--common-problems", help="Compare what both answer.")
    ] = False,
    allow_different_settings: Annotated[
        bool, typer.Option("--allow-different-settings", help="Of sampling, or of questions.")
    ] = False,
    pool: Annotated[
        bool, typer.Option("--pool", help="All files of a folder are one set.")
    ] = False,
    response_field: ResponseField = None,
    problem_field: ProblemField = None,
    tokenizer: TokenizerFolder = None,
    lexicon: Lexicons = None,
    opened_thinking: Opened = False,
    out: Annotated[Path | None, typer.Option(help="Write everything as JSON.")] = None,
    report: Page = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Differences B - A on the same problems: scores, length, doubt, budgets, with intervals."""
    at_least("-k", k, 1)
    cuts = _budgets(budgets)
    from epistill.cli.compare_tables import print_compared
    from epistill.comparison.compare import CompareOptions, compare_sides
    from epistill.store import write_json
    from epistill.tasks.grading import Grader
    from epistill.traces.measure import DEFAULT_LEXICONS, Options
    from epistill.traces.measure_summary import warnings_of
    from epistill.traces.references import look_up

    options = CompareOptions(
        reading=Options(
            lexicons=tuple(lexicon or DEFAULT_LEXICONS),
            response_field=response_field,
            problem_field=problem_field,
            tokenizer=tokenizer,
            opened=opened_thinking,
            keep=0 if report is None else MAX_SHOWN // 2,
            seed=seed,
        ),
        k=k,
        budgets=cuts,
        references=None if problems is None else look_up(problems),
        regrade=regrade,
        pool=pool,
        allow_different_settings=allow_different_settings,
        common_problems=common_problems,
    )
    with Grader() as grader:
        found = compare_sides(a, b, options, grader)
    summary = found.summary
    for side in ("a", "b"):
        for line in warnings_of(summary[side]):
            warn(line)
    for line in (*summary["differs"], *summary["unknown"]):
        warn(line)
    for one in summary["sets"]:
        where = "" if len(summary["sets"]) == 1 else f"{one['set']}: "
        for line in one["warnings"]:
            warn(where + line)
    if out is not None:
        write_json(out, summary)
    if report is not None:
        from epistill.comparison.compared_traces import compared_traces
        from epistill.report.trace_pages import write_compared_page
        from epistill.traces.shift import shift_files

        shown, total = compared_traces(found)
        files = [list(side.readings) for side in found.sides]
        moved = shift_files(files[0], files[1], options.reading)
        lexicons = options.reading.lexicons
        write_compared_page({**summary, "shift": moved}, shown, total, report, lexicons=lexicons)
    if as_json:
        say(summary)
    else:
        print_compared(summary)


def _budgets(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise EpistillError(
            f"--budgets is {text!r}; expected whole numbers above 0 such as 1000,2000,4000"
        )
    return tuple(sorted({int(part) for part in parts}))
