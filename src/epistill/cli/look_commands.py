"""Commands that only look: tasks, methods, env."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from rich.table import Table

from epistill.cli.common import Json, command, printable, say, tasks, terminal
from epistill.library.model_functions import method_names
from epistill.library.results import Flag


@command("show", "tasks show problems.jsonl", "docs/recipes.md", group=tasks)
def _tasks_show(
    source: Annotated[str, Flag("File, dataset, or star-search[:5x3].")],
    *,
    split: Annotated[str, Flag("Of a dataset.")] = "train",
    as_json: Json = False,
) -> None:
    """Say what was read: rows, distinct problems, first prompt and answer, grader."""
    from epistill.inputs import describe_task

    _say(describe_task(source, split), as_json)


@command("methods", "methods sdpo mine.py:rlrt", "docs/methods.md")
def _methods(
    names: Annotated[
        list[str] | None, Flag("Only these; FILE.py:NAME is one of your own.", known=method_names)
    ] = None,
    *,
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
    sources = [(row["method"], row.pop("source")) for row in rows]
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*row.values())
    console = terminal(wide=True)  # in a narrow terminal the cells fold
    console.print(table)
    for name, source in sources:
        console.print(f"{name}: {source}")


@command("env", "env --json", "CONTRIBUTING.md")
def _env(*, as_json: Json = False) -> None:
    """Versions, commit and machine, for a bug report."""
    from epistill.environment import describe_environment

    _say(describe_environment(), as_json)


def _say(described: Mapping[str, Any], as_json: bool) -> None:
    """A line for each fact; facts inside one are named alone."""
    if as_json:
        say(described)
        return
    for name, value in described.items():
        inside = value if isinstance(value, Mapping) else {name: value}
        for inner, told in inside.items():
            print(printable(f"{inner}: {told}"))
