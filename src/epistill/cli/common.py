"""What every command shares: the app, how a function becomes a command, and what is printed."""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from epistill.errors import EpistillError
from epistill.library.results import Flag, Place, Result


def _epilog(example: str, page: str) -> str:
    return f"Example: epistill {example}\n\nMore: {page}"


app = typer.Typer(
    help="A laboratory for on-policy self-distillation of language models.",
    epilog=_epilog("compare base.jsonl tuned.jsonl --report page.html", "README.md, docs/index.md"),
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
lab = typer.Typer(
    help="The laptop world's model.",
    epilog=_epilog("lab card", "docs/lab.md"),
    no_args_is_help=True,
)
tasks = typer.Typer(
    help="Problems: what is asked and how it is graded.",
    epilog=_epilog("tasks show problems.jsonl", "docs/recipes.md"),
    no_args_is_help=True,
)

Json = Annotated[bool, Flag("Print JSON for a machine to read.", ("--json",))]
_JSON = inspect.Parameter("as_json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Json)
Whole = Sequence[int] | None
# What the command line makes of a text, where a function takes more kinds.
_PARSED: dict[Any, Any] = {
    Place: Path,
    Place | None: Path | None,
    Place | Sequence[Place]: list[Path],
    Sequence[str] | None: list[str] | None,
    str | Sequence[str] | None: str | None,
    Whole: str | None,
}


def command(
    name: str,
    example: str,
    page: str,
    *,
    of: Callable[..., Result] | None = None,
    settings: Mapping[str, Any] | None = None,
    group: typer.Typer = app,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a function that prints a command.

    Its parameters with a `Flag` are offered: positional ones as arguments, others as flags.

    Args:
        name: Of the command.
        example: Of its use, shown in `--help`.
        page: Where its settings and numbers are described, shown there too.
        of: What the command does; its parameters with a `Flag` are offered too. The decorated
            function prints its summary (`--json` comes with that), or is given the `call` that was
            asked for, a `partial`.
        settings: Further flags; those that are given become keywords of `of`, or of the decorated
            function where there is no `of`.
        group: Where the command belongs.
    """

    def decorate(prints: Callable[..., None]) -> Callable[..., None]:
        own, called = _offered(prints), [] if of is None else _offered(of)
        summary_alone = of is not None and "call" not in inspect.signature(prints).parameters
        own += [_JSON] if summary_alone else []
        for n, kind in (settings or {}).items():
            called.append(_JSON.replace(name=n, default=None, annotation=kind))

        def run(**given: Any) -> None:
            mine = {one.name: given.pop(one.name) for one in own}
            asked = {one.name: _as_taken(one, given[one.name]) for one in called}
            asked = {n: value for n, value in asked.items() if value is not None}
            try:
                if of is None:
                    prints(**asked, **mine)
                elif summary_alone:
                    show(of(**asked), mine["as_json"], prints)
                else:
                    prints(partial(of, **asked), **mine)
            except EpistillError as error:
                told = _as_typed(str(error), [p for p in (*called, *own) if p.name in asked | mine])
                if told == str(error):
                    raise
                raise type(error)(told) from error

        parameters = [_declared(one) for one in (*called, *own)]
        parameters.sort(key=lambda one: one.name == "as_json")  # last
        run.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportFunctionMemberAccess]
        run.__annotations__ = {}
        said = inspect.getdoc(prints) or inspect.getdoc(of) or ""
        group.command(name, help=said.split("\n\n")[0], epilog=_epilog(example, page))(run)
        return prints

    return decorate


def _offered(function: Callable[..., Any]) -> list[inspect.Parameter]:
    parameters = inspect.signature(function, eval_str=True).parameters.values()
    return [one for one in parameters if hasattr(one.annotation, "__metadata__")]


def _declared(one: inspect.Parameter) -> inspect.Parameter:
    """A parameter as typer wants it."""
    kind = one.annotation.__origin__
    (flag,) = one.annotation.__metadata__

    def complete(incomplete: str) -> list[str]:
        return [name for name in flag.known() if name.startswith(incomplete)]

    said = {"help": flag.help, "autocompletion": flag.known and complete}
    if one.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD and not flag.names:
        declared: Any = typer.Argument(**said)
    else:
        names = flag.names or ((f"--{one.name.replace('_', '-')}",) if kind is bool else ())
        declared = typer.Option(*names, **said)
    return one.replace(
        kind=inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[_PARSED.get(kind, kind), declared]
    )


# A name of several words that is no part of a path, a quotation or a longer name.
_SETTING = re.compile(r"""(?<![\w/.'"-])[a-z]+(?:_[a-z]+)+(?![\w/'"-])""")


def _as_typed(message: str, parameters: Sequence[inspect.Parameter]) -> str:
    """An error about a setting, with the flag that gave it in place of the setting's name.

    "sampling.top_p: ..." and "lora.rank: ..." become "--top-p: ..." and "--lora-rank: ...", and so
    do names of several words that come later.
    """
    flags = {one.name: _flag(one) for one in parameters if _is_option(one) and "_" in one.name}
    found = re.match(r"([\w.-]+)(?=: | is )", message)
    parts = found[1].split(".") if found else []
    for one in parameters:
        if found and _is_option(one) and one.name in (*parts, "_".join(parts)):
            message = _flag(one) + message[found.end() :]
            break
    return _SETTING.sub(lambda name: flags.get(name[0], name[0]), message)


def _is_option(one: inspect.Parameter) -> bool:
    (flag,) = one.annotation.__metadata__
    return one.kind is inspect.Parameter.KEYWORD_ONLY or bool(flag.names)


def _flag(one: inspect.Parameter) -> str:
    """The spelling of an option that was typed, else its long one."""
    (flag,) = one.annotation.__metadata__
    names = flag.names or (f"--{one.name.replace('_', '-')}",)
    typed = (n for n in names for a in sys.argv if a.split("=")[0] == n)
    return next(typed, names[-1])


def _as_taken(one: inspect.Parameter, value: Any) -> Any:
    """What the function takes, of what the command line parsed."""
    if isinstance(value, str) and one.annotation.__origin__ == Whole:
        parts = [part.strip() for part in value.split(",")]
        if not all(part.isdecimal() and int(part) > 0 for part in parts):
            raise EpistillError(
                f"--{one.name} is {value!r}; expected whole numbers above 0 such as 1000,2000,4000"
            )
        return tuple(map(int, parts))
    # A setting that is a file may be written down, and read from another folder.
    if one.name == "chat_template" and isinstance(value, Path):
        return str(value.resolve())
    return value


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
    console = _PlainConsole(stderr=stderr, quiet=quiet, markup=False, emoji=False, highlight=False)
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
