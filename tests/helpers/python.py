"""Python programs in processes of their own, without the seconds of importing torch each time.

They are forked from one process that has imported the package and what it is built on and has done
nothing else; from there on they are what `python -m ...`, `python -c ...` or `python FILE` would be.
What tests the imports themselves, or another environment, needs a Python of its own: `subprocess`.
"""

from __future__ import annotations

import atexit
import gc
import multiprocessing
import os
import resource
import runpy
import subprocess
import sys
import traceback
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType

from epistill.studies import executors

LIMIT_S = 900  # a hang is a failure, a busy machine is not
# Nothing that starts a thread (polars, pyarrow), which a fork would not take along: `_become` looks.
IMPORTED = [
    *executors.IMPORTED, "epistill.cli", "epistill.comparison.compare", "epistill.library.results",
    "epistill.preflights.token_classes", "epistill.report.study_page", "epistill.studies.runner",
    "epistill.traces.measure", "torch.distributed.run", "transformers.models.qwen3.modeling_qwen3",
]  # fmt: skip
_server = multiprocessing.get_context("forkserver")


class Program:
    """A running `python ARGUMENTS`, used as a `subprocess.Popen` whose output is text."""

    def __init__(self, *arguments, cwd=None, env=None, new_session=False, most_bytes=None):
        _server.set_forkserver_preload(IMPORTED)
        self.args, self._files = list(map(str, arguments)), TemporaryDirectory()
        self._process = _server.Process(
            target=_become,
            args=(self.args, self._files.name, str(cwd or Path.cwd()), dict(env or os.environ)),
            kwargs={"new_session": new_session, "most_bytes": most_bytes},
        )
        self._process.start()
        self.pid = self._process.pid

    @property
    def returncode(self):
        return self._process.exitcode

    def poll(self):
        return self.returncode

    def wait(self, timeout=LIMIT_S):
        self._process.join(timeout)
        if self.returncode is None:
            self.kill()
            raise subprocess.TimeoutExpired(self.args, timeout, *self.said())
        return self.returncode

    def communicate(self, timeout=LIMIT_S):
        self.wait(timeout)
        return self.said()

    def said(self):
        """Standard output and error so far."""
        paths = (Path(self._files.name) / name for name in ("stdout", "stderr"))
        return tuple(path.read_text(encoding="utf-8") if path.is_file() else "" for path in paths)

    def send_signal(self, number):
        os.kill(self.pid, number)

    def kill(self):
        self._process.kill()
        self._process.join()


def run_python(*arguments, timeout=LIMIT_S, **options):
    """As `subprocess.run`, all output captured as text."""
    program = Program(*arguments, **options)
    out, err = program.communicate(timeout)
    return subprocess.CompletedProcess(program.args, program.returncode, out, err)


def run_epistill(*arguments, **options):
    """Run a command of the package."""
    return run_python("-m", "epistill", *arguments, **options)


def _become(arguments, files, cwd, environment, *, new_session, most_bytes):
    if sys.platform == "linux":
        assert len(os.listdir(f"/proc/{os.getppid()}/task")) == 1, "a fork loses threads"
    gc.freeze()  # what was imported before is no garbage, and need not be looked through for it
    if new_session:
        os.setsid()
    for number, name in ((1, "stdout"), (2, "stderr")):
        path = os.open(f"{files}/{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(path, number)
        os.close(path)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8")
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    if most_bytes is not None:
        # Bytecode cut short there would be every later Python's.
        sys.dont_write_bytecode = True
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
    status = 0
    try:
        _run(*arguments)
    except SystemExit as exiting:
        told = exiting.code
        if told is not None and not isinstance(told, int):
            print(told, file=sys.stderr)
        status = told if isinstance(told, int) else int(told is not None)
    except BaseException:  # noqa: BLE001 - what Python itself does with what nobody caught
        traceback.print_exc()
        status = 1
    atexit._run_exitfuncs()  # after what is said of an error, as everywhere; one may end all
    sys.exit(status)


def _run(how, *arguments):
    if how == "-m":
        module, *arguments = arguments
        sys.argv = [module, *arguments]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    elif how == "-c":
        code, *arguments = arguments
        sys.argv = ["-c", *arguments]
        main = sys.modules["__main__"] = ModuleType("__main__")
        exec(compile(code, "<string>", "exec"), vars(main))
    else:
        sys.argv = [how, *arguments]
        runpy.run_path(how, run_name="__main__")
