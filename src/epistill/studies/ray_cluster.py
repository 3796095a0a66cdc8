"""A study's jobs on a Ray cluster.

Enters: an address, or "auto" for a cluster of this machine's own. Leaves: an `Executor`. What a
worker is sent are two strings, a job as JSON and a folder; it loads the installed package by name.
(Ray itself moves functions and errors inside the cluster with cloudpickle.) The study's folder
must be one that every node sees: that is where results and checkpoints are. The processes of an arm
are placed together (a placement group) and find each other at a store in the study's own process.
"""

from __future__ import annotations

import json
import logging
import math
import os
import socket
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from epistill.errors import EpistillError, FolderInUse, LostProcess, first_line
from epistill.store import RunStore
from epistill.studies.executors import cores, is_alone, run_job, use_threads
from epistill.studies.spec import Resources
from epistill.world import HANG_MINUTES, joined

AUTO = "auto"
# A node that was cut off may still run its worker for a while; that one holds the run's lock.
LOCK_WAIT_S = 120.0
LOCK_POLL_S = 1.0
CONNECT_S = 10.0
THREADS = 1024
LOCAL_OBJECTS_BYTES = 80 * 1024**2  # nothing but short strings is ever stored there


class RayCluster(AbstractContextManager["RayCluster"]):
    """A Ray cluster, for one study.

    Args:
        address: As `ray.init` takes it ("10.0.0.1:6379"), or "auto" to start a local one.
        resources: What each job gets.
        study: The study's folder, which every node must see.
        workers: Processors of a local one; None takes those that this process may use.

    Raises:
        EpistillError: Ray is not installed, no cluster answers, or no node is large enough.
    """

    retries = 5  # nodes come and go

    def __init__(
        self, address: str, resources: Resources, study: Path, workers: int | None = None
    ) -> None:
        try:
            import ray
        except ImportError as error:
            raise EpistillError(
                "--ray needs Ray, which is not installed; pip install 'epistill[ray]'"
            ) from error
        self._ray: Any = ray
        if address == AUTO:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            where: dict[str, Any] = {
                "address": "local",
                "num_cpus": workers or cores(),
                "include_dashboard": False,
                "object_store_memory": LOCAL_OBJECTS_BYTES,
            }
        elif workers is not None:
            raise EpistillError(
                f"--workers is {workers}, but the cluster at {address} decides how many run; leave "
                "one of the two out"
            )
        else:
            where = {"address": address}
            _check_answer(address)
        try:
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **where)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise _no_cluster(address, error) from error
        self._check_room(resources)
        self._remote: Any = ray.remote(
            num_cpus=resources.cpus, num_gpus=resources.gpus, max_retries=0
        )(_carry_out)
        self._resources = resources
        self._study = study
        self._refs: list[Any] = []
        self._groups: list[Any] = []
        self._threads = ThreadPoolExecutor(max_workers=THREADS)  # each waits for one arm

    def _check_room(self, resources: Resources) -> None:
        """Ray waits for ever for a node that is large enough; a person should not."""
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        places = 0
        for node in nodes:
            by_gpus = node.get("GPU", 0) // resources.gpus if resources.gpus else math.inf
            places += int(min(node.get("CPU", 0) // resources.cpus, by_gpus))
        if places < resources.processes:
            sizes = ", ".join(f"{n.get('CPU', 0):g} CPU {n.get('GPU', 0):g} GPU" for n in nodes)
            self._ray.shutdown()
            raise EpistillError(
                f"each arm asks for {resources.processes} x {resources.cpus} CPU and "
                f"{resources.gpus:g} GPU, but the nodes have {sizes}; change [resources] in the "
                "study file, or add a node"
            )

    def submit(self, payload: dict[str, Any], folder: Path) -> Future[str | None]:
        """Start a job as soon as the nodes have room."""
        job = json.dumps(payload), str(folder), str(self._study), self._resources.cpus
        if is_alone(payload, self._resources.processes):
            self._refs.append(ref := self._remote.remote(*job))
            return ref.future()
        return self._threads.submit(self._together, job)

    def _together(self, job: Sequence[Any]) -> str | None:
        """Processes placed together; the first that ends badly, or has a word to say, ends all."""
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
        from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

        asked, host = self._resources, self._ray.util.get_node_ip_address()
        store = TCPStore(host, 0, is_master=True, wait_for_workers=False)
        where = {
            "MASTER_ADDR": host,
            "MASTER_PORT": str(store.port),
            "LOCAL_RANK": "0",
            "WORLD_SIZE": str(asked.processes),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
        }
        if (minutes := os.environ.get(HANG_MINUTES)) is not None:
            where[HANG_MINUTES] = minutes  # what a started cluster does not know
        bundle = {"CPU": asked.cpus, "GPU": asked.gpus}
        group = self._ray.util.placement_group([bundle] * asked.processes)
        self._groups.append(group)
        refs = [
            self._remote.options(
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, rank),
                runtime_env={"env_vars": {**where, "RANK": str(rank)}},
            ).remote(*job)
            for rank in range(asked.processes)
        ]
        try:
            while refs:
                done, refs = self._ray.wait(refs)
                if (said := self._ray.get(done[0])) is not None:
                    return said
            return None
        finally:  # with it end the processes that still run
            self._ray.util.remove_placement_group(group)

    def lost(self, error: BaseException) -> str | None:
        """Whether its process, its node, the way to it, or another of its run is gone."""
        if isinstance(error, LostProcess):
            return str(getattr(error, "cause", error))  # Ray's own text is a traceback
        errors = self._ray.exceptions
        gone = isinstance(error, errors.RayError) and not isinstance(error, errors.RayTaskError)
        return f"its worker was lost: {first_line(error)}" if gone else None

    def stop(self) -> None:
        """Cancel all jobs."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for ref in self._refs:
            self._ray.cancel(ref, force=True)
        for group in self._groups:
            self._ray.util.remove_placement_group(group)

    def __exit__(self, *_: object) -> None:
        """Leave the cluster; a local one ends."""
        self._ray.shutdown()


def _check_answer(address: str) -> None:
    """Whether anything listens there: Ray itself tries for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
    except (OSError, ValueError) as error:
        raise _no_cluster(address, error) from error


def _no_cluster(address: str, error: Exception) -> EpistillError:
    return EpistillError(
        f"no Ray cluster at {address!r}: {first_line(error)}; expected HOST:PORT of a running "
        "one (ray start --head), or auto"
    )


def _carry_out(payload: str, folder: str, study: str, threads: int) -> str | None:
    """In a worker of the cluster: do the job; return what a person should mend, if anything."""
    if not (Path(study) / "study.json").is_file():
        return (
            f"{os.uname().nodename} does not see {study}; expected --out on storage that all "
            "nodes share"
        )
    use_threads(threads)
    if os.environ.get("RANK", "0") == "0":
        _wait_for_lock(RunStore(Path(folder)))
    try:
        with joined():
            run_job(payload, folder)
    except LostProcess:
        raise
    except EpistillError as error:
        return str(error)
    return None


def _wait_for_lock(store: RunStore) -> None:
    """Until nobody writes there any more, or so long that the job itself says who does."""
    deadline = time.monotonic() + LOCK_WAIT_S
    while time.monotonic() < deadline:
        try:
            with store.locked():
                return
        except FolderInUse:
            time.sleep(LOCK_POLL_S)
