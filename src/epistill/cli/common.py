"""What every command shares: the app, JSON output, checks of flags."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from epistill.library.results import Result

app = typer.Typer(
    help="A laboratory for on-policy self-distillation of language models.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
lab = typer.Typer(help="The laptop world's model.", no_args_is_help=True)
tasks = typer.Typer(help="Problems: what is asked and how it is graded.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON for a machine to read.")]


def say(value: Any) -> None:
    """Print JSON."""
    # What stdout cannot encode would become a question mark; an escape is the same data.
    escaped = str(sys.stdout.encoding).lower() != "utf-8"
    print(json.dumps(value, indent=2, ensure_ascii=escaped, allow_nan=False))


def warn(message: str) -> None:
    """One line on stderr."""
    print("epistill: " + " ".join(message.split()), file=sys.stderr)


def terminal(*, stderr: bool = False, quiet: bool = False, wide: bool = False) -> Console:
    """Where rich prints. A name such as "[b]" or ":x:" is what it says, neither markup nor emoji.

    Args:
        stderr, quiet: As in rich.
        wide: A file or pipe has no width; tables get one there that holds them.
    """
    console = Console(stderr=stderr, quiet=quiet, markup=False, emoji=False)
    if wide and not console.is_terminal:
        console.width = 200
    return console


def show(found: Result, as_json: bool, table: Callable[[Mapping[str, Any]], None]) -> None:
    """What a function found: its warnings on stderr, its summary as JSON or as a table."""
    for line in found.warnings:
        warn(line)
    if as_json:
        say(found.summary)
    else:
        table(found.summary)


def print_evaluations(evaluations: Mapping[str, Mapping[str, Any]]) -> None:
    """Print estimates as tables."""
    from epistill.report.format import format_estimate

    for name, values in evaluations.items():
        table = Table("measure", "value [95 % interval]", title=f"{name}, n = {values['problems']}")
        for measure, value in values.items():
            if isinstance(value, Mapping) and "low" in value:
                table.add_row(measure, format_estimate(value))
        terminal().print(table)
