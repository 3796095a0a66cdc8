"""`measure`: what files of traces show, in one pass and flat memory, by as many processes as asked.

Enters: files and `Options`. Leaves: for each file a `Measured`: what was read, used and skipped,
which fields said what, the sums of each group, and a sample of traces for the page. Files are cut
into pieces whatever the number of processes, and pieces are added up in order: the result does not
depend on `workers`. `measure_summary` turns sums into numbers with intervals.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epistill.errors import EpistillError, did_you_mean
from epistill.metrics.epistemic import density
from epistill.metrics.lexicon import Lexicon
from epistill.readers.record_files import FileRecord, Piece, find_files, pieces_of, read_piece
from epistill.readers.text_records import Unusable
from epistill.thinking import SplitResponse
from epistill.traces import fields
from epistill.traces.fields import Trace
from epistill.traces.file_counts import Reading, hash64, identity_key
from epistill.traces.options import Options
from epistill.traces.problem_keys import filter_of, problem_key
from epistill.traces.tabulate import ClusterSums, Tabulator
from epistill.traces.worker_pool import map_pieces

MAX_GROUPS = 50
NO_GROUP, ALL = "(none)", "(all)"
SHOWN_CHARACTERS = 8_000


@dataclass(slots=True)
class Measured:
    """What one file (or piece of it) shows.

    Attributes:
        sample: Traces for a page, with their priorities: those of lowest priority are kept.
    """

    path: Path
    format: str
    reading: Reading = field(default_factory=Reading)
    groups: dict[str, ClusterSums] = field(default_factory=dict)
    sample: list[tuple[int, dict[str, Any]]] = field(default_factory=list)


def measure_files(paths: Sequence[Path], options: Options, *, workers: int = 1) -> list[Measured]:
    r"""Measure files.

    Args:
        paths: Files, or folders of them.
        options: What to measure.
        workers: Processes, this one included.

    Raises:
        EpistillError: Nothing to read, a file without one usable response, too many groups.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "traces.jsonl"
        >>> _ = path.write_text('{"response": "Wait, 3."}\n{"response": null}\n')
        >>> (found,) = measure_files([path], Options())
        >>> found.reading.used, found.reading.skipped
        (1, {'null response': (1, 2)})
    """
    files = {path: pieces_of(path) for path in find_files(paths)}
    tabulator(options)  # a wrong tokenizer is said before anything is read
    results = []
    settled = {path: settle(path, options) for path in files}
    parts = map_pieces(
        partial(_measure_piece, settled=settled),
        [piece for pieces in files.values() for piece in pieces],
        workers,
    )
    for path, pieces in files.items():
        reading = Reading.begun(settled[path].note)
        whole = Measured(path, pieces[0].format if pieces else "parquet", reading)
        for _ in pieces:
            _merge(whole, next(parts), options)
        if not whole.reading.used:
            raise nothing_used(path, whole.reading, options.response_field)
        check_problem_field(path, whole.reading, options)
        if options.by is not None and set(whole.groups) == {NO_GROUP}:
            raise _no_field(path, "--by", options.by)
        results.append(whole)
    return results


def settle(path: Path, options: Options) -> Options:
    """The options for one file: its problems may have to be told apart in another way."""
    key = problem_key(path, options.response_field, options.problem_field)
    return replace(options, problem_field=key.field, filter=key.filter, note=key.note)


def tabulator(options: Options) -> Tabulator:
    """The tabulator of these options; each process makes its own once."""
    return _tabulator(options.lists, options.tokenizer, options.opened)


@cache
def _tabulator(lexicons: tuple[Lexicon, ...], tokenizer: Path | None, opened: bool) -> Tabulator:
    return Tabulator(lexicons, tokenizer=tokenizer, opened=opened)


def _measure_piece(piece: Piece, settled: Mapping[Path, Options]) -> Measured:
    options = settled[piece.path]
    found = Measured(piece.path, piece.format)
    for traces in usable_traces(piece, found.reading, options):
        _add(traces, piece, found, options)
    return found


def usable_traces(piece: Piece, reading: Reading, options: Options) -> Iterator[list[Trace]]:
    """The responses of a piece in batches; what is read and skipped is counted in `reading`."""
    named = (options.by, options.response_field, options.problem_field)
    columns = (*fields.KNOWN_FIELDS, *(name for name in named if name))
    for rows in read_piece(piece, columns):
        traces = list(usable(rows, reading, options))
        if traces:
            yield traces


def usable(
    rows: Sequence[FileRecord],
    reading: Reading,
    options: Options,
    counted: Callable[[Any], bool] = lambda record: False,
) -> Iterator[Trace]:
    """The responses of rows, one by one; what cannot be used is counted in `reading`.

    Records that are `counted` are used without a text, since they say what it was.
    """
    for row in rows:
        reading.rows = row.number
        if row.record is None:
            continue
        reading.records += 1
        name = None
        if isinstance(row.record, Unusable):
            entries: Sequence[Trace | Unusable] = [row.record]
        elif counted(row.record):
            entries = [Trace("", row.record, row.number)]
        elif filter_of(row.record) != options.filter:
            entries = [Unusable(fields.OTHER_FILTER)]
        else:
            entries, name = fields.traces_of(row.record, row.number, options.response_field)
        if name is not None:
            reading.fields["response"][name] += len(entries)
        reading.read += len(entries)
        for entry in entries:
            if isinstance(entry, Unusable):
                reading.skip(str(entry), row.number)
            else:
                reading.used += 1
                yield entry


def cluster_of(trace: Trace, piece: Piece, position: int, problem: str | None) -> int:
    """Hash of the problem; without one each response stands for itself."""
    own = f"{piece.path}\0{piece.start}\0{trace.row}\0{position}"
    return hash64(own if problem is None else problem)


def _add(traces: list[Trace], piece: Piece, found: Measured, options: Options) -> None:
    problems, clusters, keys = [], [], []
    table, parts = tabulator(options).tabulate(traces)
    for i, trace in enumerate(traces):
        problem, name = fields.problem_of(trace, options.problem_field)
        sample, _ = trace.first(fields.SAMPLE_FIELDS)
        said = {"problem": name, "stop": found.reading.note(trace, parts[i])}
        if options.tokenizer is None:
            said["tokens"] = fields.tokens_of(trace)[1]
        for role, field_name in said.items():
            if field_name is not None:
                found.reading.fields[role][field_name] += 1
        problems.append(problem)
        clusters.append(cluster_of(trace, piece, i, problem))
        keys.append(identity_key(problem, sample, trace.text))
    rows = [trace.row for trace in traces]
    found.reading.keys.append(np.array([keys, rows], np.uint64))
    groups = [_group(trace, options.by) for trace in traces]
    for group in dict.fromkeys(groups):
        members = [i for i, other in enumerate(groups) if other == group]
        sums = found.groups.setdefault(group, ClusterSums(table.shape[1]))
        sums.add([clusters[i] for i in members], table[members])
        lengths = table[members, tabulator(options).columns["tokens"]].ravel()
        sums.lengths.update(lengths.astype(int).tolist())
    _check_groups(found, options)
    if options.keep:
        found.sample += [
            _shown(*one, options)
            for one in zip(traces, parts, table, groups, problems, strict=True)
        ]
        found.sample = _lowest(found.sample, options)


def _lowest(
    sample: list[tuple[int, dict[str, Any]]], options: Options
) -> list[tuple[int, dict[str, Any]]]:
    return heapq.nsmallest(options.keep, sample, key=lambda one: one[0])


def _group(trace: Trace, by: str | None) -> str:
    if by is None:
        return ALL
    value, _ = trace.first((by,))
    # Groups are written: a lone surrogate, which JSON can hold and UTF-8 cannot, becomes "?".
    return NO_GROUP if value is None else str(value).encode(errors="replace").decode()


def _shown(
    trace: Trace,
    part: SplitResponse,
    counts: NDArray[np.float64],
    group: str,
    problem: str | None,
    options: Options,
) -> tuple[int, dict[str, Any]]:
    """A trace, and its priority: that of its problem, so that whole problems are kept."""
    score, _ = trace.first(fields.SCORE_FIELDS)
    own = f"{trace.row}\0{trace.index}\0{trace.text[:99]}"
    counter = tabulator(options)
    words, markers = (
        int(counts[counter.columns[name]].sum())
        for name in ("words", f"{counter.lexicons[0].name}.words")
    )
    return hash64(f"{options.seed}\0{problem or own}"), {
        "side": group,
        "set": "",
        "problem": (problem or "")[:200],
        "row": trace.row,
        "score": int(score > 0.5) if isinstance(score, int | float) else None,
        "length": words,
        "density": density(markers, words),
        "thinking": shorten(part.thinking),
        "answer": shorten(part.answer),
    }


def shorten(text: str) -> str:
    """A long text without its middle, as the page shows it."""
    left_out = len(text) - SHOWN_CHARACTERS
    if left_out <= 0:
        return text
    half = SHOWN_CHARACTERS // 2
    return f"{text[:half]}\n[... {left_out:,} characters left out ...]\n{text[-half:]}"


def _merge(whole: Measured, part: Measured, options: Options) -> None:
    for _, shown in part.sample:  # rows of a piece are counted from its start
        shown["row"] += whole.reading.rows
    whole.sample = _lowest([*whole.sample, *part.sample], options)
    whole.reading.merge(part.reading)
    for group, sums in part.groups.items():
        if group in whole.groups:
            whole.groups[group].merge(sums)
        else:
            whole.groups[group] = sums
    _check_groups(whole, options)


def _check_groups(found: Measured, options: Options) -> None:
    if len(found.groups) > MAX_GROUPS:
        raise EpistillError(
            f"{found.path}: --by {options.by} has more than {MAX_GROUPS} values (such as "
            f"{', '.join(map(repr, list(found.groups)[:3]))}); choose a field with few"
        )


def nothing_used(path: Path, reading: Reading, named: str | None) -> EpistillError:
    """Why a file gave nothing, with the fields it has; `named` is what the user called one."""
    if not reading.read:
        return EpistillError(f"{path} has zero rows; expected at least one record")
    found = fields_found(path)
    return EpistillError(
        f"{path}: none of {reading.read} responses can be used: {reading.reasons()}; fields "
        f"found: {', '.join(found)}; expected one of response, completion, output, generation, "
        f"messages, ... or name it with --response-field{did_you_mean(named or '', found)}"
    )


def check_problem_field(path: Path, reading: Reading, options: Options) -> None:
    """EpistillError where a field that the user named is in no record of a file."""
    name = options.problem_field
    if name is not None and not reading.fields["problem"][name]:
        raise _no_field(path, "--problem-field", name)


def _no_field(path: Path, flag: str, name: str) -> EpistillError:
    found = fields_found(path)
    near = did_you_mean(name, found) or "; check the name"
    return EpistillError(
        f"{path}: no response has {flag} {name!r}; fields found: {', '.join(found)}{near}"
    )


def fields_found(path: Path) -> list[str]:
    """The fields of the first record of a file."""
    first = next(
        (
            row.record
            for piece in pieces_of(path)[:1]
            for rows in read_piece(piece)
            for row in rows
            if row.record and not isinstance(row.record, Unusable)
        ),
        {},
    )
    return sorted(first) or ["none"]
