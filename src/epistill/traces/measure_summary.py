"""From sums to numbers with intervals: what `epistill measure` prints and writes.

Enters: `Measured` files. Leaves: one dictionary, ready for JSON. Every number is a ratio of sums
over responses, and its 95 % interval comes from drawing problems again (`stats.bootstrap_ratio`);
formulas and limits are in `docs/metrics.md`. Numbers that cannot be known are None, never 0.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from epistill.evaluation.stats import bootstrap_ratio
from epistill.metrics.corrections import WINDOW
from epistill.metrics.lexicon import Lexicon
from epistill.traces.file_counts import Reading
from epistill.traces.measure import Measured, tabulator
from epistill.traces.options import Options
from epistill.traces.tabulate import DECILES, ClusterSums, Floats

RESAMPLES = 1_000
# So many responses of exactly the largest length were cut: where lengths vary, they hardly ever
# meet by chance. Where few lengths occur, or others are as common, the largest one tells nothing.
MANY, MANY_SHARE, MANY_TIMES, LENGTHS = 5, 0.01, 3, 5


def summarise_measured(results: Sequence[Measured], options: Options) -> dict[str, Any]:
    """Everything `measure` found.

    Args:
        results: From `measure`.
        options: The same.

    Returns:
        `lexicons` (what was counted), `settings`, and `files`, each with `reading` and `groups`.
    """
    lexicons = options.lists
    return {
        "lexicons": {one.name: {**asdict(one), "words": list(one.words)} for one in lexicons},
        "settings": {
            "by": options.by,
            "tokenizer": None if options.tokenizer is None else str(options.tokenizer),
            "self_correction_window_words": WINDOW,
            "bootstrap_resamples": RESAMPLES,
            "seed": options.seed,
        },
        "files": [
            {
                "file": str(result.path),
                "format": result.format,
                "reading": describe_reading(result.reading),
                "groups": {
                    group: _Group(sums, options).summary() for group, sums in result.groups.items()
                },
            }
            for result in results
        ],
    }


def describe_reading(reading: Reading) -> dict[str, Any]:
    """What was read, used and skipped: `read` = `used` + all `skipped`."""
    repeated = reading.repeated()
    return {
        "records": reading.records,
        "responses_read": reading.read,
        "responses_used": reading.used,
        "skipped": {
            reason: {"count": count, "first_row": row}
            for reason, (count, row) in reading.skipped.items()
        },
        "repeated_responses": None
        if repeated is None
        else {"count": repeated[0], "first_row": repeated[1] or None},
        "fields": {role: dict(names) for role, names in reading.fields.items()},
        "notes": dict(reading.notes),
    }


class _Group:
    """The numbers of a group: of sums over its clusters, by the names of the table's columns.

    All ratios are resampled together, so that the numbers are gone through twice: to collect what
    is asked for, then to put the estimates in their places.
    """

    def __init__(self, sums: ClusterSums, options: Options) -> None:
        self._sums, self._options = sums, options
        self._tabulator = tabulator(options)
        self._has_tokens = self._total("with_tokens") == self._total("responses")
        self._ratio: Callable[[Floats, Floats], Any]

    def summary(self) -> dict[str, Any]:
        """All numbers; None where what one is divided by sums to 0."""
        asked: list[tuple[Floats, Floats]] = []
        self._ratio = lambda above, below: asked.append((above, below))
        self._numbers()
        above, below = (np.stack(columns, axis=1) for columns in zip(*asked, strict=True))
        seed = self._options.seed
        estimates = iter(bootstrap_ratio(above, below, seed=seed, resamples=RESAMPLES))
        self._ratio = lambda above, below: (
            None
            if (one := next(estimates)) is None
            else {"value": one.value, "low": one.low, "high": one.high}
        )
        return self._numbers()

    def _numbers(self) -> dict[str, Any]:
        # A Chinese list says nothing about text without a Chinese character.
        chinese = self._total("chinese_words") > 0
        lexicons = [o for o in self._tabulator.lexicons if chinese or o.language != "zh"]
        return {
            "responses": self._total("responses"),
            "empty_responses": self._total("empty"),
            "problems": None if self._sums.folded else len(self._sums.sums),
            "clusters": len(self._sums.sums),
            "length": self._lengths(),
            "thinking": {
                "share": self._share("with_thinking"),
                "unclosed_share": self._share("unclosed"),
            },
            "truncated": self._truncated(),
            "looping": {"count": self._total("looping"), "share": self._share("looping")},
            "answers": {  # over graded responses of which text can tell
                "responses": self._total("checkable"),
                "verified_share": self._share("verified", "checkable"),
                "committed_share": self._share("committed", "checkable"),
                "candidates": self._share("candidates", "with_candidates"),
                "first_commitment": self._share("first_commitment", "with_first_commitment"),
            },
            "markers": {one.name: self._markers(one) for one in lexicons},
        }

    def _each(self, name: str) -> Floats:
        """[columns of the name, clusters]."""
        return self._sums.sums[:, self._tabulator.columns[name]].T

    def _column(self, name: str) -> Floats:
        return self._each(name).sum(axis=0)

    def _total(self, name: str) -> int:
        return int(self._column(name).sum())

    def _share(self, name: str, of: str = "responses") -> Any:
        return self._ratio(self._column(name), self._column(of))

    def _lengths(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "total_words": self._total("words"),
            "chinese_words": self._total("chinese_words"),
            "total_tokens": self._total("tokens") if self._has_tokens else None,
            **dict.fromkeys(("tokens", "thinking_tokens", "answer_tokens")),
        }
        for unit in ("words", "tokens") if self._has_tokens else ("words",):
            found[unit] = self._share(unit)
            if unit == "words" or self._options.tokenizer is not None:
                answer = self._column(unit) - self._column(f"thinking_{unit}")
                found[f"thinking_{unit}"] = self._share(f"thinking_{unit}")
                found[f"answer_{unit}"] = self._ratio(answer, self._column("responses"))
        return found

    def _truncated(self) -> dict[str, Any]:
        """From a field where every response has one, else from what cutting leaves behind."""
        said, responses = self._total("with_stop"), self._total("responses")
        limit = _limit_in(self._sums.lengths) if self._has_tokens else None
        if said:
            basis = "field" if said == responses else "field, over those responses that have one"
            share = self._share("cut", "with_stop")
        elif limit is not None:
            tokens, there = limit
            basis = f"at least: {there} responses end at one largest length, {tokens} tokens"
            share = {"value": there / responses, "low": None, "high": None}
        else:
            basis, share = "unclosed thinking: a lower bound", self._share("unclosed")
        return {"responses_with_a_stop_field": said, "basis": basis, "share": share}

    def _counted(self, counts: Floats, words: Floats) -> dict[str, Any]:
        density = self._ratio(1000 * counts, words)
        return {"count": int(counts.sum()), "density_per_1k_words": density}

    def _markers(self, lexicon: Lexicon) -> dict[str, Any]:
        name, words = lexicon.name, self._column("words")
        markers, inside = self._column(f"{name}.words"), self._column(f"{name}.thinking")
        settled, episodes = self._column(f"{name}.settled"), self._column(f"{name}.episodes")
        thinking_words = self._column("thinking_words")
        found = {
            "control": lexicon.control,
            **self._counted(markers, words),
            "density_per_1k_tokens": None,
            "per_response": self._share(f"{name}.words"),
            "without_looping": self._counted(settled, self._column("settled_words")),
            "share_of_responses_with_any": self._share(f"{name}.any"),
            "thinking": self._counted(inside, thinking_words),
            "answer": self._counted(markers - inside, words - thinking_words),
            "self_correction": {
                "episodes": int(episodes.sum()),
                "per_response": self._share(f"{name}.episodes"),
                "per_1k_words": self._ratio(1000 * episodes, words),
            },
            "official_substring_count": self._total(f"{name}.substrings"),
            "deciles": [
                {"from": i / DECILES, **self._counted(*place)}
                for i, place in enumerate(
                    zip(self._each(f"{name}.deciles"), self._each("deciles"), strict=True)
                )
            ],
            "words": {
                word: {"official_substring_count": int(official.sum())}
                | self._counted(counts, words)
                for word, counts, official in zip(
                    lexicon.words,
                    self._each(f"{name}.words"),
                    self._each(f"{name}.substrings"),
                    strict=True,
                )
            },
        }
        if self._has_tokens:
            for place, counts, of in (
                (found, markers, "tokens"),
                (found["without_looping"], settled, "settled_tokens"),
            ):
                place["density_per_1k_tokens"] = self._ratio(1000 * counts, self._column(of))
        return found


def _limit_in(lengths: Mapping[int, int]) -> tuple[int, int] | None:
    """The limit that cut responses, and how many it cut; None where lengths show none.

    Example:
        >>> _limit_in({**dict.fromkeys(range(20, 60), 1), 512: 8}), _limit_in({40: 300})
        ((512, 8), None)
    """
    longest = max(lengths)
    there = lengths[longest]
    near = max((n for tokens, n in lengths.items() if longest / 2 < tokens < longest), default=1)
    enough = max(MANY, MANY_SHARE * sum(lengths.values()), MANY_TIMES * near)
    return (longest, there) if there >= enough and len(lengths) > LENGTHS else None


def skipped_of(file: str, reading: Mapping[str, Any]) -> list[str]:
    """One line for each reason why responses were skipped, and for what is odd about others."""
    used = reading["responses_used"]
    return [
        f"{file}: {note}" + (f" ({count} of {used} responses)" if count else "")
        for note, count in reading["notes"].items()
    ] + [
        f"{file}: skipped {skipped['count']} of {reading['responses_read']} "
        f"({reason}; first in row {skipped['first_row']})"
        for reason, skipped in reading["skipped"].items()
    ]


def unread_of(
    file: str, reading: Mapping[str, Any], named: Mapping[str, tuple[str, str | None]]
) -> list[str]:
    """One line for each field that the user named and no response has.

    Args:
        file: Its name.
        reading: From `describe_reading`.
        named: Role to the flag and the name that was given with it, None without one.
    """
    return [
        f"{file}: no response has a {role} in {flag} {name!r}; check the name"
        for role, (flag, name) in named.items()
        if name is not None and name not in reading["fields"].get(role, {})
    ]


def warnings_of(summary: Mapping[str, Any]) -> list[str]:
    """One line for everything a reader must not miss: what was skipped or repeated."""
    lines: list[str] = []
    for file in summary["files"]:
        reading = file["reading"]
        lines += skipped_of(file["file"], reading)
        repeated = reading["repeated_responses"]
        if repeated and repeated["count"]:
            lines.append(
                f"{file['file']}: {repeated['count']} responses repeat an earlier one to the same "
                "problem (equal sample number, or equal text where samples have no number; first "
                f"in row {repeated['first_row']}); all are counted"
            )
    return lines


def measured_traces(
    results: Sequence[Measured], options: Options
) -> tuple[list[dict[str, Any]], int]:
    """Traces of measured files; `side` is the file and, where there are several, the group.

    Returns:
        Records (side, set, problem, row, score, length, density, thinking, answer), at most
        `options.keep`; and the number of responses used, of which they are all or a sample.
    """
    kept = heapq.nsmallest(
        options.keep,
        ((priority, shown, result) for result in results for priority, shown in result.sample),
        key=lambda one: one[0],
    )
    records: list[dict[str, Any]] = []
    for _, shown, result in kept:
        name = result.path.name
        side = f"{name} {shown['side']}" if len(result.groups) > 1 else name
        records.append({**shown, "side": side})
    return records, sum(result.reading.used for result in results)
