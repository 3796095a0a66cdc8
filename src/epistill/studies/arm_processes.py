"""One arm over several processes of this machine, started and watched by torch's own launcher.

Enters: a job as JSON, its folder, how many processes. Leaves: a finished run directory. Each
process is this module run as a program. Where one ends, the launcher ends the others (by SIGTERM,
after 30 s by SIGKILL); who starts them again, from the checkpoint, is the study.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Mapping
from tempfile import TemporaryDirectory
from typing import Any

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.errors import (
    ChildFailedError,
    ProcessFailure,
    record,
)
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from epistill.errors import EpistillError, LostProcess
from epistill.interrupts import ended_before_finalization
from epistill.studies.executors import run_job, start_worker
from epistill.world import joined

MISTAKE, LOST = 2, 3  # exit statuses: what a person should mend; another process is gone


def launch(payload: str, folder: str, processes: int) -> None:
    """Carry out a run by so many processes.

    Raises:
        LostProcess: One of them was killed, or hung.
        EpistillError: What a person should mend.
    """
    with TemporaryDirectory() as errors:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id="arm",
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=errors),
            signals_to_handle="SIGTERM",
        )
        before = signal.getsignal(signal.SIGTERM)
        logging.disable(logging.ERROR)  # it logs a dead process; the study says so in a line
        program = ("-m", "epistill.studies.arm_processes", str(os.getpid()), payload, folder)
        try:
            elastic_launch(config, sys.executable)(*program)
        except ChildFailedError as error:
            raise _why(error.failures, processes) from None
        finally:
            logging.disable(logging.NOTSET)
            signal.signal(signal.SIGTERM, before)


def _why(failures: Mapping[int, ProcessFailure], processes: int) -> Exception:
    followed = (LOST, -signal.SIGTERM)  # what the end of one does to the others
    rank = min(
        failures,
        key=lambda r: (failures[r].exitcode in followed, failures[r].exitcode != MISTAKE),
    )
    one = failures[rank]
    if one.exitcode < 0:
        return LostProcess(f"process {rank} of {processes} was ended by {one.signal_name()}")
    message: Any = one.message  # a text, or what `record` wrote
    told = message["message"] if isinstance(message, dict) else message
    kinds = {MISTAKE: EpistillError, LOST: LostProcess}
    return kinds.get(one.exitcode, RuntimeError)(told.partition(": ")[2])


def _work(parent: str, payload: str, folder: str) -> None:
    start_worker(int(parent), int(os.environ["OMP_NUM_THREADS"]))
    with joined():
        run_job(payload, folder)


if __name__ == "__main__":
    with ended_before_finalization():
        try:
            record(_work)(*sys.argv[1:])
        except EpistillError as error:
            sys.exit(LOST if isinstance(error, LostProcess) else MISTAKE)
