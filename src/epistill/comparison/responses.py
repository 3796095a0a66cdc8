"""The sides of a comparison: what each response contributes.

Enters: a `Source`. Leaves: a `Side`: responses by evaluation set with problem, recorded score,
answers, lengths and markers, and everything that the files say about how they were sampled. Texts
are not kept but for the page's sample; what must look at them again walks the files again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from epistill.comparison.sources import Source
from epistill.config import EvalSet
from epistill.errors import EpistillError, did_you_mean
from epistill.metrics.lexicon import load_lexicon
from epistill.metrics.verification import Checked, checked_response
from epistill.readers.record_files import Piece, pieces_of, read_piece
from epistill.records import GraderName
from epistill.traces import fields
from epistill.traces.fields import Trace
from epistill.traces.file_counts import Reading, hash64, identity_key
from epistill.traces.measure import fields_found, shorten, tabulator, usable
from epistill.traces.options import Options
from epistill.traces.references import final_answer, grader_in, reference_in

NO_PROBLEM = "no problem named"
# What decides how a response was drawn. `n` and `seed` do not: they decide which were drawn.
SETTINGS = ("temperature", "top_p", "top_k", "min_p", "max_tokens", "max_new_tokens",
            "max_completion_tokens", "repetition_penalty", "presence_penalty", "frequency_penalty",
            "enable_thinking", "force", "block")  # fmt: skip
CONTAINERS = ("sampling", "sampling_params", "sampling_config", "generation_config", "gen_kwargs")
_SAME = {"max_new_tokens": "max_tokens", "max_completion_tokens": "max_tokens",
         "enable_thinking": "thinking"}  # fmt: skip
_NOT_SETTINGS = {"n", "seed", "stop", "num_return_sequences", "batch_rows"}


@dataclass(slots=True)
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
        checked: Whether its answer was verified before it was given.
        shown: Row, thinking and answer, for the page; None where it is not in the sample.
        graded: The grader's score; None where there is no text or no reference answer.
        prefixes: The same of its first so many tokens, for each budget; empty without `graded`.
        within: Whether it ended within the budget.
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
    checked: Checked
    shown: tuple[int, str, str] | None = None
    graded: float | None = None
    prefixes: list[float] = field(default_factory=list)
    within: list[bool] = field(default_factory=list)


@dataclass(slots=True)
class Side:
    """One side, read."""

    source: Source
    settled: Mapping[Path, Options]
    sets: dict[str, list[Response]] = field(default_factory=dict)
    readings: dict[Path, Reading] = field(default_factory=dict)
    pieces: dict[Path, list[Piece]] = field(default_factory=dict)
    settings: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    sample: list[tuple[tuple[int, int], Response]] = field(default_factory=list)

    def files(self, name: str) -> dict[Path, Options]:
        """Of a set, with what was settled for each."""
        return {path: self.settled[path] for path in self.source.sets[name]}

    def draw(self, count: int) -> None:
        """Show on the page only the responses of lowest priority."""
        self.sample.sort(key=lambda one: one[0])
        for _, response in self.sample[count:]:
            response.shown = None
        del self.sample[count:]


def walk(
    files: Mapping[Path, Options],
    pieces: Mapping[Path, Sequence[Piece]],
    readings: dict[Path, Reading] | None = None,
) -> Iterator[tuple[Reading, list[tuple[str, Trace]]]]:
    """The responses of a set with their problems, in batches, in the same order every time.

    With each batch comes the bookkeeping of the piece that it is from.

    Args:
        files: Of the set, with what `settle` found for each.
        pieces: Of each file, the same every time.
        readings: Filled with what was read, used and skipped; None where that is there already.
    """
    for path, options in files.items():
        whole = Reading.begun(options.note)
        for piece in pieces[path]:
            part = Reading()
            for rows in read_piece(piece):
                # Rows of a piece are counted from its start, rows of a file from 1.
                batch = [
                    (problem, replace(trace, row=trace.row + whole.rows))
                    for trace in usable(rows, part, options, counted=counted_record)
                    if (problem := _problem(trace, part, options)) is not None
                ]
                if batch:
                    yield part, batch
            whole.merge(part)
        if readings is not None:
            readings[path] = whole


def counted_record(record: Any) -> bool:
    """Whether it is of an evaluation whose text was not kept: its counts stand in for it."""
    needed = ("problem_id", "n_tokens", "n_words", "n_markers", "correct")
    return (
        isinstance(record, Mapping)
        and record.get("text", "") is None
        and all(record.get(name) is not None for name in needed)
    )


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


def read_side(source: Source, settled: Mapping[Path, Options], options: Options) -> Side:
    """Read one side, each file as it was settled.

    Raises:
        EpistillError: A file without one usable response.
    """
    side = Side(source, settled)
    for name, files in source.sets.items():
        for path in files:
            side.pieces[path] = pieces_of(path)
        responses = side.sets.setdefault(name, [])
        for reading, batch in walk(side.files(name), side.pieces, side.readings):
            try:
                _add(side, name, responses, batch, reading, options)
            except EpistillError as error:
                raise EpistillError(f"{' or '.join(map(str, files))}: {error}") from error
        if not responses:
            reasons = ", ".join(filter(None, (side.readings[path].reasons() for path in files)))
            found = fields_found(files[0])
            named = (n for n in (options.response_field, options.problem_field) if n not in found)
            raise EpistillError(
                f"{files[0]}: no response can be used ({reasons or 'zero rows'}); expected "
                "responses and what tells their problems apart; fields found: "
                f"{', '.join(found)}; name them with --response-field and --problem-field"
                f"{did_you_mean(next(filter(None, named), ''), found)}"
            )
    side.draw(options.keep)
    for setting, value in (source.settings or {}).items():
        if setting != "batch_rows":  # they change how fast responses are drawn
            side.settings[_SAME.get(setting, setting)].add(_shown_value(value))
    for chosen in source.run.config.get("evaluations", ()) if source.run else ():
        for setting in EvalSet.OWN_SAMPLING:
            name = f"{_SAME.get(setting, setting)} of {chosen['name']!r}"
            side.settings[name].add(_shown_value(chosen.get(setting) or None))
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
    columns = ("words", "tokens", "with_tokens", "looping")
    counts = [table[:, counter.columns[column]].sum(axis=1) for column in columns]
    lists = [counter.columns[f"{one.name}.words"] for one in counter.lexicons]
    markers = np.stack([table[:, columns].sum(axis=1) for columns in lists], axis=1).astype(int)
    for i, ((problem, trace), part) in enumerate(zip(batch, parts, strict=True)):
        _note_settings(trace, side.settings)
        if (stop := reading.note(trace, part)) is not None:
            reading.fields["stop"][stop] += 1
        words, tokens, with_tokens, looping = (int(count[i]) for count in counts)
        own: tuple[int | None, ...] = tuple(markers[i].tolist())
        if counted := counted_record(trace.record):
            words, own = trace.record["n_words"], (None,) * len(own)
            if options.lexicons[0] == load_lexicon():
                own = (trace.record["n_markers"], *own[1:])
        question, _ = fields.question_of(trace)
        answer = final_answer(trace, part)
        response = Response(
            problem=problem,
            score=fields.number_of(trace, fields.SCORE_FIELDS, "score")[0],
            answer=answer,
            reference=_reference(trace),
            grader=grader_in(trace, ("grade_grader", "grader")),
            question=None
            if question is None
            else hash64(" ".join(fields.one_spelling(question).split())),
            words=words,
            tokens=tokens if with_tokens else None,
            markers=own,
            looping=None if counted else bool(looping),
            checked=Checked(*map(trace.record.get, Checked.__match_args__))
            if counted
            else checked_response(trace.text, part, answer),
        )
        responses.append(response)
        if options.keep and not counted:
            response.shown = trace.row, shorten(part.thinking), shorten(part.answer)
            # Equal on both sides for a problem, so that traces of the same problems are shown.
            first = hash64(f"{options.seed}\0{name}\0{problem}")
            second = hash64(f"{options.seed}\0{trace.row}\0{trace.index}\0{trace.text[:99]}")
            side.sample.append(((first, second), response))
    if len(side.sample) > 2 * options.keep:
        side.draw(options.keep)


def _reference(trace: Trace) -> str | None:
    """What `epistill grade` graded against, else what the record says."""
    graded, _ = trace.first(("grade_reference",))
    return graded if isinstance(graded, str) else reference_in(trace)[0]


def _note_settings(trace: Trace, found: dict[str, set[str]]) -> None:
    for key, value in trace.record.items():
        if key in SETTINGS:
            found[_SAME.get(key, key)].add(_shown_value(value))
        elif key in CONTAINERS and isinstance(value, Mapping):
            for key_inside, inner in value.items():
                name = str(key_inside)
                one_value = name in SETTINGS or not isinstance(inner, Mapping | list)
                if name not in _NOT_SETTINGS and one_value:
                    found[_SAME.get(name, name)].add(_shown_value(inner))


def _shown_value(value: Any) -> str:
    # 1 and 1.0 are one temperature.
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = float(value)
        return f"{value:g}"
    return orjson.dumps(value, default=str).decode()
