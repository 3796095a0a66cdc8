"""From traces to a table of counts, a row for each trace; and sums of rows by problem.

Enters: `Trace`s, lexicons, perhaps a tokenizer. Leaves: an array [traces, columns] of whole
numbers, and `ClusterSums`, whose size does not grow with the number of traces. Every number of
`measure` is a ratio of such sums; this module divides nothing.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from epistill.errors import EpistillError
from epistill.evaluation.intervals import Floats
from epistill.metrics.corrections import correction_episodes, correction_evidence
from epistill.metrics.lexicon import Lexicon, load_lexicon
from epistill.metrics.loops import is_looping
from epistill.metrics.scan import Hits, Scanner
from epistill.metrics.verification import checked_response
from epistill.metrics.words import Buffer, Ints, make_buffer
from epistill.thinking import SplitResponse, split_thinking
from epistill.traces.fields import Trace, cut_of, opened_in_prompt, tokens_of
from epistill.traces.references import final_answer, is_graded

DECILES = 10
RETRACTIONS = ("retractions-en", "retractions-zh")
# More problems than this are added together by the hash of their id; whole problems are, so that
# the sums are still of independent clusters.
MAX_CLUSTERS = 2048
_COLUMNS = (
    "responses", "empty", "words", "chinese_words", "thinking_words", "with_thinking", "unclosed",
    "tokens", "with_tokens", "thinking_tokens", "cut", "with_stop",
    "looping", "settled_words", "settled_tokens",
    "checkable", "verified", "committed", "with_candidates", "candidates",
    "with_first_commitment", "first_commitment",
)  # fmt: skip


def split(trace: Trace, *, opened: bool = False) -> SplitResponse:
    """A trace's thinking and answer; `opened` says that the prompt opened `<think>`."""
    return split_thinking(trace.text, opened_in_prompt=opened or opened_in_prompt(trace))


