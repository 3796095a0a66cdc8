"""A run directory as a typed interface: the only thing that training, reports and studies share.

    config.json        the resolved configuration; a directory with another one is refused
    environment.json   versions, commit, machine
    metrics.jsonl      one line per step, no wall-clock in it: equal configs give equal files
    alarms.jsonl       what the monitor raised, if anything
    timing.jsonl       seconds per step, apart from the metrics for that reason
    evaluations/*.jsonl, traces/traces.jsonl
    checkpoints/step-N/   see training/checkpoint.py
    manifest.json      the SHA-256 of files that are final; of all of them once the run is finished
    result.json        written last: its presence means the run is finished

Files are written to a temporary name and renamed. A lock keeps a second process out. What is read
again is checked: a damaged file is an error that names it, never a number.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from epistill.environment import code_of, codes_of
from epistill.errors import EpistillError, damaged
from epistill.folder_lock import held
from epistill.integrity import (
    MANIFEST,
    Mark,
    check_against_manifest,
    head,
    listed_checksum,
    require,
    sealed,
    sha256_of,
)
from epistill.json_files import (
    append_jsonl,
    follow_jsonl,
    json_bytes,
    read_json,
    read_jsonl,
    remove_file,
    spelled_out,
    write_atomic,
    write_json,
    write_jsonl,
)
from epistill.settings import differing_keys

LOGS = ("metrics.jsonl", "timing.jsonl", "alarms.jsonl", "evaluations/curve.jsonl")  # they grow
TRACES = "traces/traces.jsonl"  # of a supervised run
_BEFORE_A_RUN = {"config.json", "environment.json", ".lock"}
_WORKING_FILES = {"checkpoints", "cache", "tensorboard", MANIFEST}


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
        self._check_lock = _unlocked

    def _write(self, write: Callable[[Path, Any], None], name: str, value: Any) -> None:
        if self._writes:
            self._check_lock()
            write(self.folder / name, value)

    # ---- identity

    def begin(
        self,
        config: Mapping[str, Any],
        environment: Mapping[str, Any],
        *,
        migrate: Callable[[Any], Any] = lambda config: config,
    ) -> None:
        """Write the resolved configuration before step 0, or check it against the one there.

        Args:
            config, environment: The settings, and what runs them.
            migrate: Brings the configuration of an older version to this one's form: a setting it
                did not have yet has its default, which is what that version did.

        Raises:
            EpistillError: The directory holds a run of another configuration, or of a version
                whose settings this one does not know.
        """
        path = self.folder / "config.json"
        if path.exists():
            there = read_json(path)
            try:
                there = migrate(there)
            except ValueError as error:
                raise EpistillError(
                    f"{self.folder} was begun by epistill {self._version()}, whose settings this "
                    f"version does not read ({' '.join(str(error).split())[:160]}); finish it "
                    "with that version, or use another folder"
                ) from error
            different = differing_keys(there, dict(config))
            # One that failed at its start, before anything came of it, may be begun anew.
            begun = any(p.name not in _BEFORE_A_RUN for p in self.folder.iterdir())
            if different and begun:
                raise EpistillError(
                    f"{self.folder} holds a run of another configuration (differs in "
                    f"{', '.join(different[:5])}); use another folder, or remove this one"
                )
            if not different and begun:
                self._go_on_with(environment)
                return
        elif any((self.folder / name).exists() for name in ("checkpoints", "result.json")):
            raise damaged(path, "it is missing, and the folder holds a run")
        self._write(write_json, "config.json", config)
        self._write(write_json, "environment.json", environment)

    def _go_on_with(self, environment: Mapping[str, Any]) -> None:
        """Say, and write down, that a run which is not finished goes on with other code."""
        path = self.folder / "environment.json"
        if not environment or not path.exists() or (self.folder / "result.json").exists():
            return
        there, now = self.environment, code_of(environment)
        if (before := codes_of(there))[-1] != now:
            logging.getLogger("epistill").warning(
                "%s was begun with %s and goes on with %s: numbers may differ",
                *(self.folder, before[-1], now),
            )
            told = {**there, "went_on_with": [*before[1:], now]}
            self._write(write_json, "environment.json", told)

    def settle(self, config: Mapping[str, Any]) -> None:
        """Write the configuration again, with what this run found for its open settings."""
        self._write(write_json, "config.json", config)

    def _version(self) -> str:
        try:
            return self.environment["packages"]["epistill"]
        except (EpistillError, KeyError, TypeError):
            return "of an unknown version"

    @property
    def config(self) -> dict[str, Any]:
        """The resolved configuration."""
        return self._checked("config.json", read_json)

    @property
    def environment(self) -> dict[str, Any]:
        """Versions, commit and machine of the process that began the run."""
        return self._checked("environment.json", read_json)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the directory; a second process is refused.

        Raises:
            FolderInUse: Another process holds it, or takes it though it is locked (of a write).
        """
        if not self._writes:
            yield
            return
        with held(self.folder) as self._check_lock:
            try:
                yield
            finally:
                self._check_lock = _unlocked

    # ---- files that are final

    def check(self, name: str) -> None:
        """Damaged where manifest.json lists a file and it is another one now."""
        check_against_manifest(self.folder, name)

    def _checked(self, name: str, read: Callable[..., Any]) -> Any:
        self.check(name)
        return read(self.folder / name, folder=self.folder)

    def write_final(self, write: Callable[[Path, Any], None], name: str, value: Any) -> None:
        """Write one file, and manifest.json with its checksum; a kill leaves no wrong checksum."""
        if self._writes:
            self._check_lock()
            remove_file(self.folder / MANIFEST)
            write(self.folder / name, value)
            self._write_manifest({name: sha256_of(self.folder / name)})

    def read_final(self, name: str) -> list[dict[str, Any]] | None:
        """Records that `write_final` wrote; None where it did not come to its end.

        Raises:
            Damaged: They, or manifest.json, are not what was written.
        """
        if listed_checksum(self.folder, name) is None:
            return None
        return self._checked(name, read_jsonl)

    def _write_manifest(self, files: Mapping[str, str]) -> None:
        self._write(write_json, MANIFEST, sealed({"files": dict(files)}))

    # ---- metrics

    def append(self, log: str, record: Mapping[str, Any]) -> None:
        """Add one step's numbers, its seconds, or an alarm ("metrics", "timing", "alarms")."""
        self._write(append_jsonl, f"{log}.jsonl", record)

    def alarms(self) -> list[dict[str, Any]]:
        """All alarms so far."""
        return self._following("alarms.jsonl", least_gap=0)()

    def metrics(self) -> list[dict[str, Any]]:
        """All steps so far."""
        return self.new_metrics()()

    def timing(self) -> list[dict[str, Any]]:
        """Seconds of all steps so far."""
        return self._following("timing.jsonl")()

    def new_metrics(self) -> Callable[[], list[dict[str, Any]]]:
        """Gives at each call the steps that came since the call before, all at the first."""
        return self._following("metrics.jsonl")

    def _following(self, name: str, least_gap: int = 1) -> Callable[[], list[dict[str, Any]]]:
        path, number, last = self.folder / name, 0, -1
        added = follow_jsonl(path, self.folder)

        def in_order() -> list[dict[str, Any]]:
            nonlocal number, last
            self.check(name)
            rows = added()
            for row in rows:
                number, step = number + 1, row.get("step")
                if not isinstance(step, int) or step < max(last + least_gap, 0):
                    what = f"line {number} is of step {step!r}, after step {last}"
                    raise damaged(path, what, self.folder)
                last = step
            return rows

        return in_order

    def rewind(self, step: int) -> None:
        """Drop what was recorded at or after `step`: a resumed run writes it again."""
        for rows in (self.metrics, self.timing, self.alarms):
            if (self.folder / f"{rows.__name__}.jsonl").exists():
                kept = [row for row in rows() if row["step"] < step] if step else []
                self._write(write_jsonl, f"{rows.__name__}.jsonl", kept)

    def marks(self) -> dict[str, Mark]:
        """What a checkpoint remembers of the files that a resumed run goes on with."""
        names = (*LOGS, TRACES)
        found = ((name, self.folder / name) for name in names)
        return {n: (path.stat().st_size, sha256_of(path)) for n, path in found if path.exists()}

    def require(self, marks: Mapping[str, Mark]) -> None:
        """Damaged where a file does not begin as it was when `marks` were taken."""
        for name, mark in marks.items():
            require(self.folder / name, mark, self.folder)

    def restore(self, marks: Mapping[str, Mark]) -> None:
        """Bring the logs back to what they were when `marks` were taken."""
        traces = self.folder / TRACES  # all else that a manifest lists will be written again
        self._write_manifest({TRACES: sha256_of(traces)} if traces.is_file() else {})
        for name in LOGS:
            path = self.folder / name
            if name in marks:
                self._write(write_atomic, name, head(path, marks[name][0]))
            elif self._writes:
                remove_file(path)

    # ---- larger records

    def write_evaluation(self, name: str, records: Iterable[Mapping[str, Any]]) -> None:
        """Write evaluations/NAME.jsonl."""
        self._write(write_jsonl, f"evaluations/{name}.jsonl", records)

    def read_evaluation(self, name: str) -> list[dict[str, Any]] | None:
        """Its records, or None where it was never written."""
        table = f"evaluations/{name}.jsonl"
        rows = self._checked(table, read_jsonl)
        return rows if (self.folder / table).exists() else None

    def evaluation_names(self) -> list[str]:
        """Of all that were written, sorted."""
        return sorted(path.stem for path in (self.folder / "evaluations").glob("*.jsonl"))

    def curve(self) -> list[dict[str, Any]]:
        """The evaluations during training so far, one record each."""
        return self.read_evaluation("curve") or []

    def write_inspection(self, name: str, value: Any) -> None:
        """Write something for a person to look at; numbers JSON has no word for become text."""
        self._write(write_json, name, spelled_out(value))

    # ---- end

    def finish(self, result: Mapping[str, Any]) -> None:
        """Write the result; the run counts as finished from here."""
        content = json_bytes(result)
        files = {name: sha256_of(self.folder / name) for name in self._whole_files()}
        files["result.json"] = hashlib.sha256(content).hexdigest()
        self._write_manifest(files)
        self._write(write_atomic, "result.json", content)

    def _whole_files(self) -> list[str]:
        """Names of everything that a report or another run may read."""
        paths = (p.relative_to(self.folder) for p in self.folder.rglob("*") if p.is_file())
        final = (path for path in paths if path.parts[0] not in _WORKING_FILES)
        return sorted(str(p) for p in final if not any(part.startswith(".") for part in p.parts))

    @property
    def result(self) -> dict[str, Any] | None:
        """The result, or None while the run is unfinished."""
        path = self.folder / "result.json"
        if not path.exists():
            return None
        found = self._checked("result.json", read_json)
        if not found:
            raise damaged(path, "it is empty", self.folder)
        if listed_checksum(self.folder, path.name) is None:  # written before the result
            told = f"it has no checksum of {path.name}"
            raise damaged(self.folder / MANIFEST, told, self.folder)
        return found


def _unlocked() -> None:
    """Nobody holds the directory, so nobody can have taken it."""
