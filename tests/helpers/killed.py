"""Kills one process of a run once the run is well under way."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

from tests.helpers.python import LIMIT_S


def kill_when(steps, folder, *marks):
    """A started thread; its process's command line or environment holds all `marks`."""
    killer = threading.Thread(target=_kill, args=(steps, folder, marks), daemon=True)
    killer.start()
    return killer


def _kill(steps, folder, marks):
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        try:
            if (folder / "metrics.jsonl").read_bytes().count(b"\n") >= steps:
                break
        except OSError:
            pass
        time.sleep(0.02)
    for process in Path("/proc").iterdir():
        try:
            said = b"\0".join((process / n).read_bytes() for n in ("cmdline", "environ"))
        except OSError:
            continue
        if process.name.isdecimal() and all(f"{mark}".encode() in said for mark in marks):
            os.kill(int(process.name), signal.SIGKILL)
