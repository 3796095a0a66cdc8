"""Who carries out a study's jobs: processes of this machine, or a Ray cluster.

Enters: a job's payload (JSON) and folder. Leaves: a future of it. Everything else about a study is
the same whoever does the work; so are its results, because a job's threads are the study's own.
"""

from __future__ import annotations

import ctypes
import gc
import json
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import AbstractContextManager, suppress
from multiprocessing.context import (
    BaseContext,
    ForkServerContext,
    ForkServerProcess,
    SpawnContext,
    SpawnProcess,
)
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from pebble import ProcessExpired, ProcessPool

from epistill.errors import EpistillError, LostProcess
from epistill.interrupts import children_without_ctrl_c, children_without_main
from epistill.studies.spec import Resources

PR_SET_PDEATHSIG = 1  # prctl(2)
# Imported once for all workers; none may start a thread, which a fork does not take along.
IMPORTED = ("epistill.studies.jobs", "epistill.studies.arm_processes")


@runtime_checkable
class Executor(Protocol):
    """Carries out jobs.

    Attributes:
        retries: Of a job whose worker was lost.
    """

    retries: int

    def submit(self, payload: dict[str, Any], folder: Path) -> Future[str | None]:
        """Hand a job over; a text that comes back says what a person should mend."""
        ...

    def lost(self, error: BaseException) -> str | None:
        """What became of the worker, where the error says that it is gone; else None."""
        ...

    def stop(self) -> None:
        """End what is running, at once."""
        ...


class LocalProcesses(AbstractContextManager["LocalProcesses"]):
    """Processes of this machine.

    Args:
        workers: How many at a time; None decides by `workers_at_once`.
        resources: What each job gets.
        jobs: How many there are.

    Raises:
        EpistillError: Several at a time, and each wants GPUs.
    """

    retries = 1  # killed by the system, say

    def __init__(self, workers: int | None, resources: Resources, jobs: int) -> None:
        if resources.gpus and (workers or 1) > 1:
            raise EpistillError(
                f"--workers is {workers} and [resources] gpus is {resources.gpus:g}; expected one "
                "arm at a time, as all would take the same GPUs; --ray auto gives each its own, "
                "--processes spreads one arm over several"
            )
        self._pool = ProcessPool(
            max_workers=min(workers or workers_at_once(resources), jobs),
            context=_context(),
            initializer=start_study_worker,
            initargs=[dict(os.environ), resources.cpus],
        )
        self._processes = resources.processes

    def submit(self, payload: dict[str, Any], folder: Path) -> Future[str | None]:
        """Start a job as soon as a process is free."""
        with children_without_ctrl_c():
            job = json.dumps(payload), str(folder)
            if is_alone(payload, self._processes):
                return self._pool.schedule(run_job, args=job)
            from epistill.studies.arm_processes import launch  # which imports this module

            return self._pool.schedule(launch, args=(*job, self._processes))

    def lost(self, error: BaseException) -> str | None:
        """Whether the process died, or one of several."""
        if isinstance(error, LostProcess):
            return str(error)
        return f"its process died: {error}" if isinstance(error, ProcessExpired) else None

    def stop(self) -> None:
        """Kill the processes."""
        self._pool.stop()

    def __exit__(self, *_: object) -> None:
        """Wait for the processes to end."""
        self._pool.close()
        self._pool.join()


def workers_at_once(resources: Resources) -> int:
    """How many jobs fit on this machine by their processors; one where they want GPUs.

    Nothing here hands out GPUs: jobs beside each other would all take the first. Ray does.
    """
    return 1 if resources.gpus else max(1, cores() // (resources.cpus * resources.processes))


def is_alone(payload: Mapping[str, Any], processes: int) -> bool:
    """Whether one process does the job: all but training."""
    return processes == 1 or "run" not in payload


def cores() -> int:
    """Processors that this process may use; where the system cannot say (macOS), all there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _context() -> BaseContext:
    """On Linux workers are forked from one process that has imported torch and transformers.

    That takes five seconds of processor time, which each would spend. The process does nothing
    else, has one thread and touches no GPU: what is forked from it is as good as new.
    """
    context = ForkServerContext() if sys.platform == "linux" else SpawnContext()
    if isinstance(context, ForkServerContext):
        context.set_forkserver_preload([*IMPORTED, "epistill.studies.fork_parent"])
    context.Process = _StudyProcess  # pyright: ignore[reportAttributeAccessIssue]
    return context


class _StudyProcess(ForkServerProcess if sys.platform == "linux" else SpawnProcess):
    def start(self) -> None:
        with children_without_main():
            super().start()


def start_study_worker(environment: Mapping[str, str], threads: int) -> None:
    """A worker has the study's environment, and ends with it: it must not go on writing.

    Nor may it hold its run's lock. Its parent for the system is not the study, hence a thread.
    """

    def end_with(study: BaseProcess) -> None:
        study.join()
        os.kill(os.getpid(), signal.SIGKILL)

    study = multiprocessing.parent_process()
    assert study is not None
    threading.Thread(target=end_with, args=[study], daemon=True).start()
    os.environ.clear()
    os.environ.update(environment)
    use_threads(threads)


def start_worker(parent: int, threads: int) -> None:
    """One of several processes of a run ends with the one that started it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # killed before the line above
        os._exit(1)
    use_threads(threads)


def use_threads(threads: int) -> None:
    """Give this process so many threads: two processes with all of them each are slower."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import torch
    from transformers.utils import logging

    torch.set_num_threads(threads)
    logging.disable_progress_bar()


def run_job(payload: str, folder: str) -> None:
    """Carry out one job (JSON) in a worker process."""
    from epistill.studies.jobs import carry_out  # torch, after `use_threads`

    carry_out(json.loads(payload), Path(folder))
    if sys.platform == "linux":
        # What a run has freed glibc keeps in pieces: half of a worker's memory after four runs.
        gc.collect()
        with suppress(AttributeError):  # another libc has no such function
            ctypes.CDLL(None).malloc_trim(0)
