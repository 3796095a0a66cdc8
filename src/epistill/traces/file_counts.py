"""The bookkeeping of a file: every record is used or skipped with a reason, and the counts add up.

Enters: what a piece of a file yielded. Leaves: `Reading`, which pieces of one file merge into one.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from epistill.thinking import SplitResponse, unknown_notation
from epistill.traces.fields import Trace, stop_of

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
        notes: What a reader must know, and for how many responses (0 for the whole file).
    """

    rows: int = 0
    records: int = 0
    read: int = 0
    used: int = 0
    skipped: dict[str, tuple[int, int]] = field(default_factory=dict)
    fields: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    keys: list[NDArray[np.uint64]] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)

    @classmethod
    def begun(cls, note: str | None) -> Reading:
        """Of a file about which this is known already."""
        return cls(notes=Counter({} if note is None else {note: 0}))

    def skip(self, reason: str, row: int, count: int = 1) -> None:
        """Count skipped responses."""
        before, first = self.skipped.get(reason, (0, row))
        self.skipped[reason] = (before + count, first)

    def note(self, trace: Trace, part: SplitResponse) -> str | None:
        """Count what is odd about a response; the field that says how it ended, if one does."""
        kind, name = stop_of(trace)
        if kind == "interrupted":
            self.notes["ended by the server (abort, filter, error, ...): counted as cut"] += 1
        elif kind not in ("ended", "cut", None):
            word = repr(kind if len(kind) <= 40 else kind[:37] + "...")
            self.notes[f"stop reason {word} in {name} is not known: neither an end nor a cut"] += 1
            name = None
        if trace.turns > 1:
            self.notes["several turns of the assistant are one response"] += 1
        if part.form == "absent" and (tag := unknown_notation(trace.text)) is not None:
            self.notes[
                f"{tag} looks like thinking in a notation that is not known: taken for answer; "
                "write <think> and </think> instead"
            ] += 1
        return name

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
        self.notes.update(other.notes)
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
