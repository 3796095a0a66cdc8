"""Finished work of a server pool on disk, so that a command that failed goes on where it stopped.

Enters and leaves: JSON values by key, one line each, appended as they come. A half-written last
line (a killed writer) is left out and written over.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Any

from epistill.errors import EpistillError


class KeptReplies(MutableMapping[str, Any]):
    """A mapping that outlives its process.

    Args:
        path: A JSONL file; created on the first write. One process at a time.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._known: dict[str, Any] = {}
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            whole, newline, torn = text.rpartition("\n")
            for line in whole.split("\n") if newline else ():
                key, value = json.loads(line)
                self._known[key] = value
            if torn:
                self._write("w", whole + newline)

    def __getitem__(self, key: str) -> Any:
        return self._known[key]

    def __setitem__(self, key: str, value: Any) -> None:
        with self._lock:
            self._write("a", json.dumps([key, value], allow_nan=False) + "\n")
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
