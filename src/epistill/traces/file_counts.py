"""The bookkeeping of a file: every record is used or skipped with a reason, and the counts add up.

Enters: what a piece of a file yielded. Leaves: `Reading`, which pieces of one file merge into one.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

# Repeated responses are looked for among so many; beyond, their keys would cost too much memory.
MAX_KEYS = 5_000_000


@dataclass(slots=True)
class Reading:
    """What became of every record; `read` is `used` and all `skipped` together.

    Attributes:
        rows: Lines or rows of the file, empty lines included.
        records: Lines or rows that are not empty.
        read: Responses, and records that yield none.
        skipped: Reason to (how many, row of the first).
        fields: What was looked for (response, problem, ...) to the fields that had it, counted.
        keys: Hash and row of each response's identity, to find repeated ones.
    """

    rows: int = 0
    records: int = 0
    read: int = 0
    used: int = 0
    skipped: dict[str, tuple[int, int]] = field(default_factory=dict)
    fields: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    keys: list[NDArray[np.uint64]] = field(default_factory=list)

    def skip(self, reason: str, row: int, count: int = 1) -> None:
        """Count skipped responses."""
        before, first = self.skipped.get(reason, (0, row))
        self.skipped[reason] = (before + count, first)

    def reasons(self) -> str:
        """Why responses were skipped, for an error; "" where none were."""
        return ", ".join(
            f"{count} {reason} (first in row {row})"
            for reason, (count, row) in self.skipped.items()
        )

    def merge(self, other: Reading) -> None:
        """Add what the next piece of the same file found."""
        for reason, (count, row) in other.skipped.items():
            self.skip(reason, self.rows + row, count)
        for keys in other.keys:
            keys[1] += np.uint64(self.rows)
            self.keys.append(keys)
        for role, names in other.fields.items():
            self.fields[role].update(names)
        self.rows += other.rows
        self.records += other.records
        self.read += other.read
        self.used += other.used

    def repeated(self) -> tuple[int, int] | None:
        """Responses that have the identity of an earlier one, and the row of the first of them.

        The identity is problem and sample number, or problem and text where samples have no
        number. None where there are more than MAX_KEYS responses.
        """
        if self.used > MAX_KEYS:
            return None
        if not self.keys:
            return 0, 0
        keys, rows = np.concatenate(self.keys, axis=1)
        order = np.argsort(keys, kind="stable")
        again = order[1:][keys[order[1:]] == keys[order[:-1]]]
        return again.size, int(rows[again].min()) if again.size else 0


def hash64(text: str) -> int:
    """The same in every process, unlike `hash`."""
    data = text.encode(errors="surrogatepass")
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "little")


def identity_key(problem: str | None, sample: object, text: str) -> int:
    """Tells responses apart: by problem and sample number, or by problem and text without one."""
    return hash64(f"{problem}\0{text if sample is None else sample}")
