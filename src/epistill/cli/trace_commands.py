"""Commands about traces that exist already; none of them needs a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from epistill.cli.common import Json, app, say, show, warn
from epistill.library.results import at_least

Traces = Annotated[
    list[Path],
    typer.Argument(help="JSON lines (any name; gzip, zstd) or parquet files, or folders of them."),
]
ResponseField = Annotated[
    str | None, typer.Option(help="Where responses are, e.g. output or rollout.text.")
]
ProblemField = Annotated[
    str | None, typer.Option(help="What tells problems apart; default: an id, else the question.")
]
Lexicons = Annotated[
    list[str] | None,
    typer.Option("--lexicon", help="Name or JSON file; repeatable. Default: English and Chinese."),
]
TokenizerFolder = Annotated[
    Path | None, typer.Option("--tokenizer", help="Folder with tokenizer.json, for tokens.")
]
Opened = Annotated[
    bool, typer.Option("--opened-thinking", help="The prompts ended inside <think>.")
]
Page = Annotated[Path | None, typer.Option("--report", help="Write a page (one offline HTML).")]
Seed = Annotated[int, typer.Option(help="Names every random draw.")]


@app.command(
    "measure", epilog="Example: epistill measure traces.jsonl --by step --report page.html"
)
def measure_command(
    traces: Traces,
    by: Annotated[str | None, typer.Option(help="Field whose values make groups.")] = None,
    response_field: ResponseField = None,
    problem_field: ProblemField = None,
    tokenizer: TokenizerFolder = None,
    lexicon: Lexicons = None,
    opened_thinking: Opened = False,
    workers: Annotated[int, typer.Option(help="Processes.")] = 1,
    out: Annotated[Path | None, typer.Option(help="Write everything as JSON.")] = None,
    report: Page = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Length, markers, controls, positions, truncation and self-corrections of any traces."""
    from epistill.cli.trace_tables import print_measured
    from epistill.library.trace_functions import measure

    found = measure(
        traces,
        by=by,
        response_field=response_field,
        problem_field=problem_field,
        tokenizer=tokenizer,
        lexicons=lexicon,
        opened_thinking=opened_thinking,
        workers=workers,
        out=out,
        report=report,
        seed=seed,
    )
    show(found, as_json, print_measured)


@app.command("shift", epilog="Example: epistill shift base.jsonl tuned.jsonl --top 10")
def shift_command(
    a: Annotated[Path, typer.Argument(help="Traces, or a folder of them.")],
    b: Annotated[Path, typer.Argument(help="The others; differences are B minus A.")],
    response_field: ResponseField = None,
    problem_field: ProblemField = None,
    lexicon: Lexicons = None,
    workers: Annotated[int, typer.Option(help="Processes.")] = 1,
    top: Annotated[int, typer.Option(help="Words to print; all are in --out and --json.")] = 20,
    out: Annotated[Path | None, typer.Option(help="Write everything as JSON.")] = None,
    as_json: Json = False,
) -> None:
    """Which words moved most between two sets of traces, and where the markers stand."""
    at_least("--workers", workers, 1)
    at_least("--top", top, 1)
    from epistill.cli.trace_tables import print_shift
    from epistill.store import write_json
    from epistill.traces.measure import DEFAULT_LEXICONS, Options
    from epistill.traces.measure_summary import skipped_of
    from epistill.traces.shift import shift_files

    options = Options(
        lexicons=tuple(lexicon or DEFAULT_LEXICONS),
        response_field=response_field,
        problem_field=problem_field,
    )
    found = shift_files([a], [b], options, workers=workers)
    for path, side in ((a, found["a"]), (b, found["b"])):
        for line in skipped_of(str(path), side["reading"]):
            warn(line)
    if out is not None:
        write_json(out, found)
    if as_json:
        say(found)
    else:
        print_shift(found, top)


@app.command("grade", epilog="Example: epistill grade traces.jsonl --problems gold.jsonl")
def grade_command(
    traces: Traces,
    out: Annotated[
        Path | None,
        typer.Option(help="File, or folder for several; default: NAME.graded.jsonl beside each."),
    ] = None,
    problems: Annotated[
        str | None, typer.Option(help="File of problems with answers; default: in the records.")
    ] = None,
    answer_field: Annotated[str | None, typer.Option(help="Field of the reference answer.")] = None,
    grader: Annotated[
        str | None, typer.Option(help="math, choice or exact; default: by the reference answers.")
    ] = None,
    label_field: Annotated[
        str | None, typer.Option(help="Older verdict to compare with, e.g. is_correct.")
    ] = None,
    response_field: ResponseField = None,
    problem_field: ProblemField = None,
    opened_thinking: Opened = False,
    time_limit: Annotated[float, typer.Option(help="Processor seconds for one answer.")] = 5.0,
    workers: Annotated[int, typer.Option(help="Processes.")] = 2,
    as_json: Json = False,
) -> None:
    """Grade every response: the same records with a verdict; agreement with older labels."""
    from epistill.cli.trace_tables import print_graded
    from epistill.library.trace_functions import grade

    found = grade(
        traces,
        out=out,
        problems=problems,
        answer_field=answer_field,
        grader=grader,
        label_field=label_field,
        response_field=response_field,
        problem_field=problem_field,
        opened_thinking=opened_thinking,
        time_limit=time_limit,
        workers=workers,
    )
    show(found, as_json, lambda summary: print_graded(summary["files"]))
