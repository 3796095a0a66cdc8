"""`grade`: the same records with a verdict on each response, and how it agrees with older labels.

Enters: files of traces; reference answers in the records, or in a file of problems. Leaves: JSON
lines with the columns COLUMNS added (lists beside a list of responses), and a summary in which
read, graded and skipped add up. Only the answer part of a response is graded, as in training; where
it has no frame, an answer is searched for, which counts in `grade_score_unframed` alone. It decides
nothing about answers: `tasks.grading` does.
"""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from epistill.errors import EpistillError
from epistill.evaluation.stats import bootstrap_ratio
from epistill.readers.record_files import find_files, stem_of
from epistill.readers.text_records import Unusable
from epistill.records import Grade, GraderName, GradeStatus
from epistill.tasks.grading import NO_FRAME, Grader
from epistill.traces import fields
from epistill.traces.fields import Trace
from epistill.traces.file_counts import Reading, hash64
from epistill.traces.measure import nothing_used
from epistill.traces.measure_summary import describe_reading
from epistill.traces.problem_keys import problem_key
from epistill.traces.references import (
    GradeOptions,
    Lookup,
    choose_grader,
    is_cut,
    look_up,
    records_of,
    reference_of,
)
from epistill.traces.tabulate import ClusterSums, split

COLUMNS = ("grade_score", "grade_status", "grade_extracted", "grade_reason", "grade_reference",
           "grade_grader", "grade_frame", "grade_score_unframed")  # fmt: skip
LABEL_FIELDS = tuple(name for name in fields.SCORE_FIELDS if name != "grade_score")
MAX_LISTED = 100  # disagreements that are listed; all are counted
BATCH = 2_000  # responses that are graded together
RESAMPLES = 1_000


@dataclass(frozen=True, slots=True)
class _Entry:
    """One response of a record: its trace and reference, or why it is not graded."""

    place: int
    trace: Trace | None
    reference: str | None
    grader: GraderName | None


@dataclass(slots=True)
class _Totals:
    """What a file's grading adds up to."""

    reading: Reading = field(default_factory=Reading)
    statuses: Counter[str] = field(default_factory=Counter)
    graders: Counter[str] = field(default_factory=Counter)
    sums: ClusterSums = field(default_factory=lambda: ClusterSums(3))
    frames: Counter[str] = field(default_factory=Counter)
    labels: Counter[tuple[bool, bool]] = field(default_factory=Counter)
    agree_unframed: int = 0
    disagreements: list[dict[str, Any]] = field(default_factory=list)


def grade_files(
    paths: Sequence[Path], out: Path | None, options: GradeOptions
) -> list[dict[str, Any]]:
    """Grade files.

    Args:
        paths: Files, or folders of them.
        out: File for one input, folder for several; None writes `NAME.graded.jsonl` beside each.
        options: What to grade.

    Returns:
        For each file: `file`, `written`, `reading`, `statuses`, `score` (share correct, with a 95 %
        interval by problem), `score_with_unframed`, `frames` (responses by the frame of their
        answer), `graders`, and `agreement` with older labels, None without them.

    Raises:
        EpistillError: Nothing to read, no reference answers, or a place that cannot be written.
    """
    found = find_files(paths)
    places = {path: _place(path, out, len(found)) for path in found}
    # What an earlier call wrote into a folder is not graded again, unless it is named.
    files = [path for path in found if path in paths or path not in places.values()]
    if out is not None and len(files) > 1 and out.is_file():
        raise EpistillError(
            f"--out {out} is a file, but {len(files)} files are graded; name a folder"
        )
    places = {path: places[path] for path in files}
    for path, place in places.items():
        if place in files or (place.exists() and place.samefile(path)):
            raise EpistillError(f"{place} would overwrite what is graded; choose another --out")
    if len(set(places.values())) < len(places):
        raise EpistillError("two files would be written to one place; grade them one at a time")
    lookup = None if options.problems is None else look_up(options.problems)
    with Grader(time_limit_s=options.time_limit_s, workers=options.workers) as grader:
        return [_grade_file(path, places[path], options, lookup, grader) for path in files]


