"""One exception for everything a person can mend.

Enters: what was found, what was expected, what to do. Leaves: one line on stderr and exit status 2
(`cli`), or an ordinary `ValueError` for callers of the library. Programming errors stay assertions.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class EpistillError(ValueError):
    """A mistake in the input or its surroundings that the user can correct.

    The message is one line: what was found, what was expected, what to do.
    """


class FolderInUse(EpistillError):
    """Another process holds a run directory."""


class BudgetExceeded(EpistillError):
    """A prompt, context and response together exceed what the model can read."""


class StoppedElsewhere(EpistillError):
    """Another process of the run met the error and reports it; this one only stops."""


def first_line(error: Exception) -> str:
    """What went wrong, on one line."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """The end of an error line: "; did you mean 'score'?", or nothing where no choice is near."""
    near = difflib.get_close_matches(name, list(choices), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
