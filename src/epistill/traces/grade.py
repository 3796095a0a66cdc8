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
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from epistill.errors import EpistillError, did_you_mean
from epistill.evaluation.stats import bootstrap_ratio
from epistill.readers.record_files import find_files, stem_of
from epistill.readers.text_records import Unusable
from epistill.records import Grade, GraderName, GradeStatus
from epistill.tasks.grading import NO_FRAME, Grader
from epistill.traces import fields
from epistill.traces.fields import Trace
from epistill.traces.file_counts import Reading, hash64
from epistill.traces.measure import fields_found, nothing_used
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


@dataclass(slots=True)
class _Totals:
    """What a file's grading adds up to."""

    reading: Reading
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
    key = problem_key(path, options.response_field, options.problem_field)
    totals = _Totals(Reading.begun(key.note))
    chosen = options.grader or ("math" if lookup is not None else choose_grader(path, options, key))
    temporary = place.with_name(f".{place.name}.{os.getpid()}.tmp")
    records = records_of(path, totals.reading, key)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            while batch := list(islice(records, BATCH)):
                told = replace(options, problem_field=key.field)
                for record in _grade_batch(batch, chosen, told, lookup, grader, totals):
                    file.write(_line(record))
        if not totals.reading.used:
            raise _nothing_graded(path, totals.reading, options)
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


def _nothing_graded(path: Path, reading: Reading, options: GradeOptions) -> EpistillError:
    if not reading.fields["response"]:
        return nothing_used(path, reading, options.response_field)
    found = fields_found(path)
    return EpistillError(
        f"{path}: none of {reading.read} responses can be graded: {reading.reasons()}; fields "
        f"found: {', '.join(found)}; name that of the reference answer with --answer-field, or a "
        f"file of problems with --problems{did_you_mean(options.answer_field or '', found)}"
    )


_Asked = tuple[Trace, str, GraderName]  # what is graded, against what, by whom


def _grade_batch(
    batch: Sequence[tuple[int, Mapping[str, Any]]],
    chosen: GraderName,
    options: GradeOptions,
    lookup: Lookup | None,
    grader: Grader,
    totals: _Totals,
) -> Iterator[dict[str, Any]]:
    entries = [
        _asked(row, record, chosen, options, lookup, totals.reading) for row, record in batch
    ]
    asked = [one for found in entries for one in found if one is not None]
    grades = iter(
        grader.grade(
            [(kind, gold, _answer(one, options)) for one, gold, kind in asked],
            cut=[is_cut(trace) for trace, _, _ in asked],
            lenient=True,
        )
    )
    for (_, record), found in zip(batch, entries, strict=True):
        verdicts = [
            None if one is None else _verdict(one, place, next(grades), options, totals)
            for place, one in enumerate(found)
        ]
        if len(found) > 1 or any(one is not None and one[0].index is not None for one in found):
            added = {name: [v and v[name] for v in verdicts] for name in COLUMNS}
        else:
            added = verdicts[0] or dict.fromkeys(COLUMNS)
        yield {**record, **added}


def _answer(trace: Trace, options: GradeOptions) -> str:
    """The answer part; white space behind it, which says that a cut answer was complete, stays."""
    return split(trace, opened=options.opened).answer + trace.text[len(trace.text.rstrip()) :]


def _asked(
    row: int,
    record: Mapping[str, Any],
    chosen: GraderName,
    options: GradeOptions,
    lookup: Lookup | None,
    reading: Reading,
) -> list[_Asked | None]:
    """The responses of a record; None for one that cannot be graded, whose reason is counted."""
    found, name = fields.traces_of(record, row, options.response_field)
    if name is not None:
        reading.fields["response"][name] += len(found)
    reading.read += len(found)
    asked: list[_Asked | None] = []
    for one in found:
        reference, named, source = None, None, str(one)
        if not isinstance(one, Unusable):
            reference, named, source = reference_of(one, options, lookup)
            if source == name:  # EvalPlus calls the response a solution
                reference, source = None, "no reference answer"
        if isinstance(one, Unusable) or reference is None:
            reading.skip(source, row)
            asked.append(None)
            continue
        reading.used += 1
        reading.fields["reference"][source] += 1
        asked.append((one, reference, options.grader or named or chosen))
    return asked


def _verdict(
    asked: _Asked, place: int, grade: Grade, options: GradeOptions, totals: _Totals
) -> dict[str, Any]:
    trace, reference, grader = asked
    with_unframed = grade.score
    if grade.frame == "search":
        grade = replace(grade, status=GradeStatus.UNREADABLE, reason=NO_FRAME)
    totals.frames[grade.frame or "none"] += 1
    totals.statuses[grade.status.value] += 1
    totals.graders[grader] += 1
    problem, name = fields.problem_of(trace, options.problem_field)
    if name is not None:
        totals.reading.fields["problem"][name] += 1
    key = f"{trace.row}\0{place}" if problem is None else problem
    totals.sums.add([hash64(key)], np.array([[grade.score, 1.0, with_unframed]]))
    values = (
        grade.score, grade.status.value, grade.extracted, grade.reason or None, reference, grader,
        grade.frame or None, with_unframed,
    )  # fmt: skip
    verdict: dict[str, Any] = dict(zip(COLUMNS, values, strict=True))
    _compare_label(trace, place, verdict, options, totals)
    return verdict


def _compare_label(
    trace: Trace, place: int, verdict: dict[str, Any], options: GradeOptions, totals: _Totals
) -> None:
    names = LABEL_FIELDS if options.label_field is None else (options.label_field,)
    try:
        label, name = fields.number_of(trace, names, "label")
    except EpistillError:  # words: no verdict, though a field has the name of one
        return
    if label is None or name is None:
        return
    totals.reading.fields["label"][name] += 1
    ours, theirs = verdict["grade_status"] == GradeStatus.CORRECT.value, label > 0.5
    totals.labels[ours, theirs] += 1
    totals.agree_unframed += (verdict["grade_score_unframed"] > 0) == theirs
    if ours != theirs and len(totals.disagreements) < MAX_LISTED:
        totals.disagreements.append(
            {
                "row": trace.row,
                "response": place,
                "label": label,
                "grade": verdict["grade_status"],
                "extracted": verdict["grade_extracted"],
                "reference": verdict["grade_reference"][:200],
                "reason": verdict["grade_reason"],
            }
        )


def _describe(path: Path, place: Path, totals: _Totals) -> dict[str, Any]:
    sums = totals.sums.sums
    score, unframed = bootstrap_ratio(sums[:, ::2], sums[:, [1, 1]], resamples=RESAMPLES)
    labels = totals.labels
    agreement = {
        "labelled": labels.total(),
        "agree": labels[True, True] + labels[False, False],
        "agree_with_unframed": totals.agree_unframed,
        "correct_here_wrong_there": labels[True, False],
        "wrong_here_correct_there": labels[False, True],
        "disagreements": totals.disagreements,
    }
    reading = describe_reading(totals.reading)
    del reading["repeated_responses"]
    return {
        "file": str(path),
        "written": str(place),
        "reading": reading,
        "statuses": {status.value: totals.statuses[status.value] for status in GradeStatus},
        "graders": dict(totals.graders),
        "problems": None if totals.sums.folded else len(sums),
        "score": score and score.as_dict(),
        "score_with_unframed": unframed and unframed.as_dict(),
        "frames": dict(totals.frames),
        "agreement": agreement if labels else None,
    }
