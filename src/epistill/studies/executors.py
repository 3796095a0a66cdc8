"""Who carries out a study's jobs: processes of this machine, or a Ray cluster.

Enters: a job's payload (JSON) and folder. Leaves: a future of it. Everything else about a study is
the same whoever does the work; so are its results, because a job's threads are the study's own.
"""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import os
import signal
import sys
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from pebble import ProcessExpired, ProcessPool

from epistill.interrupts import children_without_ctrl_c
from epistill.studies.spec import LabWorld, Preflight, Probe, Resources

PR_SET_PDEATHSIG = 1  # prctl(2)


class WorkerLost(Exception):
    """The process that did a job is gone; the job can be given to another."""


@runtime_checkable
class Handle(Protocol):
    """A job that was handed over."""

    def started(self) -> bool:
        """Whether some worker has it."""
        ...

    def done(self) -> bool:
        """Whether `result` will not wait."""
        ...

    def result(self) -> None:
        """Wait for the end; raises WorkerLost, or what the job itself raised."""
        ...


@runtime_checkable
class Executor(Protocol):
    """Carries out jobs.

    Attributes:
        retries: Of a job whose worker was lost.
    """

    retries: int

    def submit(self, payload: dict[str, Any], folder: Path) -> Handle:
        """Hand a job over."""
        ...

    def stop(self) -> None:
        """End what is running, at once."""
        ...


class LocalProcesses:
    """Processes of this machine.

    Args:
        workers: How many at a time; None decides by `workers_at_once`.
        resources: What each job gets.
        jobs: How many there are.
    """

    retries = 1  # killed by the system, say

    def __init__(self, workers: int | None, resources: Resources, jobs: int) -> None:
        self._pool = ProcessPool(
            max_workers=min(workers or workers_at_once(resources), jobs),
            context=multiprocessing.get_context("spawn"),
            initializer=_start_worker,
            initargs=[os.getpid(), resources.cpus],
        )

    def submit(self, payload: dict[str, Any], folder: Path) -> Handle:
        """Start a job as soon as a process is free."""
        with children_without_ctrl_c():
            return _LocalJob(self._pool.schedule(run_job, args=(json.dumps(payload), str(folder))))

    def stop(self) -> None:
        """Kill the processes."""
        self._pool.stop()

    def __enter__(self) -> LocalProcesses:
        """Use the pool."""
        return self

    def __exit__(self, *_: object) -> None:
        """Wait for the processes to end."""
        self._pool.close()
        self._pool.join()


def workers_at_once(resources: Resources) -> int:
    """How many jobs fit on this machine by their processors; one where they want GPUs.

    Nothing here hands out GPUs: jobs beside each other would all take the first. Ray does.
    """
    return 1 if resources.gpus else max(1, len(os.sched_getaffinity(0)) // resources.cpus)


class _LocalJob:
    def __init__(self, future: Future[None]) -> None:
        self._future = future

    def started(self) -> bool:
        return self._future.running()

    def done(self) -> bool:
        return self._future.done()

    def result(self) -> None:
        try:
            self._future.result()
        except ProcessExpired as error:
            raise WorkerLost(f"its process died: {error}") from error


def _start_worker(parent: int, threads: int) -> None:
    """A worker whose study was killed must not go on writing, nor hold its run's lock."""
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
    """Carry out one job in a worker process.

    Args:
        payload: JSON: a world, a preflight, a probe with its seed, or a run.
        folder: Where.
    """
    from epistill.config import RunConfig
    from epistill.method_import import method_from_file
    from epistill.studies.probe import run_probe
    from epistill.studies.run_arm import run

    job = json.loads(payload)
    if "world" in job:
        from epistill.studies.lab_world import run_world

        run_world(LabWorld.model_validate(job["world"]), Path(folder))
    elif "preflight" in job:
        from epistill.studies.preflight_job import run_preflight_job

        run_preflight_job(Preflight.model_validate(job["preflight"]), Path(folder))
    elif "probe" in job:
        run_probe(Probe.model_validate(job["probe"]), job["seed"], Path(folder))
    else:
        if job["method_file"] is not None:  # the study's user named it; the parent process says so
            method_from_file(job["method_file"])
        run(RunConfig.model_validate(job["run"]), Path(folder), save_model=False)
