"""The command line: parse first, import heavy things late; `--help` answers without torch.

Every mistake a user can mend is one line on stderr and exit status 2. The order of the imports
below is the order of the commands in `--help`.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from typing import NoReturn

import typer

from epistill.cli import run_commands as run_commands  # isort: skip
from epistill.cli import plan_command as plan_command  # isort: skip
from epistill.cli import trace_commands as trace_commands  # isort: skip
from epistill.cli import look_commands as look_commands  # isort: skip
from epistill.cli.common import app, lab, tasks, warn
from epistill.errors import EpistillError, LostProcess, StoppedElsewhere, disk_full, first_line
from epistill.interrupts import received, say_stopped

app.add_typer(lab, name="lab")
app.add_typer(tasks, name="tasks")

# typer carries its own click; the class of its usage errors is reached through a public one.
_USAGE_ERROR: type[Exception] = typer.BadParameter.__mro__[1]


def main() -> None:
    """Entry point of the `epistill` command."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Names and texts may hold what the locale, or UTF-8, cannot; stderr never fails for that.
        sys.stdout.reconfigure(errors="replace")
    try:
        result = app(standalone_mode=False)
        print(end="", flush=True)
        sys.exit(result if isinstance(result, int) else 0)
    except StoppedElsewhere:
        sys.exit(2)  # the process that met the error says it
    except EpistillError as error:
        number = received() if isinstance(error, LostProcess) else None
        if number is not None:  # the others of the run were asked to end too
            say_stopped(number)
        _fail(str(error))
    except _USAGE_ERROR as error:
        message = error.format_message()  # pyright: ignore[reportAttributeAccessIssue]
        if message.startswith("Usage:"):  # a command group without a command
            print(message)
            sys.exit(2)
        _fail(f"{message} (see --help)")
    except typer.Abort:
        say_stopped(signal.SIGINT)
    except SystemExit:
        raise
    except BaseException as error:  # the signal's own, a library's wrapping of it (torch's is no
        # Exception), or what others of the run, ending too, made fail here
        number = received()
        if number is None:
            if (full := disk_full(error)) is not None:
                _drop_output()
                place = getattr(error, "filename", None) or "the output"
                _fail(f"could not write {place}: {full}; make room or choose another folder")
            if type(error).__module__ != "pyo3_runtime":  # a panic of Rust is no Exception either
                raise
            _fail(
                f"a library gave up: {first_line(error)}; a file that it read cannot be used, such "
                "as a tokenizer.json whose patterns never end"
            )
        say_stopped(number)


def _drop_output() -> None:
    """Forget what stdout could not take; Python would try again at its end, and say so."""
    try:
        print(end="", flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str) -> NoReturn:
    warn(message)
    sys.exit(2)