class Tabulator:
    """Counts in batches of traces; the automaton and the tokenizer are loaded once.

    Args:
        lexicons: Lists of words, each once, controls among them.
        tokenizer: Folder or file of a `tokenizer.json`; None takes token counts from the records.
        opened: The prompts ended inside `<think>`.

    Attributes:
        columns: Name to columns. Besides single counts, for each list L: `L.words` and
            `L.substrings` (by word), `L.deciles`, `L.thinking`, `L.any`, `L.episodes`,
            `L.settled` (in responses that do not end in a loop).
    """

    def __init__(
        self, lexicons: Sequence[Lexicon], *, tokenizer: Path | None = None, opened: bool = False
    ) -> None:
        self.lexicons = tuple(lexicons)
        if len({one.name for one in self.lexicons}) < len(self.lexicons):
            raise EpistillError(
                f"two different lexicons have one name ({', '.join(n.name for n in lexicons)}); "
                "rename one"
            )
        self._scanner = Scanner((*self.lexicons, *map(load_lexicon, RETRACTIONS)))
        self._tokenizer = None if tokenizer is None else token_counter_of(tokenizer)
        self._opened = opened
        self.columns: dict[str, slice] = {}
        for name in _COLUMNS:
            self._add_column(name, 1)
        self._add_column("deciles", DECILES)
        for lexicon in self.lexicons:
            self._add_column(f"{lexicon.name}.words", len(lexicon.words))
            self._add_column(f"{lexicon.name}.substrings", len(lexicon.words))
            self._add_column(f"{lexicon.name}.deciles", DECILES)
            for name in ("thinking", "any", "episodes", "settled"):
                self._add_column(f"{lexicon.name}.{name}", 1)

    def _add_column(self, name: str, width: int) -> None:
        start = self.width
        self.columns[name] = slice(start, start + width)

    @property
    def width(self) -> int:
        """Number of columns."""
        return max((columns.stop for columns in self.columns.values()), default=0)

    def tabulate(self, traces: Sequence[Trace]) -> tuple[Floats, list[SplitResponse]]:
        """Count.

        Returns:
            [traces, columns], and the traces split into thinking and answer.
        """
        parts = [split(trace, opened=self._opened) for trace in traces]
        # Thinking and answer of a response stand next to each other: texts 2i and 2i + 1.
        segments = [text for part in parts for text in (part.thinking, part.answer)]
        buffer = make_buffer(segments)
        table = np.zeros((len(traces), self.width))
        ends = np.append(buffer.starts, len(buffer.data))
        words = np.diff(buffer.words_before(ends)).reshape(-1, 2)
        total = words.sum(axis=1)
        tenths = -(-total[:, None] * np.arange(DECILES + 1) // DECILES)  # rounded up
        self._put(table, "responses", 1)
        self._put(table, "empty", [not t.text or t.text.isspace() for t in traces])
        self._put(table, "words", total)
        chinese = buffer.text_of(buffer.cjk_words()) // 2
        self._put(table, "chinese_words", np.bincount(chinese, minlength=len(traces)))
        self._put(table, "thinking_words", words[:, 0])
        self._put(table, "with_thinking", [part.form != "absent" for part in parts])
        self._put(table, "unclosed", [part.form == "unclosed" for part in parts])
        self._put(table, "deciles", np.diff(tenths))
        cuts = [cut_of(trace)[0] for trace in traces]
        self._put(table, "cut", [bool(cut) for cut in cuts])
        self._put(table, "with_stop", [cut is not None for cut in cuts])
        self._count_tokens(table, traces, segments)
        self._count_markers(table, buffer, total)
        self._leave_out_loops(table, [is_looping(trace.text) for trace in traces])
        self._look_for_checks(table, traces, parts)
        return table, parts

    def _look_for_checks(
        self, table: Floats, traces: Sequence[Trace], parts: Sequence[SplitResponse]
    ) -> None:
        """Of graded responses: was the answer verified before it was given?"""
        for row, trace, part in zip(table, traces, parts, strict=True):
            if is_graded(trace):
                found = checked_response(trace.text, part, final_answer(trace, part))
                for name, number in (
                    ("checkable", found.verified is not None),
                    ("verified", found.verified or 0),
                    ("committed", found.committed or 0),
                    ("with_candidates", found.candidates is not None),
                    ("candidates", found.candidates or 0),
                    ("with_first_commitment", found.first_commitment is not None),
                    ("first_commitment", found.first_commitment or 0),
                ):
                    row[self.columns[name]] = number

    def _leave_out_loops(self, table: Floats, looping: Sequence[bool]) -> None:
        """The same sums over responses that do not loop."""
        settled = ~np.array(looping, bool)
        self._put(table, "looping", ~settled)
        for name in ("words", "tokens"):
            self._put(table, f"settled_{name}", settled * table[:, self.columns[name]][:, 0])
        for lexicon in self.lexicons:
            words = table[:, self.columns[f"{lexicon.name}.words"]].sum(axis=1)
            self._put(table, f"{lexicon.name}.settled", settled * words)

    def _put(self, table: Floats, name: str, values: Any) -> None:
        columns = table[:, self.columns[name]]
        columns[:] = values if np.ndim(values) in (0, 2) else np.asarray(values)[:, None]

    def _count_tokens(
        self, table: Floats, traces: Sequence[Trace], segments: Sequence[str]
    ) -> None:
        if self._tokenizer is None:
            counts = [tokens_of(trace)[0] for trace in traces]
            self._put(table, "tokens", [count or 0 for count in counts])
            self._put(table, "with_tokens", [count is not None for count in counts])
            return
        encoded = self._tokenizer.encode_batch_fast(segments, add_special_tokens=False)
        tokens = np.array([len(one.ids) for one in encoded]).reshape(-1, 2)
        self._put(table, "tokens", tokens.sum(axis=1))
        self._put(table, "thinking_tokens", tokens[:, 0])
        self._put(table, "with_tokens", 1)

    def _count_markers(self, table: Floats, buffer: Buffer, total: Ints) -> None:
        *found, english, chinese = self._scanner.scan(buffer)
        retractions = np.concatenate([english.markers.starts, chinese.markers.starts])
        evidence = correction_evidence(buffer, retractions)
        responses = len(table)
        first_words = buffer.words_before(buffer.starts[::2])
        for lexicon, hits in zip(self.lexicons, found, strict=True):
            markers, name = hits.markers, lexicon.name
            if not hits.substrings.texts.size:
                continue  # then it has no markers either
            response = markers.texts >> 1
            words = _by_word(response, markers, responses, len(lexicon.words))
            self._put(table, f"{name}.words", words)
            self._put(table, f"{name}.any", words.any(axis=1))
            substrings = hits.substrings.texts >> 1
            self._put(
                table,
                f"{name}.substrings",
                _by_word(substrings, hits.substrings, responses, len(lexicon.words)),
            )
            place = buffer.words_before(markers.starts) - first_words[response]
            decile = np.minimum(DECILES * place // np.maximum(total[response], 1), DECILES - 1)
            counted = np.bincount(response * DECILES + decile, minlength=responses * DECILES)
            self._put(table, f"{name}.deciles", counted.reshape(-1, DECILES))
            thinking = np.bincount(response[(markers.texts & 1) == 0], minlength=responses)
            self._put(table, f"{name}.thinking", thinking)
            opens = correction_episodes(buffer, markers, evidence)
            self._put(table, f"{name}.episodes", np.bincount(response[opens], minlength=responses))


def _by_word(response: Ints, hits: Hits, responses: int, words: int) -> Ints:
    return np.bincount(response * words + hits.words, minlength=responses * words).reshape(
        -1, words
    )


def token_counter_of(path: Path) -> Any:
    """A tokenizer of the `tokenizers` library from a folder or file.

    Raises:
        EpistillError: None there, or not one.
    """
    from tokenizers import Tokenizer

    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise EpistillError(
            f"no tokenizer at {path}; expected a folder with tokenizer.json, as models have; "
            "without --tokenizer lengths are in words"
        )
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # `--workers` says how many processes
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing narrower
        raise EpistillError(f"{file} is not a tokenizer: {error}; copy it again") from error


class ClusterSums:
    """Sums of table rows by cluster (a problem), in never more than MAX_CLUSTERS rows.

    Args:
        width: Number of columns.

    Attributes:
        folded: More clusters came than there are rows: they were added together by hash.
        lengths: How many responses have so many tokens.
    """

    def __init__(self, width: int) -> None:
        self.folded = False
        self.lengths: Counter[int] = Counter()
        self._rows: dict[int, int] = {}
        self._sums = np.zeros((16, width))

    @property
    def sums(self) -> Floats:
        """[clusters, columns]."""
        return self._sums[: len(self._rows)]

    def add(self, keys: Iterable[int], table: Floats) -> None:
        """Add rows.

        Args:
            keys: 64-bit hash of each row's cluster.
            table: [rows, columns].
        """
        if self.folded:
            keys = (key % MAX_CLUSTERS for key in keys)
        rows = [self._rows.setdefault(key, len(self._rows)) for key in keys]
        if len(self._rows) > len(self._sums):
            larger = np.zeros((2 * len(self._rows), self._sums.shape[1]))
            larger[: len(self._sums)] = self._sums
            self._sums = larger
        for row, numbers in zip(rows, table, strict=True):  # as np.add.at, many times faster
            self._sums[row] += numbers
        if not self.folded and len(self._rows) > MAX_CLUSTERS:
            self._fold()

    def merge(self, other: ClusterSums) -> None:
        """Add another's sums."""
        self.lengths.update(other.lengths)
        if other.folded and not self.folded:
            self._fold()
        self.add(other._rows, other.sums)

    def _fold(self) -> None:
        rows, sums = self._rows, self.sums
        self.folded, self._rows = True, {}
        self._sums = np.zeros((MAX_CLUSTERS, sums.shape[1]))
        self.add(rows, sums)
