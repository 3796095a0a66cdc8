"""Finished work of servers on disk, so that a command that failed goes on where it stopped.

JSON values by key, one line each with its SHA-256, appended as they come. A half-written last line
(a killed writer) is left out; a damaged one is asked for again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from collections import UserDict
from pathlib import Path
from typing import Any

from epistill.errors import damaged
from epistill.json_files import append_text, remove_file


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
        self._before = "\n" if last else ""
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
            append_text(self._path, self._before + line)
            self._before = ""
            self.data[key] = value

    def clear(self) -> None:
        """Forget everything, on disk too."""
        with self._lock:
            remove_file(self._path)
            self.data.clear()


def _sha256(key: str, value: Any) -> str:
    return hashlib.sha256(json.dumps([key, value]).encode()).hexdigest()
