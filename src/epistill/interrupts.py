"""Ctrl-C, SIGTERM and a closed terminal end a command in order, and in one line.

Enters: signals. Leaves: `StoppedBySignal`, raised in the main thread, so that locks, pools and
servers are let go of on the way out. Nothing has to be saved: a run goes on from its checkpoint.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType, ModuleType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# What waits in another thread, where no exception arrives, looks at this.
stopping = threading.Event()
_received: list[int] = []


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
    """Around all that a program does: under `torchrun` its process ends without finalizing Python.

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

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        atexit.register(end)
    try:
        yield
        status = 0
    except SystemExit as exiting:
        code = exiting.code
        status = code if isinstance(code, int) else int(code is not None)
        raise
