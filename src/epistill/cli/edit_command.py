"""`epistill edit`: counterfactual traces."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from epistill.cli.common import Json, app, show, terminal
from epistill.cli.trace_commands import Opened, ProblemField, ResponseField, Seed, Traces


@app.command(
    "edit",
    epilog="Example: epistill edit traces.jsonl --rule 'swap wait=so' --out edited.jsonl",
)
def edit_command(
    traces: Traces,
    out: Annotated[Path, typer.Option(help="The one file that is written (JSONL).")],
    rule: Annotated[
        list[str] | None,
        typer.Option(
            help="delete WORDS, swap WORDS=NEW, inject WORDS@PLACE, cut PATTERN or cut-rechecks; "
            "repeatable, in order; none only brings traces into one form."
        ),
    ] = None,
    share: Annotated[float, typer.Option(help="Of inject's places, drawn at random.")] = 1.0,
    match_lengths: Annotated[
        Path | None, typer.Option(help="Keep so many responses as are as long as those of this.")
    ] = None,
    answer_field: Annotated[str | None, typer.Option(help="Field of the reference answer.")] = None,
    response_field: ResponseField = None,
    problem_field: ProblemField = None,
    opened_thinking: Opened = False,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Delete, swap or inject markers, cut re-checks, match lengths: is it the words?"""
    from epistill.library.edit_function import edit

    found = edit(
        traces,
        rule or (),
        out=out,
        share=share,
        match_lengths=match_lengths,
        answer_field=answer_field,
        response_field=response_field,
        problem_field=problem_field,
        opened_thinking=opened_thinking,
        seed=seed,
    )
    show(found, as_json, _print_edited)


def _print_edited(summary: Mapping[str, Any]) -> None:
    words = summary["words"]
    table = Table("rule", "responses changed", "edits")
    for rule, counts in summary["edits"].items():
        table.add_row(rule, str(counts["responses"]), str(counts["edits"]))
    console = terminal()
    if summary["edits"]:
        console.print(table)
    left_out = f", {summary['left_out']} left out" if summary["left_out"] else ""
    console.print(
        f"{summary['written']}: {summary['responses']} responses{left_out}, "
        f"{words['before']:.1f} -> {words['after']:.1f} words",
        highlight=False,
        soft_wrap=True,
    )
