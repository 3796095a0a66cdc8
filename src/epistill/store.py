"""A run directory as a typed interface: the only thing that training, reports and studies share.

    config.json        the resolved configuration; a directory with another one is refused
    environment.json   versions, commit, machine
    metrics.jsonl      one line per step, no wall-clock in it: equal configs give equal files
    alarms.jsonl       what the monitor raised, if anything
    timing.jsonl       seconds per step, apart from the metrics for that reason
    evaluations/*.jsonl, rollouts/*.jsonl, traces.jsonl
    checkpoints/step-N/   see train.checkpoint
    result.json        written last: its presence means the run is finished

Files are written to a temporary name and renamed. A lock keeps a second process out.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from epistill.errors import EpistillError, FolderInUse

_BEFORE_A_RUN = {"config.json", "environment.json", ".lock"}


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a whole file or nothing: temporary file in the same folder, flush, rename."""
    if os.path.isdir(path):  # pathlib's raises where a folder above cannot be entered
        raise EpistillError(f"could not write {path}: it is a folder; name a file in it")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    # Models can write lone surrogates, which UTF-8 cannot hold: they become question marks.
    data = content.encode("utf-8", "replace") if isinstance(content, str) else content
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise EpistillError(
            f"could not write {path}: {error.strerror}; make room or choose another folder"
        ) from error


