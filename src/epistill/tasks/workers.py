"""Worker processes for a function that may hang, crash or eat memory.

A call is limited in processor time, which does not depend on what else the machine does, by the
kernel, which ends a worker inside one C call too. Workers are plain programs that import nothing of
the caller's `__main__`, so scripts without a guard, `python -` and notebooks can start them.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from typing import IO, Any

from epistill.errors import EpistillError, first_line

MEMORY = 2 << 30  # bytes of address space of a worker
# A worker that is stopped or blocked uses no processor time: it is given up after so many times its
# limit, by the clock. Far beyond what a busy machine takes, since that must not decide a verdict.
PATIENCE = 100
_START = (
    "import sys; sys.path[:] = {path!r}\n"
    "from epistill.tasks.workers import serve; serve({name!r}, {limit!r})"
)
# Processes that wait for a call, by this process (a fork has no share in them) and what they run:
# to start one takes half a second, most of it for importing sympy.
_waiting: dict[tuple[int, str], list[subprocess.Popen[bytes]]] = {}


@dataclass(frozen=True, slots=True)
class Lost:
    """A call without a result.

    Attributes:
        timeout: Its processor time was spent, twice, or its process stood still.
        reason: One line.
    """

    timeout: bool
    reason: str


class Workers:
    """Calls one function in worker processes that start with the first call.

    Args:
        name: `module:function`; it takes and gives JSON. `module` may have a `warm_up()`.
        limit_s: Seconds of processor time of a call.
        workers: Processes.
    """

    def __init__(self, name: str, *, limit_s: float, workers: int) -> None:
        self.limit_s = limit_s
        self._program = _START.format(path=sys.path, name=name, limit=limit_s)
        self._running: list[subprocess.Popen[bytes] | None] = [None] * workers
        self._stopped = False

    def map(self, arguments: Sequence[Any]) -> list[Any]:
        """A result or a `Lost` for each argument, in order.

        A call that took too long, or whose worker died, is made again when no other runs.
        """
        results: dict[int, Any] = {}
        numbers, lock = iter(range(len(arguments))), threading.Lock()

        def work(place: int) -> None:
            while not self._stopped:
                with lock:
                    number = next(numbers, None)
                if number is None:
                    return
                results[number] = self._call(place, arguments[number])

        places = range(min(len(self._running), len(arguments)))
        try:
            with ThreadPoolExecutor(max(1, len(places))) as threads:
                try:
                    list(threads.map(work, places))
                except BaseException:
                    self._end()  # so that the threads end
                    raise
            for number in sorted(n for n, found in results.items() if isinstance(found, Lost)):
                results[number] = self._call(0, arguments[number])
        except BaseException:
            self._end()
            raise
        return [results[number] for number in range(len(arguments))]

    def close(self) -> None:
        """Leave the processes, all of which wait, to the next `Workers` of the same function."""
        self._stopped = True
        waiting = _waiting.setdefault((os.getpid(), self._program), [])
        waiting += [process for process in self._running if process is not None]
        self._running = [None] * len(self._running)

    def _end(self) -> None:
        self._stopped = True
        _end([process for process in self._running if process is not None])
        self._running = [None] * len(self._running)

    def _call(self, place: int, argument: Any) -> Any:
        process = self._running[place] or self._start(place)
        assert process.stdin is not None
        assert process.stdout is not None
        watch = threading.Timer(PATIENCE * self.limit_s, process.kill)
        watch.daemon = True
        watch.start()
        try:
            _send(argument, process.stdin)
            reply = _receive(process.stdout)
            return Lost(**reply["lost"]) if "lost" in reply else reply["value"]
        except (EOFError, OSError, ValueError):
            given_up = watch.finished.is_set()
            _end([process])
            self._running[place] = None
            code = process.returncode
            if given_up:
                return Lost(True, f"no reply within {PATIENCE * self.limit_s:g} s")
            if code == -signal.SIGPROF:
                return Lost(True, f"it took longer than {self.limit_s:g} s of processor time")
            return Lost(False, f"its process ended (exit status {code})")
        finally:
            watch.cancel()

    def _start(self, place: int) -> subprocess.Popen[bytes]:
        waiting = _waiting.get((os.getpid(), self._program), [])
        while waiting:
            process = self._running[place] = waiting.pop()
            if process.poll() is None:
                return process
        process = subprocess.Popen(
            [sys.executable, "-c", self._program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self._running[place] = process
        assert process.stdout is not None
        try:
            problem = _receive(process.stdout)
        except (EOFError, ValueError):
            problem = f"exit status {process.wait()}"
        if problem:
            raise EpistillError(f"a grading process could not start ({problem}); free some memory")
        return process


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.kill()
        with suppress(OSError):  # of what could not be sent
            process.communicate()


@atexit.register
def _end_waiting() -> None:
    for (owner, _), processes in _waiting.items():
        if owner == os.getpid():
            _end(processes)


def _send(value: Any, pipe: IO[bytes]) -> None:
    pipe.write(json.dumps(value).encode() + b"\n")
    pipe.flush()


def _receive(pipe: IO[bytes]) -> Any:
    if not (line := pipe.readline()):
        raise EOFError
    return json.loads(line)


def serve(name: str, limit_s: float) -> None:
    """A worker's life: read an argument, call, write the result, until the pipe is closed."""
    import resource

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the caller ends it
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no reply
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = MEMORY if hard == resource.RLIM_INFINITY else min(MEMORY, hard)
    try:
        resource.setrlimit(resource.RLIMIT_AS, (most, hard))
        module = import_module(name.partition(":")[0])
        function = getattr(module, name.partition(":")[2])
        getattr(module, "warm_up", int)()
    except (ImportError, OSError, ValueError, MemoryError) as error:
        _send(first_line(error), replies)
        return
    _send("", replies)
    with suppress(EOFError):
        while True:
            argument = _receive(sys.stdin.buffer)
            # SIGPROF is not caught: at the limit the kernel ends this process, in whatever call.
            signal.setitimer(signal.ITIMER_PROF, limit_s)
            try:
                reply: dict[str, Any] = {"value": function(argument)}
            except (MemoryError, RecursionError, ValueError, ArithmeticError, TypeError) as error:
                reply = {"lost": {"timeout": False, "reason": type(error).__name__}}
            signal.setitimer(signal.ITIMER_PROF, 0)
            _send(reply, replies)
