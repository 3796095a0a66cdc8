"""Commands that only look: tasks, methods, env."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import typer
from rich.table import Table

from epistill.cli.common import Json, app, printable, say, tasks, terminal


@tasks.command("show", epilog="Example: epistill tasks show problems.jsonl")
def tasks_show_command(
    source: Annotated[str, typer.Argument(help="File, dataset, or star-search[:5x3].")],
    split: Annotated[str, typer.Option(help="Of a dataset.")] = "train",
    as_json: Json = False,
) -> None:
    """Say what was read: rows, distinct problems, first prompt and answer, grader."""
    from epistill.inputs import describe_task

    described = describe_task(source, split)
    if as_json:
        say(described)
        return
    for name, value in described.items():
        print(printable(f"{name}: {value}"))


@app.command("methods", epilog="Example: epistill methods sdpo mine.py:rlrt")
def methods_command(
    names: Annotated[
        list[str] | None, typer.Argument(help="Only these; FILE.py:NAME is one of your own.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the published methods as points on the five axes."""
    from epistill.describe import describe_method
    from epistill.methods import METHODS, method

    shown = {name: method(name) for name in names or METHODS}
    if as_json:
        say({name: point.model_dump(mode="json") for name, point in shown.items()})
        return
    rows = [describe_method(point) for point in shown.values()]
    table = Table(*(column for column in rows[0] if column != "source"))
    for row in rows:
        table.add_row(*(cell for column, cell in row.items() if column != "source"))
    console = terminal(wide=True)  # in a narrow terminal the cells fold
    console.print(table)
    for row in rows:
        console.print(f"{row['method']}: {row['source']}", highlight=False)


@app.command("env", epilog="Example: epistill env --json")
def env_command(as_json: Json = False) -> None:
    """Versions, commit and machine, for a bug report."""
    from epistill.environment import describe_environment

    described = describe_environment()
    if as_json:
        say(described)
        return
    for name, value in described.items():
        if isinstance(value, Mapping):
            for inner, version in value.items():
                print(f"{inner}: {version}")
        else:
            print(f"{name}: {value}")
