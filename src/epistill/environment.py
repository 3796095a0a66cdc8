"""What a run ran on: versions, commit, machine; `epistill env` prints it. Imports no torch."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "epistill torch transformers tokenizers safetensors datasets math-verify polars plotly numpy"
)

NUMERIC = ("torch", "transformers")  # other versions of these give other numbers


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


def code_of(environment: Mapping[str, Any]) -> str:
    """The code behind a run's numbers, in words, of what `describe_environment` gave.

    Example:
        >>> code_of({"packages": {"epistill": "0.1.0", "torch": "2.9.0"}, "commit": "9c030de1f2"})
        'epistill 0.1.0 at 9c030de with torch 2.9.0, transformers unknown'
    """
    versions = environment.get("packages", {})
    found = {name: versions.get(name) or "unknown" for name in ("epistill", *NUMERIC)}
    commit = environment.get("commit")
    at = f" at {commit[:7]}" if commit else ""
    changed = " and changes" if environment.get("uncommitted_changes") else ""
    others = ", ".join(f"{name} {found[name]}" for name in NUMERIC)
    return f"epistill {found['epistill']}{at}{changed} with {others}"


def codes_of(environment: Mapping[str, Any]) -> list[str]:
    """The code that began a run, then all that went on with it, of its environment.json."""
    return [code_of(environment), *environment.get("went_on_with", ())]


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
