"""One exception for everything a person can mend.

Enters: what was found, what was expected, what to do. Leaves: one line on stderr and exit status 2
(`cli`), or an ordinary `ValueError` for callers of the library. Programming errors stay assertions.
"""


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
