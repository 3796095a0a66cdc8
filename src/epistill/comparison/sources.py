"""Where the two sides of a comparison come from: files, folders of files, or run directories.

Enters: two paths. Leaves: two `Source`s whose evaluation sets have equal names. It opens no trace.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from epistill.errors import EpistillError
from epistill.integrity import check_part
from epistill.readers.record_files import find_files, stem_of
from epistill.store import RunStore

ALL = "all"
FINAL = "final-"


@dataclass(frozen=True, slots=True)
class Source:
    """Where a side comes from.

    Attributes:
        sets: Evaluation set to its files.
        settings: Of a run directory, how its evaluations were sampled; None for other files, whose
            records may say.
        run: The run directory, for its problems.
    """

    path: Path
    sets: Mapping[str, tuple[Path, ...]]
    settings: Mapping[str, Any] | None = None
    run: RunStore | None = None


def find_sources(a: Path, b: Path, *, pool: bool = False) -> tuple[Source, Source]:
    """What the two paths hold, with evaluation sets of equal names.

    Run directories and folders whose files have the same names are compared file by file; anything
    else as one set.

    Raises:
        EpistillError: Nothing there, or one side has several sets and the other none of them.
    """
    first, second = _source(a), _source(b)
    if not pool and set(first.sets) & set(second.sets):
        return first, second
    names = {*first.sets, *second.sets}
    runs = first.run is not None or second.run is not None
    if not pool and runs and max(len(first.sets), len(second.sets)) > 1:
        raise EpistillError(
            f"{a} and {b} have no evaluation set in common (found {', '.join(sorted(names))});"
            " name one file of each, such as RUN/evaluations/final-SET.jsonl"
        )
    whole = (
        replace(side, sets={ALL: tuple(f for files in side.sets.values() for f in files)})
        for side in (first, second)
    )
    return next(whole), next(whole)


def _source(path: Path) -> Source:
    marks = ("evaluations", "environment.json")  # the latter from a run's first moment
    if (path / "config.json").is_file() and any((path / mark).exists() for mark in marks):
        run = RunStore(path)
        check_part(path, "evaluations")
        names = [n for n in run.evaluation_names() if n.startswith(FINAL)]
        if not names:
            raise EpistillError(
                f"{path} has no final evaluation; expected evaluations/final-*.jsonl; finish the "
                "run, and give it evaluation sets"
            )
        sampling = run.config.get("eval_sampling") or run.config.get("sampling") or {}
        files = {n.removeprefix(FINAL): (path / "evaluations" / f"{n}.jsonl",) for n in names}
        return Source(path, files, sampling, run)
    files = find_files([path])
    if len(files) == 1:
        return Source(path, {ALL: tuple(files)})
    stems = {stem_of(file): (file,) for file in files}
    if len(stems) < len(files):  # math.jsonl beside math.parquet
        stems = {file.name: (file,) for file in files}
    return Source(path, stems)
