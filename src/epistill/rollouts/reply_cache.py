"""Finished work of a server pool on disk, so that a command that failed goes on where it stopped.

Enters and leaves: JSON values by key, one line each with its SHA-256, appended as they come. A
half-written last line (a killed writer) is left out and written over; a damaged one is asked again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Any

from epistill.errors import EpistillError, damaged


class KeptReplies(MutableMapping[str, Any]):
    """A mapping that outlives its process.

    Args:
        path: A JSONL file; created on the first write. One process at a time.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._known: dict[str, Any] = {}
        if path.exists() and not path.is_file():
            raise damaged(path, "it is no file")
        if path.is_file():
            text = path.read_text(encoding="utf-8", errors="replace")
            whole, newline, torn = text.rpartition("\n")
            for number, line in enumerate(whole.split("\n") if newline else (), 1):
                try:
                    key, value, sha256 = json.loads(line)
                    if _sha256(key, value) != sha256:
                        raise ValueError("another checksum")
                    self._known[key] = value
                except (ValueError, TypeError, RecursionError):
                    logging.getLogger("epistill").warning(
                        "%s line %d is damaged; that reply is asked for again", path, number
                    )
            if torn:
                self._write("w", whole + newline)

    def __getitem__(self, key: str) -> Any:
        return self._known[key]

    def __setitem__(self, key: str, value: Any) -> None:
        with self._lock:
            record = [key, value, _sha256(key, value)]
            self._write("a", json.dumps(record, allow_nan=False) + "\n")
            self._known[key] = value

    def __delitem__(self, key: str) -> None:
        raise EpistillError("kept replies are never deleted one by one; remove the file instead")

    def clear(self) -> None:
        """Forget everything, on disk too."""
        with self._lock:
            self._path.unlink(missing_ok=True)
            self._known.clear()

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(self._known))

    def __len__(self) -> int:
        return len(self._known)

    def _write(self, mode: str, text: str) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open(mode, encoding="utf-8") as out:
                out.write(text)
        except OSError as error:
            raise EpistillError(
                f"could not write {self._path}: {error.strerror}; make room or choose another "
                "folder"
            ) from error


def _sha256(key: str, value: Any) -> str:
    return hashlib.sha256(json.dumps([key, value]).encode()).hexdigest()
