"""A run's numbers mirrored in an experiment tracker: `--track trackio|wandb|tensorboard`.

Enters: a run directory. Leaves: its steps and evaluations in the tracker. The directory stays the
truth: a tracker is told what the files say, and one that fails is said once and ends nothing.
`.mirrored-TOOL.json` remembers the last step told: a resumed run, whose steps are the same, goes
on from there.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from epistill.errors import EpistillError, damaged, did_you_mean, first_line
from epistill.number_rows import number_rows
from epistill.store import RunStore, read_json, write_json

Opened = tuple[Callable[[dict[str, float], int], Any], Callable[[], Any]]  # logs a step; ends it


def _trackio(folder: Path, project: str, name: str, config: dict[str, Any]) -> Opened:
    trackio = import_module("trackio")
    own = {"auto_log_gpu": False, "auto_log_cpu": False, "embed": False}
    run = trackio.init(project=project, name=name, config=config, resume="allow", **own)
    return run.log, trackio.finish


def _wandb(folder: Path, project: str, name: str, config: dict[str, Any]) -> Opened:
    again = {"id": name, "resume": "allow", "reinit": "create_new"}
    run = import_module("wandb").init(project=project, name=name, config=config, **again)
    return run.log, run.finish


def _tensorboard(folder: Path, project: str, name: str, config: dict[str, Any]) -> Opened:
    writer = import_module("torch.utils.tensorboard").SummaryWriter(str(folder / "tensorboard"))

    def log(numbers: dict[str, float], step: int) -> None:
        for measure, value in numbers.items():
            writer.add_scalar(measure, value, step)

    return log, writer.close


TRACKERS = {"trackio": _trackio, "wandb": _wandb, "tensorboard": _tensorboard}


def check_tracker(tool: str | None) -> None:
    """Refuse a tracker that is unknown or not installed, before anything runs."""
    if tool not in {*TRACKERS, None}:
        near = did_you_mean(str(tool), TRACKERS)
        raise EpistillError(f"--track is {tool!r}; expected one of {', '.join(TRACKERS)}{near}")
    if tool is not None and find_spec(tool) is None:
        raise EpistillError(f"--track {tool} needs {tool}, which is not there; pip install {tool}")


@contextmanager
def mirrored(
    tool: str | None, folder: Path, project: str, label: str, say: Callable[[str], None]
) -> Iterator[Callable[[], None]]:
    """Gives what tells a tracker (None: nobody) all that is new in a run directory.

    The tracker calls the run `label` and a hash of the folder. `say` is told why it fails.
    """
    marker, store = folder / f".mirrored-{tool}.json", RunStore(folder)
    told: dict[str, Any] = {"step": -1, "finished": False}
    new_metrics = store.new_metrics()
    place = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:6]
    name = f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', label)}-{place}"
    opened: list[Opened] = []
    failed: list[Exception] = []

    def catch_up() -> None:
        rows, result = numbers_by_step(store, new_metrics(), told["step"]), store.result
        final = _told({"final": (result or {}).get("evaluations", {})})
        if result is not None and final and not told["finished"]:
            rows[max(told["step"], result.get("steps", 0) - 1, *rows) + 1] = final
        for step, numbers in rows.items():
            if not opened:
                opened.append(TRACKERS[str(tool)](folder, project, name, store.config))
            opened[0][0](numbers, step)
            told["step"] = step
        told["finished"] = result is not None

    def close() -> None:
        if opened:
            opened[0][1]()
            write_json(marker, told)

    def attempt(act: Callable[[], None]) -> None:
        try:
            if tool is not None and not failed:
                with redirect_stdout(sys.stderr):  # stdout may be somebody's JSON
                    act()
        except Exception as error:  # noqa: BLE001 - no tracker may end a run, whatever it raises
            failed.append(error)
            say(f"{tool} is told no more of {folder}: {first_line(error)}")

    try:
        attempt(lambda: told.update(_told_before(marker)))
        yield lambda: attempt(catch_up)
        attempt(catch_up)
    finally:
        attempt(close)


def _told_before(marker: Path) -> dict[str, Any]:
    """What a marker says; Damaged where it says something else."""
    if not marker.exists():
        return {}
    said = read_json(marker, folder=marker)
    if type(said.get("step")) is not int or type(said.get("finished")) is not bool:
        raise damaged(marker, "it names no step", marker)
    return said


def numbers_by_step(
    store: RunStore, metrics: Iterable[Mapping[str, Any]], after: int
) -> dict[int, dict[str, float]]:
    """Numbers of these rows of metrics.jsonl and of the learning curve, of the steps after one."""
    found: dict[int, dict[str, float]] = {}
    for kind, rows in (("train", metrics), ("curve", store.curve())):
        for row in (row for row in rows if row["step"] > after):
            numbers = {name: value for name, value in row.items() if name != "step"}
            found.setdefault(row["step"], {}).update(_told({kind: numbers}))
    return dict(sorted(found.items()))


def _told(found: Mapping[str, Any]) -> dict[str, float]:
    """Numbers by their path; an estimate's value has the estimate's name."""
    return {
        row["measure"] + ("" if part == "value" else f"/{part}"): float(value)
        for row in number_rows(found)
        for part, value in row.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
