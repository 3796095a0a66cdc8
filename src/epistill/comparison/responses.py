"""The sides of a comparison: what each response contributes.

Enters: a `Source`. Leaves: a `Side`: responses by evaluation set with problem, recorded score,
answers, lengths and markers, and everything that the files say about how they were sampled. Texts
are not kept but for the page's sample; what must look at them again walks the files again.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from epistill.comparison.sources import Source
from epistill.errors import EpistillError
from epistill.metrics.verification import Checked, checked_response
from epistill.readers.record_files import pieces_of, read_piece
from epistill.records import GraderName
from epistill.thinking import SplitResponse
from epistill.traces import fields
from epistill.traces.fields import Trace
from epistill.traces.file_counts import Reading, hash64, identity_key
from epistill.traces.measure import (
    Options,
    note_problem_key,
    settle,
    shorten,
    tabulator,
    usable,
)
from epistill.traces.references import final_answer, grader_in, reference_in

CHECKED = ("verified", "committed", "candidates")  # the fields of `Checked`
NO_PROBLEM = "no problem named"
# What decides how a response was drawn. `n` and `seed` do not: they decide which were drawn.
SETTINGS = ("temperature", "top_p", "top_k", "min_p", "max_tokens", "max_new_tokens",
            "max_completion_tokens", "repetition_penalty", "presence_penalty", "frequency_penalty",
            "enable_thinking")  # fmt: skip
CONTAINERS = ("sampling", "sampling_params", "sampling_config", "generation_config", "gen_kwargs")
_SAME = {"max_new_tokens": "max_tokens", "max_completion_tokens": "max_tokens",
         "enable_thinking": "thinking"}  # fmt: skip
_NOT_SETTINGS = {"n", "seed", "stop", "num_return_sequences"}


@dataclass(frozen=True, slots=True)
class Response:
    """What one response contributes.

    Attributes:
        problem: The cluster.
        score: As the record says; None where it does not.
        answer: Extracted answer, for maj@k; None where none could be read.
        reference: What it would be graded against; None where the record does not say.
        grader: The grader the record names.
        question: Hash of the question as asked; None where the record has none.
        words: Length.
        tokens: Length; None where neither tokenizer nor record says.
        markers: By lexicon, None where the text was not kept and only the paper's were counted.
        looping: Its end only repeats itself; None where the text was not kept.
        has_text: The text was kept.
        checked: Whether its answer was verified before it was given.
    """

    problem: str
    score: float | None
    answer: str | None
    reference: str | None
    grader: GraderName | None
    question: int | None
    words: int
    tokens: int | None
    markers: tuple[int | None, ...]
    looping: bool | None
    has_text: bool
    checked: Checked


@dataclass(frozen=True, slots=True)
class Kept:
    """A trace for the page: the sample is made of the lowest priorities, problem first.

    Attributes:
        set, place: Its evaluation set, and its place among the responses of that set.
    """

    priority: tuple[int, int]
    set: str
    place: int
    row: int
    problem: str
    thinking: str
    answer: str


@dataclass(slots=True)
class Side:
    """One side, read."""

    source: Source
    sets: dict[str, list[Response]] = field(default_factory=dict)
    readings: dict[Path, Reading] = field(default_factory=dict)
    formats: dict[Path, str] = field(default_factory=dict)
    settings: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    kept: list[Kept] = field(default_factory=list)


def walk(
    source: Source, name: str, options: Options, readings: dict[Path, Reading] | None = None
) -> Iterator[tuple[Reading, list[tuple[str, Trace]]]]:
    """The responses of a set with their problems, in batches, in the same order every time.

    With each batch comes the bookkeeping of the piece that it is from.

    Args:
        source: From `find_sources`.
        name: The set.
        options: Which fields to read.
        readings: Filled with what was read, used and skipped; None where that is known already.
    """
    for path in source.sets[name]:
        whole = Reading()
        settled = settle(path, options)
        for piece in pieces_of(path):
            part = Reading()
            for rows in read_piece(piece):
                batch: list[tuple[str, Trace]] = []
                for row in rows:
                    counted = _counted_record(row.record)
                    if counted is not None:
                        part.rows, part.records = row.number, part.records + 1
                        part.read, part.used = part.read + 1, part.used + 1
                        traces = [Trace("", counted, row.number)]
                    else:
                        traces = usable([row], part, settled)
                    for trace in traces:
                        problem = _problem(trace, part, settled)
                        if problem is not None:
                            # Rows of a piece are counted from its start, rows of a file from 1.
                            place = replace(trace, row=trace.row + whole.rows)
                            batch.append((problem, place))
                if batch:
                    yield part, batch
            whole.merge(part)
        if readings is not None:
            note_problem_key(path, whole, options)
            readings[path] = whole


def _counted_record(record: Any) -> Mapping[str, Any] | None:
    """An evaluation's record whose text was not kept: its counts stand in for it."""
    if not isinstance(record, Mapping) or record.get("text", "") is not None:
        return None
    needed = ("problem_id", "n_tokens", "n_words", "n_markers", "correct")
    return record if all(record.get(name) is not None for name in needed) else None


