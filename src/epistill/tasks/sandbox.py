"""Runs a program nobody trusts: limited in time, memory and processes, offline, in its own folder.

Enters: Python source, its input, limits. Leaves: an `Execution`. It grades nothing
(`tasks/code.py` does) and never runs a program where a mechanism is missing, unless asked to.

What each mechanism stops, and what it does not:

- The supervisor (here): a run over its time, output, threads or folder size, by SIGKILL. It looks
  every 20 ms; for so long, threads and small files may overshoot. Files count wherever they are
  (`tasks/sandbox_disk.py`).
- rlimits: more memory than `memory_bytes` (of address space; there is one process, so this is all
  of it), a file over `file_bytes`, CPU time, core dumps. Not: page cache, kernel memory.
- A seccomp filter: every new process (threads are allowed), sockets and pairs of them, io_uring,
  signals to others (by fcntl too) and tracing them, shared memory, memory files, new namespaces,
  and changes of mode, owner, time and extended attributes. Not: calls that are not on its list.
- The parent-death signal: a program that outlives its grader, however that ended.
- Landlock from version 3 on (Linux 6.2): writing and creating outside the folder, special files,
  and reading anything but the interpreter, its libraries and the folder. Not: `stat`, which tells
  whether a path exists and how large it is.
- Dropped capabilities: a root user's rights over others' files, over limits, devices and mounts.

Nothing here needs root, a container or another program. It is meant for programs of language
models: the same kernel runs them, so it is no wall against somebody with a kernel exploit. The
expected output of a test never enters the sandbox, so no program can find it there.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from epistill.errors import EpistillError
from epistill.interrupts import StoppedBySignal, stopping
from epistill.tasks.sandbox_disk import FOLDER, empty_folder, folder_bytes, unlinked_bytes

UNSAFE_VARIABLE = "EPISTILL_UNSAFE_CODE"
POLL_S = 0.02
_MIB = 2**20
_CHILD = Path(__file__).with_name("sandbox_child.py")

Ending = Literal["exit", "time", "output", "threads", "disk"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What one program may use.

    Attributes:
        wall_s: Seconds from its first instruction; the interpreter's start counts.
        memory_bytes: Address space, the interpreter's own 30 MiB included.
        threads: Of its one process.
        file_bytes: Of one file; all files of its folder together may have four times that.
        output_bytes: Of stdout and stderr together.
    """

    wall_s: float = 10.0
    memory_bytes: int = 1024 * _MIB
    threads: int = 16
    file_bytes: int = 16 * _MIB
    output_bytes: int = 4 * _MIB


@dataclass(frozen=True, slots=True)
class Execution:
    """How a program ended.

    Attributes:
        ended: "exit" by itself (or killed by the kernel for a limit), else the limit it hit.
        exit_code: As of a process; negative is a signal; None where the supervisor killed it.
        stdout: What it wrote, cut at the limit.
        stderr: Idem.
    """

    ended: Ending
    exit_code: int | None
    stdout: str
    stderr: str

    @property
    def succeeded(self) -> bool:
        """It ended by itself with status 0."""
        return self.ended == "exit" and self.exit_code == 0


def run_python(
    source: str,
    *,
    stdin: str = "",
    function: str | None = None,
    prelude: bool = False,
    limits: Limits | None = None,
) -> Execution:
    """Run a Python program in the sandbox.

    Args:
        source: The program; its folder is empty, fresh, and removed afterwards.
        stdin: What it reads; with `function`, a JSON list of arguments.
        function: Call this function (of `class Solution` where there is one) after running the
            source; stdout is then its result as JSON, and prints are lost.
        prelude: Import the usual modules and typing names first, as judges of such problems do.
        limits: What it may use.

    Raises:
        EpistillError: A mechanism is missing on this machine; nothing was run.
    """
    limits = limits or Limits()
    with ExitStack() as left:
        try:
            name = left.enter_context(tempfile.TemporaryDirectory(prefix="epistill-sandbox-"))
            folder = Path(name).resolve()
            for file, text in (("main.py", source), ("stdin", stdin)):
                (folder / file).write_bytes(text.encode("utf-8", "surrogatepass"))
            (folder / "work").mkdir()
            work = os.open(folder / "work", FOLDER)
        except OSError as error:
            raise EpistillError(
                f"the code sandbox has no folder to work in: {error.strerror}; make room in "
                f"{tempfile.gettempdir()}, or name another place in TMPDIR"
            ) from error
        left.callback(os.close, work)
        left.callback(empty_folder, work)
        with (folder / "stdin").open("rb") as given, (folder / "status").open("wb") as status:
            settings = _settings(folder, function, prelude, limits, status.fileno())
            process = subprocess.Popen(
                # -S: the lines of .pth files are code, and take longer than the whole rest.
                [sys.executable, "-I", "-S", str(_CHILD), json.dumps(settings)],
                stdin=given,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=(status.fileno(),),
                env=_environment(folder / "work"),
                cwd=folder,
                start_new_session=True,
            )
            with process:
                try:
                    execution = _supervise(process, limits, work)
                finally:
                    process.kill()
        _require_mechanisms((folder / "status").read_bytes(), execution)
        return execution


