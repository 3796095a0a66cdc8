"""`shift`: which words moved most between two sets of traces, and where the markers stand.

Enters: files of set A and of set B. Leaves: one dictionary, ready for JSON, with a row for each
word. Files are read twice, in pieces: for the vocabulary and the problems, then for counts by
problem. A word with a digit in it is a number, not vocabulary (it counts as a word of the text).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epistill.errors import EpistillError
from epistill.metrics.epistemic import count_markers
from epistill.metrics.lexicon import Lexicon, load_lexicon
from epistill.metrics.vocabulary_shift import (
    MIN_PROBLEMS,
    Shift,
    share_of_like_words_that_moved_less,
    vocabulary_shift,
)
from epistill.metrics.words import WORD, fold
from epistill.readers.record_files import Piece, check_unchanged, find_files, pieces_of
from epistill.traces.fields import problem_of
from epistill.traces.file_counts import Reading
from epistill.traces.measure import (
    check_problem_field,
    cluster_of,
    nothing_used,
    settle,
    usable_traces,
)
from epistill.traces.measure_summary import describe_reading
from epistill.traces.options import Options
from epistill.traces.tabulate import MAX_CLUSTERS, split
from epistill.traces.worker_pool import map_pieces

MAX_WORDS = 10_000
# Beyond so many, words seen least are forgotten: flat memory costs the rarest.
MAX_SEEN = 500_000
TEST = (
    "linearised ratio by problem, paired where both sets have the problem, two-sided t; q-values "
    "by Benjamini-Hochberg over all tested words"
)
_DIGIT = re.compile(r"\d")


@dataclass(slots=True)
class _Seen:
    """First pass: of one piece, or of a whole set."""

    listed: frozenset[str]  # words of lexicons, never forgotten
    reading: Reading = field(default_factory=Reading)
    words: Counter[str] = field(default_factory=Counter)
    problems: set[int] = field(default_factory=set)
    overflow: bool = False  # more problems than can be told apart

    def merge(self, other: _Seen) -> None:
        self.reading.merge(other.reading)
        self.words.update(other.words)
        self.problems |= other.problems
        self.overflow |= other.overflow
        self.bound()

    def bound(self) -> None:
        if len(self.words) > MAX_SEEN:
            listed = {word: self.words[word] for word in self.listed}
            self.words = Counter(dict(self.words.most_common(MAX_SEEN // 2)) | listed)
        if len(self.problems) > MAX_CLUSTERS:
            self.problems, self.overflow = set(), True


@dataclass(frozen=True, slots=True)
class _Frame:
    """What the second pass counts: words and problems to columns and rows; None folds problems."""

    words: Mapping[str, int]
    problems: Mapping[int, int] | None

    @property
    def shape(self) -> tuple[int, int]:
        rows = MAX_CLUSTERS if self.problems is None else len(self.problems)
        return rows, len(self.words)

    def row(self, key: int) -> int:
        return key % MAX_CLUSTERS if self.problems is None else self.problems[key]


@dataclass(slots=True)
class _Counted:
    """Second pass: [problems, words] sparse counts, [problems] words, responses."""

    counts: Any
    words: NDArray[np.float64]
    responses: int = 0


@dataclass(frozen=True, slots=True)
class _Set:
    """Files of one set, each with its settled options, and the words that are looked for."""

    settled: Mapping[Path, Options]
    lexicons: tuple[Lexicon, ...]

    def pieces(self) -> list[Piece]:
        return [piece for path in self.settled for piece in pieces_of(path)]

    def responses(
        self, piece: Piece, reading: Reading
    ) -> Iterator[list[tuple[int, str | None, Counter[str], int]]]:
        """In batches: problem, the field that told it, counts of words, number of words."""
        options = self.settled[piece.path]
        for traces in usable_traces(piece, reading, options):
            batch: list[tuple[int, str | None, Counter[str], int]] = []
            for i, trace in enumerate(traces):
                problem, name = problem_of(trace, options.problem_field)
                part = split(trace)  # the tag between them is no word of the model's vocabulary
                words = self._words(f"{part.thinking}\n{part.answer}")
                batch.append((cluster_of(trace, piece, i, problem), name, *words))
            yield batch

    def _words(self, text: str) -> tuple[Counter[str], int]:
        """Counts of all words and of the lexicons' words, and the number of words."""
        words = WORD.findall(fold(text))
        counts = Counter(words)
        for lexicon in self.lexicons:
            counts.update(dict.fromkeys(lexicon.words, 0))
            for word, count in count_markers(text, lexicon).items():
                counts[word] = count
        return counts, len(words)