def write_json(path: Path, value: Any) -> None:
    """Write JSON that keeps nulls and never holds NaN."""
    write_atomic(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_jsonl(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write records, one per line, whole or not at all."""
    lines = [json.dumps(r, allow_nan=False, ensure_ascii=False) + "\n" for r in records]
    write_atomic(path, "".join(lines))


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read records; a half-written last line (a killed writer) is left out."""
    if not path.is_file():
        return []
    records = []
    text = path.read_text(encoding="utf-8")
    for line in text.split("\n")[:-1]:
        records.append(json.loads(line))
    return records


class RunStore:
    """One run's directory.

    Args:
        folder: Where; created on first write.
        writes: False in a process that is not the first of its run: it reads, and what it is told
            to write the first process writes.
    """

    def __init__(self, folder: Path | str, *, writes: bool = True) -> None:
        self.folder = Path(folder)
        self._writes = writes

    def _write(self, write: Callable[[Path, Any], None], name: str, value: Any) -> None:
        if self._writes:
            write(self.folder / name, value)

    # ---- identity

    def begin(
        self,
        config: Mapping[str, Any],
        environment: Mapping[str, Any],
        *,
        migrate: Callable[[Any], Any] = lambda config: config,
    ) -> None:
        """Write the configuration before step 0, or check it against the one that is there.

        Args:
            config: The resolved configuration.
            environment: What runs it.
            migrate: Brings the configuration of an older version to this one's form: a setting it
                did not have yet has its default, which is what that version did.

        Raises:
            EpistillError: The directory holds a run of another configuration, or of a version
                whose settings this one does not know.
        """
        path = self.folder / "config.json"
        if path.is_file():
            there = read_json(path)
            try:
                there = migrate(there)
            except ValueError as error:
                raise EpistillError(
                    f"{self.folder} was begun by epistill {self._version()}, whose settings this "
                    f"version does not read ({' '.join(str(error).split())[:160]}); finish it "
                    "with that version, or use another folder"
                ) from error
            different = _differing_keys(there, dict(config))
            if different and self._begun():
                raise EpistillError(
                    f"{self.folder} holds a run of another configuration (differs in "
                    f"{', '.join(different[:5])}); use another folder, or remove this one"
                )
            if not different:
                return
        self._write(write_json, "config.json", config)
        self._write(write_json, "environment.json", environment)

    def _begun(self) -> bool:
        """Whether anything came of the run; one that failed at its start may be begun anew."""
        return any(p.name not in _BEFORE_A_RUN for p in self.folder.iterdir())

    def _version(self) -> str:
        path = self.folder / "environment.json"
        found = read_json(path).get("packages", {}).get("epistill") if path.is_file() else None
        return found or "of an unknown version"

    @property
    def config(self) -> dict[str, Any]:
        """The resolved configuration."""
        return read_json(self.folder / "config.json")

    @property
    def environment(self) -> dict[str, Any]:
        """Versions, commit and machine of the process that began the run."""
        return read_json(self.folder / "environment.json")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the directory; a second process is refused.

        Raises:
            FolderInUse: Another process holds it.
        """
        if not self._writes:
            yield
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            handle = (self.folder / ".lock").open("wb")
        except OSError as error:
            raise EpistillError(
                f"could not use {self.folder}: {error.strerror}; make room or choose another folder"
            ) from error
        with handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise FolderInUse(
                    f"{self.folder} is in use by another process; wait for it, or use another "
                    "folder"
                ) from error
            yield

    # ---- metrics

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Add one step's numbers."""
        self._write(_append, "metrics.jsonl", record)

    def append_timing(self, record: Mapping[str, Any]) -> None:
        """Add one step's seconds."""
        self._write(_append, "timing.jsonl", record)

    def append_alarm(self, record: Mapping[str, Any]) -> None:
        """Add one alarm of the monitor."""
        self._write(_append, "alarms.jsonl", record)

    def alarms(self) -> list[dict[str, Any]]:
        """All alarms so far."""
        return read_jsonl(self.folder / "alarms.jsonl")

    def metrics(self) -> list[dict[str, Any]]:
        """All steps so far."""
        return read_jsonl(self.folder / "metrics.jsonl")

    def timing(self) -> list[dict[str, Any]]:
        """Seconds of all steps so far."""
        return read_jsonl(self.folder / "timing.jsonl")

    def rewind(self, step: int) -> None:
        """Drop what was recorded at or after `step`: a resumed run writes it again."""
        for name in ("metrics", "timing", "alarms"):
            path = self.folder / f"{name}.jsonl"
            if path.is_file():
                kept = [r for r in read_jsonl(path) if r["step"] < step]
                self._write(write_jsonl, path.name, kept)

    # ---- larger records

    def write_records(self, kind: str, name: str, records: Iterable[Mapping[str, Any]]) -> None:
        """Write a table under `kind/name.jsonl` ("evaluations", "rollouts", "traces")."""
        self._write(write_jsonl, f"{kind}/{name}.jsonl", records)

    def read_records(self, kind: str, name: str) -> list[dict[str, Any]] | None:
        """A table, or None where it was never written."""
        path = self.folder / kind / f"{name}.jsonl"
        return read_jsonl(path) if path.is_file() else None

    def record_names(self, kind: str) -> list[str]:
        """Tables of a kind, sorted."""
        return sorted(path.stem for path in (self.folder / kind).glob("*.jsonl"))

    def write_inspection(self, name: str, value: Any) -> None:
        """Write something for a person to look at; numbers JSON has no word for become text."""
        self._write(write_json, name, _spelled_out(value))

    # ---- end

    def finish(self, result: Mapping[str, Any]) -> None:
        """Write the result; the run counts as finished from here."""
        self._write(write_json, "result.json", result)

    @property
    def result(self) -> dict[str, Any] | None:
        """The result, or None while the run is unfinished."""
        path = self.folder / "result.json"
        return read_json(path) if path.is_file() else None


def _append(path: Path, record: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(record, allow_nan=False, ensure_ascii=False) + "\n"
    try:
        with path.open("a", encoding="utf-8") as out:
            out.write(line)
    except OSError as error:
        raise EpistillError(
            f"could not write {path}: {error.strerror}; make room or choose another folder"
        ) from error


def _spelled_out(value: Any) -> Any:
    """NaN and infinities as the strings "nan", "inf", "-inf"."""
    if isinstance(value, Mapping):
        return {key: _spelled_out(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_spelled_out(one) for one in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _differing_keys(old: Any, new: Any, prefix: str = "") -> list[str]:
    """Dotted names of the settings in which two configurations differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        found: list[str] = []
        for key in sorted(set(old) | set(new)):
            if key not in old or key not in new:
                found.append(f"{prefix}{key}")
            else:
                found += _differing_keys(old[key], new[key], f"{prefix}{key}.")
        return found
    return [] if old == new else [prefix.rstrip(".") or "everything"]