def _settings(
    folder: Path, function: str | None, prelude: bool, limits: Limits, status: int
) -> dict[str, Any]:
    interpreter = {sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix}
    devices = [f"/dev/{name}" for name in ("zero", "urandom", "random")]
    system = ["/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache", "/etc/localtime", *devices]
    return {
        "folder": str(folder / "work"),
        "program": str(folder / "main.py"),
        "function": function,
        "prelude": prelude,
        "status": status,
        "parent": os.getpid(),
        "packages": sorted({sysconfig.get_path(kind) for kind in ("purelib", "platlib")}),
        "readable": [*sorted(interpreter), *system, str(folder / "stdin")],
        "writable": [str(folder / "work"), "/dev/null"],
        "limits": [limits.memory_bytes, limits.file_bytes, int(limits.wall_s) + 1],
        "allow_unsafe": bool(os.environ.get(UNSAFE_VARIABLE)),
    }


def _environment(folder: Path) -> dict[str, str]:
    """Nothing of ours: keys and tokens live in environments."""
    one_thread = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}
    ours = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "PYTHONHASHSEED": "0"}
    return {**ours, "HOME": str(folder), "TMPDIR": str(folder), **one_thread}


def _require_mechanisms(report: bytes, execution: Execution) -> None:
    remedy = (
        "expected Linux >= 6.2 with Landlock and seccomp (x86_64 or aarch64); run on such a "
        f"machine, or set {UNSAFE_VARIABLE}=1 to run programs of a model without this protection"
    )
    if not report:
        # It ended before it could say anything: the program never ran.
        said = execution.stderr.strip().splitlines()
        reason = said[-1] if said else f"exit status {execution.exit_code}"
        raise EpistillError(f"the code sandbox could not start ({reason}); {remedy}")
    missing: dict[str, str] = json.loads(report)
    if missing and not os.environ.get(UNSAFE_VARIABLE):
        found = "; ".join(f"{name}: {reason}" for name, reason in missing.items())
        raise EpistillError(f"the code sandbox lacks {found}; {remedy}")


def _supervise(process: subprocess.Popen[bytes], limits: Limits, work: int) -> Execution:
    """Read and watch one process until it ends or oversteps."""
    deadline = time.monotonic() + limits.wall_s
    pipes = [pipe for pipe in (process.stdout, process.stderr) if pipe is not None]
    written = {pipe.fileno(): bytearray() for pipe in pipes}
    ended: Ending = "exit"
    with selectors.DefaultSelector() as selector:
        for pipe in pipes:
            selector.register(pipe, selectors.EVENT_READ)
        # Pipes closed, process alive: it closed them itself and is still under the clock.
        while ended == "exit" and (selector.get_map() or process.poll() is None):
            if stopping.is_set():
                raise StoppedBySignal(signal.SIGTERM)
            for key, _ in selector.select(POLL_S if selector.get_map() else POLL_S / 4):
                if chunk := os.read(key.fd, 65_536):
                    written[key.fd] += chunk
                else:
                    selector.unregister(key.fileobj)
            ended = _overstepped(process.pid, limits, work, deadline) or "exit"
            if sum(map(len, written.values())) > limits.output_bytes:
                ended = "output"
    process.kill()
    code = process.wait()
    texts = [bytes(t[: limits.output_bytes]).decode("utf-8", "replace") for t in written.values()]
    return Execution(ended, code if ended == "exit" else None, *texts)


def _overstepped(pid: int, limits: Limits, work: int, deadline: float) -> Ending | None:
    if time.monotonic() > deadline:
        return "time"
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:  # it has just ended
        return None
    if len(threads) > limits.threads:
        return "threads"
    used = folder_bytes(work, 4 * limits.file_bytes)
    used += unlinked_bytes([f"/proc/{pid}/task/{t}" for t in threads], limits.file_bytes)
    return "disk" if used > 4 * limits.file_bytes else None