def shift_files(
    a: Sequence[Path], b: Sequence[Path], options: Options, *, workers: int = 1
) -> dict[str, Any]:
    r"""Compare two sets of traces word by word.

    Args:
        a, b: Files or folders; differences are B minus A.
        options: `lexicons`, `response_field` and `problem_field` are used.
        workers: Processes.

    Returns:
        `a`, `b` (what was read), `test`, `words` (rows in order of rank; see docs/metrics.md),
        `lexicons` and `ordinary` (means over their words).

    Raises:
        EpistillError: Nothing to read, or a set without a word.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name, doubt in (("a", "wait"), ("b", "so")):
        ...     lines = [f'{{"problem_id": {i}, "response": "{doubt} it is"}}' for i in range(12)]
        ...     _ = (folder / f"{name}.jsonl").write_text("\n".join(lines))
        >>> found = shift_files([folder / "a.jsonl"], [folder / "b.jsonl"], Options())
        >>> [(row["word"], row["lexicon"]) for row in found["words"][:2]]
        [('wait', 'paper-en'), ('so', None)]
    """
    lexicons = tuple(map(load_lexicon, options.lexicons))
    sets = [
        _Set({path: settle(path, options) for path in find_files(paths)}, lexicons)
        for paths in (a, b)
    ]
    cut = [one.pieces() for one in sets]
    seen = [_first_pass(*both, options, workers) for both in zip(sets, cut, strict=True)]
    frame = _frame(seen, lexicons)
    for one, pieces in zip(sets, cut, strict=True):
        check_unchanged(pieces, one.pieces())
    counted = [_second_pass(*both, frame, workers) for both in zip(sets, cut, strict=True)]
    for paths, found in zip((a, b), counted, strict=True):
        if not found.words.sum():
            raise EpistillError(
                f"no response in {', '.join(map(str, paths))} has a word; expected text to compare"
            )
    first, second = counted
    moved = vocabulary_shift(first.counts, second.counts, first.words, second.words)
    names = list(frame.words)
    listed = {word: one.name for one in lexicons for word in one.words}
    return {
        "a": _describe(a, seen[0], first, frame),
        "b": _describe(b, seen[1], second, frame),
        "shared_problems": int(np.count_nonzero((first.words > 0) & (second.words > 0))),
        "test": TEST,
        "tested_words": int(np.isfinite(moved.p_value).sum()),
        "least_problems_of_a_tested_word": MIN_PROBLEMS,
        "vocabulary": len(names),
        **_table(names, listed, moved, first, second),
    }


def _first_pass(files: _Set, pieces: list[Piece], options: Options, workers: int) -> _Seen:
    """Every word that is seen; errors name the first file."""
    listed = frozenset(word for one in files.lexicons for word in one.words)
    whole = _Seen(listed)
    for found in map_pieces(partial(_see, files=files, listed=listed), pieces, workers):
        whole.merge(found)
    first = next(iter(files.settled))
    if not whole.reading.used:
        raise nothing_used(first, whole.reading, files.settled[first].response_field)
    check_problem_field(first, whole.reading, options)
    notes = (one.note for one in files.settled.values())
    whole.reading.notes.update({note: 0 for note in notes if note is not None})
    return whole


def _see(piece: Piece, files: _Set, listed: frozenset[str]) -> _Seen:
    seen = _Seen(listed)
    for batch in files.responses(piece, seen.reading):
        for cluster, name, counts, _ in batch:
            if name is not None:
                seen.reading.fields["problem"][name] += 1
            if not seen.overflow:
                seen.problems.add(cluster)
            seen.words.update(counts)
        seen.bound()
    return seen


def _frame(seen: Sequence[_Seen], lexicons: tuple[Lexicon, ...]) -> _Frame:
    total = seen[0].words + seen[1].words  # leaves out words that were never found
    listed = [word for one in lexicons for word in one.words if total[word]]
    common = (word for word, _ in total.most_common() if not _DIGIT.search(word))
    chosen = dict.fromkeys(listed)
    for word in common:
        if len(chosen) >= MAX_WORDS:
            break
        chosen[word] = None
    problems = seen[0].problems | seen[1].problems
    folded = any(one.overflow for one in seen) or len(problems) > MAX_CLUSTERS
    return _Frame(
        {word: i for i, word in enumerate(chosen)},
        None if folded else {key: i for i, key in enumerate(sorted(problems))},
    )


