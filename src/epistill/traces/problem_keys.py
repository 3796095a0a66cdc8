"""Whether what tells the problems of a file apart can be believed; it decides every interval.

Enters: a file, and the field that the user named, if any. Leaves: the field to use (or the
question's text, or an id without its sample number), the filter whose rows count where a file has
its responses once for each filter, and what must be said about it. Only the first PEEKED records
(or 4 MB) are looked at.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from epistill.readers.record_files import pieces_of, read_piece
from epistill.readers.text_records import Unusable
from epistill.traces.fields import (
    BY_QUESTION,
    BY_STEM,
    KNOWN_FIELDS,
    NAMES,
    problem_of,
    question_of,
    stem_end,
    traces_of,
)

PEEKED = 2_000
BATCHES = 8  # of half a megabyte, if they hold fewer


@dataclass(frozen=True, slots=True)
class ProblemKey:
    """How the problems of a file are told apart.

    Attributes:
        field: For `fields.problem_of`.
        filter: Of lm-evaluation-harness, which writes its responses once for each filter.
        note: What a reader must know; None where nothing is odd.
    """

    field: str | None
    filter: str | None
    note: str | None


def problem_key(path: Path, response_field: str | None, problem_field: str | None) -> ProblemKey:
    """Look at the first records of a file, once for what it holds now."""
    now = path.stat()
    return _problem_key(path, (now.st_mtime_ns, now.st_size), response_field, problem_field)


@lru_cache(maxsize=256)
def _problem_key(
    path: Path, version: tuple[int, int], response_field: str | None, problem_field: str | None
) -> ProblemKey:
    named = tuple(name for name in (response_field, problem_field) if name)
    batches = (
        rows for piece in pieces_of(path) for rows in read_piece(piece, (*KNOWN_FIELDS, *named))
    )
    records = (row.record for rows in islice(batches, BATCHES) for row in rows)
    keys: list[str] = []
    questions: list[str | None] = []
    fields: set[str] = set()
    several = False
    first_filter = None
    for number, record in enumerate(islice(records, PEEKED)):
        if record is None or isinstance(record, Unusable):
            continue
        first_filter = first_filter or filter_of(record)
        found, _ = traces_of(record, number, response_field)
        if isinstance(found[0], Unusable) or filter_of(record) != first_filter:
            continue
        several |= len(found) > 1
        key, name = problem_of(found[0], problem_field)
        if key is not None and name is not None:
            keys.append(key)
            fields.add(name)
            questions.append(question_of(found[0])[0])
    field, note = _judged(keys, questions, fields, problem_field)
    if several and field is None:
        note = None  # a record that holds all samples of a problem has an id of its own
    return ProblemKey(field, first_filter, note)


def filter_of(record: Mapping[str, Any]) -> str | None:
    """The filter of a record that lm-evaluation-harness wrote; None for any other."""
    return record.get("filter") if "resps" in record or "filtered_resps" in record else None


def _judged(
    keys: list[str], questions: list[str | None], fields: set[str], named: str | None
) -> tuple[str | None, str | None]:
    if len(keys) < 2 or not fields.isdisjoint(NAMES["question"]):
        return named, None
    one, each = len(set(keys)) == 1, len(set(keys)) == len(keys)
    if not one and not each:
        return named, None
    what = f"{', '.join(sorted(fields))} is {'the same' if one else 'different'} in every record"
    asked = None if None in questions else len(set(questions))
    if named is not None:
        odd = asked is not None and (asked > 1 if one else asked < len(keys))
        return named, f"{what}, the questions are not; intervals rest on it" if odd else None
    if asked is not None and (asked > 1 if one else asked < len(keys)):
        return BY_QUESTION, f"{what}: problems are told apart by the text of the question"
    if each and asked is None:
        if _is_grid(keys):
            return BY_STEM, f"{what}: problems are told apart by it without the number at its end"
        return None, f"{what}: each counts as a problem of its own; if not, name --problem-field"
    return None, None


def _is_grid(keys: list[str]) -> bool:
    """Whether every stem has the same several numbers, as samples of a problem would.

    The last stem may be incomplete, where only the first records were looked at.
    """
    ends: defaultdict[str, set[str]] = defaultdict(set)
    last = ""
    for key in keys:
        end = stem_end(key)
        if not end:
            return False
        last = key.removesuffix(end)
        ends[last].add(end)
    if len(ends) > 1 and len(ends[last]) < len(next(iter(ends.values()))):
        del ends[last]
    numbers = list(ends.values())
    return len(numbers) > 1 and len(numbers[0]) > 1 and all(n == numbers[0] for n in numbers)
