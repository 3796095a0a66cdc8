"""Commands about traces that exist already; none of them needs a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from epistill.cli.common import Json, app, at_least, say, warn

MAX_SHOWN = 2_000
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


@app.command()
def measure(
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
    at_least("--workers", workers, 1)
    from epistill.cli.tables import print_measured
    from epistill.store import write_json
    from epistill.traces.measure import DEFAULT_LEXICONS, Options
    from epistill.traces.measure import measure as run_measure
    from epistill.traces.summary import summarise, warnings_of

    options = Options(
        lexicons=tuple(lexicon or DEFAULT_LEXICONS),
        by=by,
        response_field=response_field,
        problem_field=problem_field,
        tokenizer=tokenizer,
        opened=opened_thinking,
        keep=0 if report is None else MAX_SHOWN,
        seed=seed,
    )
    results = run_measure(traces, options, workers=workers)
    summary = summarise(results, options)
    for line in warnings_of(summary):
        warn(line)
    if out is not None:
        write_json(out, summary)
    if as_json:
        say(summary)
    else:
        print_measured(summary)