def _second_pass(files: _Set, pieces: list[Piece], frame: _Frame, workers: int) -> _Counted:
    counted = map_pieces(partial(_count, files=files, frame=frame), pieces, workers)
    first = next(counted)
    for other in counted:
        first.counts = first.counts + other.counts
        first.words += other.words
        first.responses += other.responses
    return first


def _count(piece: Piece, files: _Set, frame: _Frame) -> _Counted:
    from scipy import sparse

    found = _Counted(sparse.csr_array(frame.shape), np.zeros(frame.shape[0]))
    for batch in files.responses(piece, Reading()):
        rows, columns, values = [], [], []
        for cluster, _, counts, length in batch:
            row = frame.row(cluster)
            found.words[row] += length
            found.responses += 1
            for word, count in counts.items():
                if count and (column := frame.words.get(word)) is not None:
                    rows.append(row)
                    columns.append(column)
                    values.append(float(count))
        found.counts = found.counts + sparse.csr_array((values, (rows, columns)), frame.shape)
    return found


def _describe(
    paths: Sequence[Path], seen: _Seen, counted: _Counted, frame: _Frame
) -> dict[str, Any]:
    return {
        "files": [str(path) for path in paths],
        "reading": describe_reading(seen.reading),
        "responses": counted.responses,
        "problems": None if frame.problems is None else int(np.count_nonzero(counted.words)),
        "clusters": int(np.count_nonzero(counted.words)),
        "words": int(counted.words.sum()),
        "words_of_the_vocabulary": int(counted.counts.sum()),
    }


def _table(
    names: Sequence[str], listed: Mapping[str, str], moved: Shift, a: _Counted, b: _Counted
) -> dict[str, Any]:
    from scipy.stats import rankdata

    sums = [np.asarray(one.counts.sum(axis=0)).ravel() for one in (a, b)]
    per_response = sums[1] / b.responses - sums[0] / a.responses
    place = rankdata(-np.abs(moved.delta), method="ordinal")  # ties by position
    chosen = np.array([name in listed for name in names])
    like = share_of_like_words_that_moved_less(moved.delta, sums[0] + sums[1], chosen)
    rows = [
        {
            "word": name,
            "lexicon": listed.get(name),
            "rank": int(place[i]),
            "count_a": int(sums[0][i]),
            "count_b": int(sums[1][i]),
            "per_1k_words_a": float(moved.per_1k_a[i]),
            "per_1k_words_b": float(moved.per_1k_b[i]),
            "delta_per_1k_words": {
                "value": float(moved.delta[i]),
                "low": _known(moved.delta[i] - moved.half_width[i]),
                "high": _known(moved.delta[i] + moved.half_width[i]),
            },
            "delta_per_response": float(per_response[i]),
            "log2_ratio": float(moved.log2_ratio[i]),
            "problems": int(moved.problems[i]),
            "p_value": _known(moved.p_value[i]),
            "q_value": _known(moved.q_value[i]),
            "moved_more_than_share_of_like_words": _known(like[i]),
        }
        for i, name in enumerate(names)
    ]
    rows.sort(key=lambda row: row["rank"])
    kinds = [row["lexicon"] for row in rows]
    return {
        "ordinary": _mean(rows, None),
        "lexicons": {kind: _mean(rows, kind) for kind in dict.fromkeys(kinds) if kind is not None},
        "words": rows,
    }


def _mean(rows: Sequence[Mapping[str, Any]], kind: str | None) -> dict[str, Any]:
    """Over the words of one lexicon, or of none: the paper's Figure 12 compares these means."""
    own = [row for row in rows if row["lexicon"] == kind]
    if not own:
        return {"words": 0}
    return {
        "words": len(own),
        "tested": sum(row["p_value"] is not None for row in own),
        "q_below_05": sum(row["q_value"] is not None and row["q_value"] < 0.05 for row in own),
        "mean_delta_per_response": float(np.mean([row["delta_per_response"] for row in own])),
        "mean_abs_delta_per_response": float(
            np.mean([abs(row["delta_per_response"]) for row in own])
        ),
        "median_rank": float(np.median([row["rank"] for row in own])),
    }


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
