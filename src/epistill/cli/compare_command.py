"""The command that compares two sets of traces."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from epistill.cli.common import Json, app, show
from epistill.cli.trace_commands import (
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


@app.command(
    "compare", epilog="Example: epistill compare base.jsonl tuned.jsonl --report page.html"
)
def compare_command(
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
    from epistill.cli.compare_tables import print_compared
    from epistill.library.trace_functions import compare

    found = compare(
        a,
        b,
        k=k,
        problems=problems,
        regrade=regrade,
        budgets=_budgets(budgets),
        common_problems=common_problems,
        allow_different_settings=allow_different_settings,
        pool=pool,
        response_field=response_field,
        problem_field=problem_field,
        tokenizer=tokenizer,
        lexicons=lexicon,
        opened_thinking=opened_thinking,
        out=out,
        report=report,
        seed=seed,
    )
    show(found, as_json, print_compared)


def _budgets(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise EpistillError(
            f"--budgets is {text!r}; expected whole numbers above 0 such as 1000,2000,4000"
        )
    return tuple(int(part) for part in parts)
