"""`edit`: traces with words deleted, swapped or injected, re-checks cut, lengths matched.

Enters: files of traces of any make, rules (`metrics.text_edits`). Leaves: one record for each
response in one plain form that every command and SFT read: what the source said about it (problem,
question, reference, score), its edited text, and how often each rule changed it. Counts of tokens
are left out: they would be those of the unedited text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from epistill.errors import EpistillError
from epistill.metrics.text_edits import TextEdits, as_long_as
from epistill.metrics.words import count_words
from epistill.readers.record_files import find_files
from epistill.readers.text_records import Unusable
from epistill.seeds import named_random
from epistill.store import write_jsonl
from epistill.tasks.answers import framed_answer
from epistill.traces import fields
from epistill.traces.fields import Trace
from epistill.traces.file_counts import Reading
from epistill.traces.measure import nothing_used
from epistill.traces.measure_summary import describe_reading
from epistill.traces.problem_keys import problem_key
from epistill.traces.references import (
    GradeOptions,
    final_answer,
    grader_in,
    is_cut,
    records_of,
    reference_in,
)
from epistill.traces.tabulate import split


def edit_files(
    paths: Sequence[Path],
    out: Path,
    rules: Sequence[str],
    *,
    share: float = 1.0,
    match_lengths: Path | None = None,
    options: GradeOptions | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Edit traces.

    Args:
        paths: Files, or folders of them.
        out: The one file that is written.
        rules: Of `TextEdits`; none brings the traces into the plain form.
        share: Of the places of `inject`.
        match_lengths: Traces whose lengths the written ones shall have: of the edited responses,
            for each of those the nearest in words that is not taken yet, within a tenth; others
            are left out.
        options: Which fields are what.
        seed: Names the draws.

    Returns:
        `written`, `responses`, `left_out` by the match, `edits` by rule (responses and edits),
        `words` (before, after), and the `reading` of each file.

    Raises:
        EpistillError: No rule, nothing to read, or no length that matches.
    """
    options, edits = options or GradeOptions(), TextEdits(rules, framed_answer, share=share)
    rows, readings, before = list[dict[str, Any]](), dict[str, Any](), list[int]()
    for path in find_files(paths):
        if path.resolve() == out.resolve():
            raise EpistillError(f"{out} would overwrite what is edited; choose another --out")
        reading = Reading()
        for trace, problem in _traces(path, options, reading):
            before.append(count_words(trace.text))
            rows.append(_edited(trace, problem, edits, options, (seed, path.name, len(rows))))
        if not reading.used:
            raise nothing_used(path, reading, options.response_field)
        readings[str(path)] = describe_reading(reading)
    kept = range(len(rows))
    if match_lengths is not None:
        kept = _matched(rows, _lengths(match_lengths, options), seed)
    chosen = [rows[i] for i in kept]
    write_jsonl(out, chosen)
    counts = [row["edits"] for row in chosen]
    return {
        "written": str(out),
        "responses": len(chosen),
        "left_out": len(rows) - len(chosen),
        "edits": {
            rule: {"responses": sum(c[i] > 0 for c in counts), "edits": sum(c[i] for c in counts)}
            for i, rule in enumerate(edits.rules)
        },
        "words": {
            "before": sum(before[i] for i in kept) / len(chosen),
            "after": sum(count_words(row["response"]) for row in chosen) / len(chosen),
        },
        "reading": readings,
    }


def _traces(
    path: Path, options: GradeOptions, reading: Reading
) -> Iterator[tuple[Trace, str | None]]:
    key = problem_key(path, options.response_field, options.problem_field)
    for number, record in records_of(path, reading, key):
        found, _ = fields.traces_of(record, number, options.response_field)
        for trace in found:
            reading.read += 1
            if isinstance(trace, Unusable):
                reading.skip(str(trace), number)
                continue
            reading.used += 1
            yield trace, fields.problem_of(trace, key.field)[0]


def _edited(
    trace: Trace,
    problem: str | None,
    edits: TextEdits,
    options: GradeOptions,
    draw: tuple[int, str, int],
) -> dict[str, Any]:
    part = split(trace, opened=options.opened)
    opened = options.opened or fields.opened_in_prompt(trace)
    answer = final_answer(trace, part)
    text, counts = edits.apply(
        trace.text, answer, named_random("edit", *draw), opened_in_prompt=opened
    )
    score, _ = fields.number_of(trace, fields.SCORE_FIELDS, "score")
    return {
        "problem_id": problem,
        "sample": trace.first(fields.SAMPLE_FIELDS)[0],
        "question": fields.question_of(trace)[0],
        "reference": reference_in(trace, options.answer_field)[0],
        "grader": grader_in(trace),
        "response": text,
        "opened_thinking": opened,
        "extracted_answer": answer,
        "score": score,
        "truncated": is_cut(trace),
        "edits": counts,
    }


def _lengths(path: Path, options: GradeOptions) -> list[int]:
    """Words of every response of a file."""
    reading = Reading()
    found = [
        count_words(trace.text)
        for one in find_files([path])
        for trace, _ in _traces(one, options, reading)
    ]
    if not found:
        raise nothing_used(path, reading, options.response_field)
    return found


def _matched(rows: Sequence[dict[str, Any]], wanted: list[int], seed: int) -> list[int]:
    """Rows whose lengths are those that are wanted, each row once, in their order."""
    lengths = [count_words(row["response"]) for row in rows]
    taken = as_long_as(lengths, wanted, named_random("match_lengths", seed))
    if not taken:
        raise EpistillError(
            "no response is as long as one of those to match (within a tenth, in words); compare "
            "their lengths with `epistill measure`"
        )
    return taken