def _problem(trace: Trace, reading: Reading, options: Options) -> str | None:
    problem, name = fields.problem_of(trace, options.problem_field)
    if name is None or problem is None:
        reading.used -= 1
        reading.skip(NO_PROBLEM, trace.row)
        return None
    reading.fields["problem"][name] += 1
    sample, _ = trace.first(fields.SAMPLE_FIELDS)
    key = identity_key(problem, sample, trace.text)
    reading.keys.append(np.array([[key], [trace.row]], np.uint64))
    return problem


def read_side(source: Source, options: Options) -> Side:
    """Read one side.

    Raises:
        EpistillError: A file without one usable response.
    """
    side = Side(source)
    for name, files in source.sets.items():
        for path in files:
            side.formats[path] = next((piece.format for piece in pieces_of(path)), "parquet")
        responses = side.sets.setdefault(name, [])
        for reading, batch in walk(source, name, options, side.readings):
            try:
                _add(side, name, responses, batch, reading, options)
            except EpistillError as error:
                raise EpistillError(f"{' or '.join(map(str, files))}: {error}") from error
        if not responses:
            reasons = ", ".join(filter(None, (side.readings[path].reasons() for path in files)))
            raise EpistillError(
                f"{files[0]}: no response can be used ({reasons or 'zero rows'}); expected "
                "responses and what tells their problems apart; name the fields with "
                "--response-field and --problem-field"
            )
    side.kept = heapq.nsmallest(options.keep, side.kept, key=lambda k: k.priority)
    if source.settings is not None:
        for setting, value in source.settings.items():
            side.settings[_SAME.get(setting, setting)].add(_shown_value(value))
    return side


def _add(
    side: Side,
    name: str,
    responses: list[Response],
    batch: list[tuple[str, Trace]],
    reading: Reading,
    options: Options,
) -> None:
    counter = tabulator(options)
    table, parts = counter.tabulate([trace for _, trace in batch])
    place = {one: counter.columns[f"{one.name}.words"] for one in counter.lexicons}
    words = table[:, counter.columns["words"]].sum(axis=1)
    tokens = table[:, counter.columns["tokens"]].sum(axis=1)
    known = table[:, counter.columns["with_tokens"]].sum(axis=1)
    looping = table[:, counter.columns["looping"]].sum(axis=1)
    markers = np.stack([table[:, columns].sum(axis=1) for columns in place.values()], axis=1)
    for i, ((problem, trace), part) in enumerate(zip(batch, parts, strict=True)):
        _note_settings(trace, side.settings)
        counted = trace.record if _counted_record(trace.record) is not None else None
        if (stop := reading.note(trace, part)) is not None:
            reading.fields["stop"][stop] += 1
        counts: tuple[int | None, ...] = tuple(int(count) for count in markers[i])
        if counted is not None:
            counts = tuple(
                counted["n_markers"] if j == 0 and options.lexicons[0] == "paper-en" else None
                for j in range(len(counts))
            )
        score, _ = fields.number_of(trace, fields.SCORE_FIELDS, "score")
        question, _ = fields.question_of(trace)
        responses.append(
            Response(
                problem=problem,
                score=score,
                answer=(answer := final_answer(trace, part)),
                reference=_reference(trace),
                grader=grader_in(trace, ("grade_grader", "grader")),
                question=None if question is None else hash64(" ".join(question.split())),
                words=int(words[i]) if counted is None else counted["n_words"],
                tokens=int(tokens[i]) if known[i] else None,
                markers=counts,
                looping=bool(looping[i]) if counted is None else None,
                has_text=counted is None,
                checked=checked_response(trace.text, part, answer)
                if counted is None
                else Checked(*(counted.get(name) for name in CHECKED)),
            )
        )
        if options.keep and counted is None:
            _keep(side, name, len(responses) - 1, problem, trace, part, options)


def _keep(
    side: Side,
    name: str,
    place: int,
    problem: str,
    trace: Trace,
    part: SplitResponse,
    options: Options,
) -> None:
    # Equal on both sides for a problem, so that traces of the same problems are kept.
    first = hash64(f"{options.seed}\0{name}\0{problem}")
    second = hash64(f"{options.seed}\0{trace.row}\0{trace.index}\0{trace.text[:99]}")
    kept = Kept(
        (first, second), name, place, trace.row, problem, shorten(part.thinking),
        shorten(part.answer),
    )  # fmt: skip
    side.kept.append(kept)
    if len(side.kept) > 2 * options.keep:
        side.kept = heapq.nsmallest(options.keep, side.kept, key=lambda k: k.priority)


def _reference(trace: Trace) -> str | None:
    """What `epistill grade` graded against, else what the record says."""
    graded, _ = trace.first(("grade_reference",))
    return graded if isinstance(graded, str) else reference_in(trace.alone())[0]


def _note_settings(trace: Trace, found: dict[str, set[str]]) -> None:
    for key, value in trace.record.items():
        if key in SETTINGS:
            found[_SAME.get(key, key)].add(_shown_value(value))
        elif key in CONTAINERS and isinstance(value, Mapping):
            for key_inside, inner in value.items():
                name = str(key_inside)
                if name not in _NOT_SETTINGS and not isinstance(inner, Mapping | list):
                    found[_SAME.get(name, name)].add(_shown_value(inner))


def _shown_value(value: Any) -> str:
    # 1 and 1.0 are one temperature.
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = float(value)
        return f"{value:g}"
    return orjson.dumps(value, default=str).decode()