def _place(path: Path, out: Path | None, files: int) -> Path:
    name = f"{stem_of(path)}.graded.jsonl"
    if out is None:
        return path.with_name(name)
    return out / name if files > 1 or out.is_dir() else out


def _grade_file(
    path: Path,
    place: Path,
    options: GradeOptions,
    lookup: Lookup | None,
    grader: Grader,
) -> dict[str, Any]:
    totals = _Totals()
    key = problem_key(path, options.response_field, options.problem_field)
    if key.note is not None:
        totals.reading.notes[key.note] = 0
    chosen = options.grader or ("math" if lookup is not None else choose_grader(path, options))
    temporary = place.with_name(f".{place.name}.{os.getpid()}.tmp")
    records = records_of(path, totals.reading)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            while batch := list(islice(records, BATCH)):
                told = replace(options, problem_field=key.field)
                for record in _grade_batch(batch, chosen, told, lookup, grader, totals):
                    file.write(_line(record))
        if not totals.reading.used:
            raise _nothing_graded(path, totals.reading)
        temporary.replace(place)
    except OSError as error:
        raise EpistillError(
            f"could not write {place}: {error.strerror}; make room or choose another --out"
        ) from error
    finally:
        with suppress(OSError):  # where nothing was written, there is nothing to remove
            temporary.unlink()
    return _describe(path, place, totals)


def _line(record: Mapping[str, Any]) -> bytes:
    try:
        return orjson.dumps(record, default=str) + b"\n"
    except orjson.JSONEncodeError:  # lone surrogates and numbers beyond 64 bits
        written = json.dumps(record, default=str)
        # NaN and infinities are null, as orjson writes them; no other JSON reader knows them.
        plain = json.loads(written, parse_constant=lambda _: None)
        return json.dumps(plain).encode() + b"\n"


def _nothing_graded(path: Path, reading: Reading) -> EpistillError:
    if not reading.fields["response"]:
        return nothing_used(path, reading)
    return EpistillError(
        f"{path}: none of {reading.read} responses can be graded: {reading.reasons()}; name the "
        "field of the reference answer with --answer-field, or a file of problems with --problems"
    )


def _grade_batch(
    batch: Sequence[tuple[int, Mapping[str, Any]]],
    chosen: GraderName,
    options: GradeOptions,
    lookup: Lookup | None,
    grader: Grader,
    totals: _Totals,
) -> Iterator[dict[str, Any]]:
    entries: dict[int, list[_Entry]] = defaultdict(list)
    items: list[tuple[GraderName, str, str]] = []
    cut: list[bool] = []
    for i, (row, record) in enumerate(batch):
        for place, found in enumerate(_traces(record, row, options, totals.reading)):
            entry = _entry(place, found, chosen, options, lookup, totals.reading, row)
            entries[i].append(entry)
            if entry.trace is not None and entry.reference is not None and entry.grader is not None:
                answer = split(entry.trace, opened=options.opened).answer
                items.append((entry.grader, entry.reference, answer))
                cut.append(is_cut(entry.trace))
    grades = iter(grader.grade(items, cut=cut, lenient=True))
    for i, (_, record) in enumerate(batch):
        values = [
            None if entry.trace is None else _verdict(entry, next(grades), options, totals)
            for entry in entries[i]
        ]
        several = len(values) > 1 or any(e.trace and e.trace.index is not None for e in entries[i])
        added = {
            name: [None if v is None else v[name] for v in values]
            if several
            else None if values[0] is None else values[0][name]
            for name in COLUMNS
        }  # fmt: skip
        yield {**record, **added}


def _traces(
    record: Mapping[str, Any], row: int, options: GradeOptions, reading: Reading
) -> list[Trace | Unusable]:
    found, name = fields.traces_of(record, row, options.response_field)
    if name is not None:
        reading.fields["response"][name] += len(found)
    reading.read += len(found)
    return found


