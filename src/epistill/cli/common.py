"""What every command shares: the app, JSON output, checks of flags."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

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

# What a model needs to be told, alike in every command that runs one.
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1...; default cpu.")]
DType = Annotated[str | None, typer.Option(help="float32 or bfloat16; default float32.")]
Thinking = Annotated[bool | None, typer.Option(help="The template's thinking mode.")]
ChatTemplate = Annotated[Path | None, typer.Option(help="A Jinja file, for a base model.")]
Prompt = Annotated[str | None, typer.Option(help="What a file asks: text with {question} in it.")]
Stop = Annotated[list[str] | None, typer.Option(help="Text that ends a response; may be repeated.")]
BatchRows = Annotated[int | None, typer.Option(help="Responses written together; default 256.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for a machine to read.")]


# All that steers a terminal or turns the direction of writing; line ends and tabs are left.
_STEERS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    r"""Text of a file or model with what would steer the terminal written out, as JSON does.

    Example:
        >>> printable("a\x1b[2J")
        'a\\u001b[2J'
    """
    return _STEERS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


class _PlainConsole(Console):
    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **options)


def say(value: Any) -> None:
    """Print JSON."""
    # What stdout cannot encode would become a question mark; an escape is the same data.
    escaped = str(sys.stdout.encoding).lower() != "utf-8"
    print(printable(json.dumps(value, indent=2, ensure_ascii=escaped, allow_nan=False)))


def warn(message: str) -> None:
    """One line on stderr."""
    print(printable("epistill: " + " ".join(message.split())), file=sys.stderr)


def terminal(*, stderr: bool = False, quiet: bool = False, wide: bool = False) -> Console:
    """Where rich prints. A name such as "[b]" or ":x:" is what it says, no markup, emoji, escape.

    Args:
        stderr, quiet: As in rich.
        wide: A file or pipe has no width; tables get one there that holds them.
    """
    console = _PlainConsole(stderr=stderr, quiet=quiet, markup=False, emoji=False)
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
