"""Ctrl-C, SIGTERM and a closed terminal end a command in order, and in one line.

Enters: signals. Leaves: `StoppedBySignal`, raised in the main thread, so that locks, pools and
servers are let go of on the way out. Nothing has to be saved: a run goes on from its checkpoint,
and what is said last is whether there is one.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType, ModuleType
from typing import NoReturn

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# What waits in another thread, where no exception arrives, looks at this.
stopping = threading.Event()
_received: list[int] = []
# What the same command goes on with: of a run, of a study's arms, of a preflight.
_KEPT = ("checkpoints/step-*", "result.json", "cache/*.parquet", "cache/replies-*")
_claimed: list[Path] = []


class StoppedBySignal(BaseException):
    """The process was asked to end. No KeyboardInterrupt: the command line's library eats those.

    Attributes:
        number: Of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def stop_in_order() -> None:
    """From here on a signal raises `StoppedBySignal`, once; one that is ignored stays ignored."""

    def stop(number: int, frame: FrameType | None) -> None:
        for one in _SIGNALS:  # a second one must not break off the ending
            signal.signal(one, signal.SIG_IGN)
        _received.append(number)
        stopping.set()
        raise StoppedBySignal(number)

    for one in _SIGNALS:
        if signal.getsignal(one) is not signal.SIG_IGN:
            signal.signal(one, stop)


def received() -> int | None:
    """The signal that asked the process to end; None where none did."""
    return _received[0] if _received else None


def claim(folder: Path) -> None:
    """Remember that this process works in a folder, so that `say_stopped` can look into it."""
    _claimed.append(folder)


def say_stopped(number: int) -> NoReturn:
    """End with one line, from the first process of a run, and the exit status of that signal."""
    if os.environ.get("RANK", "0") == "0":
        resumes = {"train", "study", "preflight"} & set(sys.argv[1:2])
        sys.stderr.write(f"stopped; {_how_to_go_on() if resumes else 'nothing was kept'}\n")
    sys.exit(128 + number)


def _how_to_go_on() -> str:
    if not _claimed:
        return "it had not begun; start the same command again"
    if any(next(_claimed[-1].glob(f"**/{name}"), None) for name in _KEPT):
        return "the same command goes on from here"
    return "nothing is kept yet, the same command begins again"


@contextmanager
def children_without_ctrl_c() -> Iterator[None]:
    """Threads and processes that are started here never see Ctrl-C: their parent ends them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def children_without_main() -> Iterator[None]:
    """Processes that start here do not run the caller's script again, guarded or not."""
    main, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@contextmanager
def ended_before_finalization() -> Iterator[None]:
    """Around all that a program does: its process ends without finalizing Python.

    With torch imported that takes seconds (ten, beside other work) after the last line was printed.
    Of gloo's threads, which a process cannot always wait for, one that frees a tensor while Python
    is finalizing aborts the process (docs/log.md). Exit functions that are registered within have
    run by then, output is flushed, and the exit status is what it would have been.
    """
    status = 1

    def end() -> None:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(status)

    atexit.register(end)
    try:
        yield
        status = 0
    except SystemExit as exiting:
        code = exiting.code
        status = code if isinstance(code, int) else int(code is not None)
        raise
