"""From sums to numbers with intervals: what `epistill measure` prints and writes.

Enters: `Measured` files. Leaves: one dictionary, ready for JSON. Every number is a ratio of sums
over responses, and its 95 % interval comes from drawing problems again (`stats.bootstrap_ratio`);
formulas and limits are in `docs/metrics.md`. Numbers that cannot be known are None, never 0.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from epistill.evaluation.stats import Estimate, bootstrap_ratio
from epistill.metrics.corrections import WINDOW
from epistill.metrics.epistemic import density
from epistill.metrics.lexicon import Lexicon
from epistill.traces.file_counts import Reading
from epistill.traces.measure import Measured, Options, tabulator
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
    lexicons = tabulator(options).lexicons
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
    """Ratios are asked for by column name, computed in one resampling, then put in their places."""

    def __init__(self, sums: ClusterSums, options: Options) -> None:
        self.sums, self.folded = sums.sums, sums.folded
        self.tabulator, self.seed = tabulator(options), options.seed
        self.limit = _limit_in(sums.lengths)
        self.totals = self.sums.sum(axis=0)
        self.has_tokens = self._total("with_tokens") == self._total("responses")
        self.thinking_tokens = options.tokenizer is not None
        self._asked: list[tuple[dict[str, Any], str, Floats, Floats]] = []

    def summary(self) -> dict[str, Any]:
        """All numbers of the group."""
        found = self._lengths() | {
            "markers": {
                one.name: self._markers(one)
                for one in self.tabulator.lexicons
                # A Chinese list says nothing about text without a Chinese character.
                if one.language != "zh" or self._total("chinese_words")
            }
        }
        above = np.stack([above for _, _, above, _ in self._asked], axis=1)
        below = np.stack([below for _, _, _, below in self._asked], axis=1)
        estimates = bootstrap_ratio(above, below, seed=self.seed, resamples=RESAMPLES)
        for (place, name, *_), estimate in zip(self._asked, estimates, strict=True):
            place[name] = None if estimate is None else self._describe(estimate)
        return found

    def _describe(self, estimate: Estimate) -> dict[str, Any]:
        return {"value": estimate.value, "low": estimate.low, "high": estimate.high}

    def _column(self, name: str) -> Floats:
        return self.sums[:, self.tabulator.columns[name]]

    def _total(self, name: str) -> int:
        return int(self.totals[self.tabulator.columns[name]].sum())

    def _ratio(
        self, place: dict[str, Any], name: str, above: Floats, below: Floats, factor: float = 1.0
    ) -> None:
        """Ask for a ratio of two columns; None where the second sums to 0."""
        place[name] = None
        self._asked.append((place, name, factor * above.sum(axis=1), below.sum(axis=1)))

    def _lengths(self) -> dict[str, Any]:
        responses, words = self._column("responses"), self._column("words")
        answer_words = words - self._column("thinking_words")
        length: dict[str, Any] = {
            "total_words": self._total("words"),
            "chinese_words": self._total("chinese_words"),
            "total_tokens": None,
        }
        self._ratio(length, "words", words, responses)
        self._ratio(length, "thinking_words", self._column("thinking_words"), responses)
        self._ratio(length, "answer_words", answer_words, responses)
        length["tokens"] = length["thinking_tokens"] = length["answer_tokens"] = None
        if self.has_tokens:
            tokens, inside = self._column("tokens"), self._column("thinking_tokens")
            length["total_tokens"] = self._total("tokens")
            self._ratio(length, "tokens", tokens, responses)
            if self.thinking_tokens:
                self._ratio(length, "thinking_tokens", inside, responses)
                self._ratio(length, "answer_tokens", tokens - inside, responses)
        thinking: dict[str, Any] = {}
        self._ratio(thinking, "share", self._column("with_thinking"), responses)
        self._ratio(thinking, "unclosed_share", self._column("unclosed"), responses)
        looping: dict[str, Any] = {"count": self._total("looping")}
        self._ratio(looping, "share", self._column("looping"), responses)
        return {
            "responses": self._total("responses"),
            "empty_responses": self._total("empty"),
            "problems": None if self.folded else len(self.sums),
            "clusters": len(self.sums),
            "length": length,
            "thinking": thinking,
            "truncated": self._truncated(),
            "looping": looping,
            "answers": self._answers(),
        }

    def _answers(self) -> dict[str, Any]:
        """Over graded responses of which text can tell; all None without any."""
        checkable, asked = self._column("checkable"), self._column("with_candidates")
        found: dict[str, Any] = {"responses": self._total("checkable")}
        self._ratio(found, "verified_share", self._column("verified"), checkable)
        self._ratio(found, "committed_share", self._column("committed"), checkable)
        self._ratio(found, "candidates", self._column("candidates"), asked)
        return found

    def _truncated(self) -> dict[str, Any]:
        """From a field where every response has one, else from what cutting leaves behind."""
        said, responses = self._total("with_stop"), self._total("responses")
        found: dict[str, Any] = {"responses_with_a_stop_field": said}
        if said == responses:
            found["basis"] = "field"
            self._ratio(found, "share", self._column("cut"), self._column("responses"))
        elif said:
            found["basis"] = "field, over those responses that have one"
            self._ratio(found, "share", self._column("cut"), self._column("with_stop"))
        elif self.has_tokens and self.limit is not None:
            tokens, there = self.limit
            found["basis"] = (
                f"at least: {there} responses end at one largest length, {tokens} tokens"
            )
            found["share"] = {"value": there / responses, "low": None, "high": None}
        else:
            found["basis"] = "unclosed thinking: a lower bound"
            self._ratio(found, "share", self._column("unclosed"), self._column("responses"))
        return found

    def _markers(self, lexicon: Lexicon) -> dict[str, Any]:
        name = lexicon.name
        responses, words = self._column("responses"), self._column("words")
        markers = self._column(f"{name}.words")
        total = markers.sum(axis=1, keepdims=True)
        inside = self._column(f"{name}.thinking")
        thinking_words = self._column("thinking_words")
        found: dict[str, Any] = {"count": self._total(f"{name}.words"), "control": lexicon.control}
        self._ratio(found, "per_response", markers, responses)
        self._ratio(found, "density_per_1k_words", markers, words, 1000)
        found["density_per_1k_tokens"] = None
        if self.has_tokens:
            self._ratio(found, "density_per_1k_tokens", markers, self._column("tokens"), 1000)
        settled = self._column(f"{name}.settled")
        rest = found["without_looping"] = {"count": int(settled.sum())}
        self._ratio(rest, "density_per_1k_words", settled, self._column("settled_words"), 1000)
        if self.has_tokens:
            tokens = self._column("settled_tokens")
            self._ratio(rest, "density_per_1k_tokens", settled, tokens, 1000)
        self._ratio(found, "share_of_responses_with_any", self._column(f"{name}.any"), responses)
        for part, count, length in (
            ("thinking", inside, thinking_words),
            ("answer", total - inside, words - thinking_words),
        ):
            found[part] = {"count": int(count.sum())}
            self._ratio(found[part], "density_per_1k_words", count, length, 1000)
        episodes = self._column(f"{name}.episodes")
        found["self_correction"] = {"episodes": int(episodes.sum())}
        self._ratio(found["self_correction"], "per_response", episodes, responses)
        self._ratio(found["self_correction"], "per_1k_words", episodes, words, 1000)
        found["official_substring_count"] = self._total(f"{name}.substrings")
        found["deciles"] = self._deciles(name)
        found["words"] = self._words(lexicon)
        return found

    def _deciles(self, name: str) -> list[dict[str, Any]]:
        markers, words = self._column(f"{name}.deciles"), self._column("deciles")
        rows: list[dict[str, Any]] = []
        for i in range(DECILES):
            rows.append({"from": i / DECILES, "count": int(markers[:, i].sum())})
            place = markers[:, i : i + 1], words[:, i : i + 1]
            self._ratio(rows[-1], "density_per_1k_words", *place, 1000)
        return rows

    def _words(self, lexicon: Lexicon) -> dict[str, Any]:
        counts = self._column(f"{lexicon.name}.words")
        substrings = self._column(f"{lexicon.name}.substrings")
        rows: dict[str, Any] = {}
        for i, word in enumerate(lexicon.words):
            rows[word] = {
                "count": int(counts[:, i].sum()),
                "official_substring_count": int(substrings[:, i].sum()),
            }
            place = counts[:, i : i + 1], self._column("words")
            self._ratio(rows[word], "density_per_1k_words", *place, 1000)
        return rows


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
    counter = tabulator(options)
    own = counter.columns[f"{counter.lexicons[0].name}.words"]
    kept = heapq.nsmallest(
        options.keep,
        ((shown, result) for result in results for shown in result.shown),
        key=lambda pair: pair[0].priority,
    )
    records = [
        {
            "side": f"{result.path.name} {shown.group}"
            if len(result.groups) > 1
            else result.path.name,
            "set": "",
            "problem": shown.problem or "",
            "row": shown.row,
            "score": None if shown.score is None else int(shown.score > 0.5),
            "length": (length := int(shown.counts[counter.columns["words"]].sum())),
            "density": density(int(shown.counts[own].sum()), length),
            "thinking": shown.thinking,
            "answer": shown.answer,
        }
        for shown, result in kept
    ]
    return records, sum(result.reading.used for result in results)
