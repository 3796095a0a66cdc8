"""One of `drivers` on two gloo processes, by torchrun."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 900  # a hang is a failure, a busy machine is not

TORCHRUN = (
    sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m",
)  # fmt: skip


def start_two(driver, *arguments):
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return subprocess.Popen(
        [*TORCHRUN, f"tests.helpers.drivers.{driver}", *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def on_two(driver, *arguments):
    process = start_two(driver, *arguments)
    try:
        _, said = process.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        process.terminate()  # torchrun ends its processes with itself
        raise
    assert process.returncode == 0, said[-3000:]
