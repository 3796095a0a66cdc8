"""One exception for everything a person can mend: one line, and exit status 2 of the command."""

from __future__ import annotations

import difflib
import errno
import os
import re
from collections.abc import Iterable
from pathlib import Path

LINE = 400  # a library's message may hold a whole file
# What code raises that takes a stranger's data for what they should be.
MALFORMED = (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, RecursionError)
_REMEDY = "; restore it from a copy, or remove "


class EpistillError(ValueError):
    """What the user can correct, in one line: what was found, what was expected, what to do."""


class FolderInUse(EpistillError):
    """Another process holds a run directory."""


class Damaged(EpistillError):
    """A file that was whole when it was written is not what it was."""

    @property
    def found(self) -> str:
        """Which file, and what is wrong with it."""
        return str(self).partition(_REMEDY)[0]


class BudgetExceeded(EpistillError):
    """A prompt, context and response together exceed what the model can read."""


class LostProcess(EpistillError):
    """Another process of the run is gone, or did not answer in time."""


class StoppedElsewhere(EpistillError):
    """Another process of the run met the error and reports it; this one only stops."""


def first_line(error: BaseException) -> str:
    """What went wrong, on one line of at most LINE characters."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0] if len(lines[0]) <= LINE else lines[0][: LINE - 3] + "..."


def disk_full(error: BaseException) -> str | None:
    """What the system said where a disk takes no more, through any library; None for all else."""
    named = re.search(r"\(os error (\d+)\)", str(error))  # as Rust's libraries say it
    number = error.errno if isinstance(error, OSError) else int(named[1]) if named else None
    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
    return os.strerror(number) if number in full else None


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """The end of an error line: "; did you mean 'score'?", or nothing where no choice is near."""
    near = difflib.get_close_matches(name, list(choices), n=3)
    near.sort(key=lambda one: sorted(one) != sorted(name))  # letters that changed places come first
    return f"; did you mean {near[0]!r}?" if near else ""


def damaged(path: Path, what: str, folder: Path | None = None) -> Damaged:
    """The error about a file that is not as it was written; `folder` is what may be removed."""
    return Damaged(f"{path} is damaged: {what}{_REMEDY}{folder or path.parent} to begin again")


def why_unread(error: Exception) -> str:
    """What reading a file raised, in words."""
    if isinstance(error, OSError):
        return f"it cannot be read ({error.strerror})"
    if isinstance(error, UnicodeDecodeError):
        return "it is no UTF-8 text"
    return f"it is no JSON ({first_line(error)})"