def _entry(
    place: int,
    found: Trace | Unusable,
    chosen: GraderName,
    options: GradeOptions,
    lookup: Lookup | None,
    reading: Reading,
    row: int,
) -> _Entry:
    """What a response is graded against; if it cannot be, the reason is counted."""
    if isinstance(found, Unusable):
        reading.skip(str(found), row)
        return _Entry(place, None, None, None)
    reference, grader, source = reference_of(found, options, lookup)
    if reference is None:
        reading.skip(source, row)
        return _Entry(place, None, None, None)
    reading.used += 1
    reading.fields["reference"][source] += 1
    return _Entry(place, found, reference, options.grader or grader or chosen)


def _verdict(entry: _Entry, grade: Grade, options: GradeOptions, totals: _Totals) -> dict[str, Any]:
    trace = entry.trace
    assert trace is not None
    assert entry.grader is not None
    with_unframed = grade.score
    if grade.frame == "search":
        grade = replace(grade, status=GradeStatus.UNREADABLE, reason=NO_FRAME)
    totals.frames[grade.frame or "none"] += 1
    totals.statuses[grade.status.value] += 1
    totals.graders[entry.grader] += 1
    problem, name = fields.problem_of(trace, options.problem_field)
    if name is not None:
        totals.reading.fields["problem"][name] += 1
    key = f"{trace.row}\0{entry.place}" if problem is None else problem
    totals.sums.add([hash64(key)], np.array([[grade.score, 1.0, with_unframed]]))
    _compare_label(trace, entry, grade, with_unframed, options, totals)
    return dict(
        zip(
            COLUMNS,
            (
                grade.score,
                grade.status.value,
                grade.extracted,
                grade.reason or None,
                entry.reference,
                entry.grader,
                grade.frame or None,
                with_unframed,
            ),
            strict=True,
        )
    )


def _compare_label(
    trace: Trace,
    entry: _Entry,
    grade: Grade,
    with_unframed: float,
    options: GradeOptions,
    totals: _Totals,
) -> None:
    names = LABEL_FIELDS if options.label_field is None else (options.label_field,)
    try:
        label, name = fields.number_of(trace, names, "label")
    except EpistillError:  # words: no verdict, though a field has the name of one
        return
    if label is None or name is None:
        return
    totals.reading.fields["label"][name] += 1
    ours, theirs = grade.status is GradeStatus.CORRECT, label > 0.5
    totals.labels[ours, theirs] += 1
    totals.agree_unframed += (with_unframed > 0) == theirs
    if ours != theirs and len(totals.disagreements) < MAX_LISTED:
        totals.disagreements.append(
            {
                "row": trace.row,
                "response": entry.place,
                "label": label,
                "grade": grade.status.value,
                "extracted": grade.extracted,
                "reference": (entry.reference or "")[:200],
                "reason": grade.reason or None,
            }
        )


def _describe(path: Path, place: Path, totals: _Totals) -> dict[str, Any]:
    sums = totals.sums.sums
    score, unframed = bootstrap_ratio(sums[:, ::2], sums[:, [1, 1]], resamples=RESAMPLES)
    labels = totals.labels
    agreement = None
    if labels:
        both, ours, theirs, neither = (
            labels[True, True], labels[True, False], labels[False, True], labels[False, False]
        )  # fmt: skip
        agreement = {
            "labelled": labels.total(),
            "agree": both + neither,
            "agree_with_unframed": totals.agree_unframed,
            "correct_here_wrong_there": ours,
            "wrong_here_correct_there": theirs,
            "disagreements": totals.disagreements,
        }
    return {
        "file": str(path),
        "written": str(place),
        "reading": {
            name: value
            for name, value in describe_reading(totals.reading).items()
            if name != "repeated_responses"
        },
        "statuses": {status.value: totals.statuses[status.value] for status in GradeStatus},
        "graders": dict(totals.graders),
        "problems": None if totals.sums.folded else len(sums),
        "score": None if score is None else asdict(score),
        "score_with_unframed": None if unframed is None else asdict(unframed),
        "frames": dict(totals.frames),
        "agreement": agreement,
    }
