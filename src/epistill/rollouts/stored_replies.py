"""Finished work of servers on disk, so that a command that failed goes on where it stopped.

Enters and leaves: JSON values by key, one line each with its SHA-256, appended as they come. A
half-written last line (a killed writer) is left out; a damaged one is asked for again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from collections import UserDict
from pathlib import Path
from typing import Any

from epistill.errors import EpistillError, damaged


class StoredReplies(UserDict[str, Any]):
    """A mapping that outlives its process; entries are added or all removed, never changed.

    Args:
        path: A JSONL file; created on the first write. One process at a time.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path, self._lock = path, threading.Lock()
        if path.exists() and not path.is_file():
            raise damaged(path, "it is no file")
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        *whole, last = text.split("\n")
        self._torn = bool(last)
        for number, line in enumerate(whole, 1):
            try:
                key, value, sha256 = json.loads(line)
                if _sha256(key, value) != sha256:
                    raise ValueError("another checksum")
                self.data[key] = value
            except (ValueError, TypeError, RecursionError):
                logging.getLogger("epistill").warning(
                    "%s line %d is damaged; that reply is asked for again", path, number
                )

    def __setitem__(self, key: str, value: Any) -> None:
        line = json.dumps([key, value, _sha256(key, value)], allow_nan=False) + "\n"
        with self._lock:
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                with self._path.open("a", encoding="utf-8") as out:
                    out.write("\n" + line if self._torn else line)
            except OSError as error:
                raise EpistillError(
                    f"could not write {self._path}: {error.strerror}; make room or choose another "
                    "folder"
                ) from error
            self._torn = False
            self.data[key] = value

    def clear(self) -> None:
        """Forget everything, on disk too."""
        with self._lock:
            self._path.unlink(missing_ok=True)
            self.data.clear()


def _sha256(key: str, value: Any) -> str:
    return hashlib.sha256(json.dumps([key, value]).encode()).hexdigest()
