"""One process per folder: a lock of the system, and a look whether the lock was worth anything.

Some network file systems grant every lock, and somebody may remove the lock file. So whoever holds
a folder signs its lock file, and looks at the signature before each write: of two processes the one
that came first ends, in one line, before it spoils what the other writes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from epistill.errors import EpistillError, FolderInUse
from epistill.interrupts import claim

LOCK = ".lock"


@contextmanager
def held(folder: Path) -> Iterator[Callable[[], None]]:
    """Hold a folder, which is made where it is not there; gives what raises once another holds it.

    Raises:
        FolderInUse: Another process holds it.
        EpistillError: The folder cannot be written, or the system or file system has no locks.
    """
    try:
        import fcntl
    except ImportError as error:
        raise EpistillError(
            "this system has no file locks (fcntl); expected Linux or macOS; on Windows use WSL"
        ) from error
    path = folder / LOCK
    with _in_words(folder):
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0)
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            told = f"{folder} is in use by another process; wait for it, or use another folder"
            raise FolderInUse(told) from error
        except OSError as error:
            raise EpistillError(
                f"could not lock {folder}: {error.strerror}; expected a file system with file "
                "locks (of a network file system: mounted with them)"
            ) from error
        own = f"process {os.getpid()} of {os.uname().nodename} at {time.time_ns()}\n".encode()
        with _in_words(folder):
            if path.is_file():  # not a pipe of that name
                handle.truncate(0)
                handle.write(own)

        def check() -> None:
            try:
                there = path.read_bytes() if path.is_file() else own
            except OSError:
                return  # the write itself will say what is wrong
            if there != own:
                other = there.decode(errors="replace").partition(" at ")[0]
                raise FolderInUse(
                    f"{folder} was taken by another process ({other[:80]}) though this one had "
                    "locked it, and this one stops: file locks do nothing there, or the lock file "
                    "was removed; one process at a time, then the same command goes on"
                )

        claim(folder)
        yield check


@contextmanager
def _in_words(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        name = error.filename or folder
        told = f"could not use {name}: {error.strerror}; make room or choose another folder"
        raise EpistillError(told) from error
