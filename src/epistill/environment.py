"""What a run ran on: versions, commit, machine; `epistill env` prints it. Imports no torch."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "epistill torch transformers tokenizers safetensors datasets math-verify polars plotly numpy"
)


def describe_environment() -> dict[str, Any]:
    """Versions, commit and machine, for the run directory and for bug reports."""
    status = _git("status", "--porcelain")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "packages": {name: _version(name) for name in PACKAGES.split()},
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": None if status is None else bool(status),
    }


@cache
def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor())


def _git(*arguments: str) -> str | None:
    """Output of a git command on the package's own checkout; None where it is not one.

    An installed copy may lie inside some other repository (a virtual environment in a project);
    that one's commit would be a lie, so this file must be tracked.
    """
    here = Path(__file__).resolve().parent
    if arguments[0] != "ls-files" and _git("ls-files", "--error-unmatch", __file__) is None:
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(here), *arguments],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
