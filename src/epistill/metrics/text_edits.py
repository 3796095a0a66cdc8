"""Edits of a response's reasoning: markers deleted, swapped, injected; re-checks cut.

    delete WORDS               WORDS may be lexicon:NAME; a comma after a deleted word goes with it
    swap WORDS=NEW             a run of such words becomes one NEW, capital where the first had one
    inject [N*]WORDS@PLACE     PLACE as of a forced word: start, line, after:PATTERN, before:TEXT
    cut PATTERN                whatever matches this regular expression
    cut-rechecks               all checking once the answer is stated (metrics.verification)

Enters: a response, its final answer, rules. Leaves: the text, and how often each rule did
something. Tags of thinking and the answer part stay as they are; rules follow each other in order.
Without thinking the answer part is the last sentences or lines that by themselves read as the same
answer: its whole frame, whatever frames there are.
"""

from __future__ import annotations

import random
import re
from bisect import bisect_left
from collections.abc import Callable, Sequence

from epistill.errors import EpistillError, did_you_mean
from epistill.metrics.lexicon import words_named
from epistill.metrics.verification import SENTENCE, reasoning_span, verification
from epistill.metrics.words import fold, on_word_boundaries
from epistill.thinking import CLOSES, SplitResponse, split_thinking
from epistill.word_rules import word_rule

NEAR = 0.1  # two lengths match that differ by at most this share
KINDS = ("delete", "swap", "inject", "cut", "cut-rechecks")
# From reasoning, answer and a source of randomness: the edited reasoning and how many edits.
_Edit = Callable[[str, str | None, random.Random], tuple[str, int]]


class TextEdits:
    """Rules, ready to be applied.

    Args:
        rules: As in the module's docstring.
        reads: The answer that a text gives in a frame, as `tasks.answers.framed_answer`.
        share: Of the places of `inject`, drawn at random.

    Raises:
        EpistillError: One is no rule.
    """

    def __init__(
        self, rules: Sequence[str], reads: Callable[[str], str | None], *, share: float = 1.0
    ) -> None:
        self.rules, self._reads = tuple(rules), reads
        self._edits = [_edit(rule, share) for rule in rules]

    def apply(
        self, text: str, answer: str | None, rng: random.Random, *, opened_in_prompt: bool = False
    ) -> tuple[str, list[int]]:
        """Edit one response.

        Args:
            text: The response.
            answer: Its final answer, which tells where re-checks begin and, where it stands in no
                frame, where the reasoning of a response without thinking ends; without an answer
                such a response is edited whole.
            rng: Draws the places.
            opened_in_prompt: As of `split_thinking`.

        Returns:
            The edited response and, for each rule, the number of its edits.
        """
        part = split_thinking(text, opened_in_prompt=opened_in_prompt)
        span = self._span(text, part, answer)
        if span is None:
            return text, [0] * len(self.rules)
        start, stop = span
        reasoning, counts = text[start:stop], list[int]()
        for edit in self._edits:
            reasoning, count = edit(reasoning, answer, rng)
            counts.append(count)
        return text[:start] + reasoning + text[stop:], counts

    def _span(self, text: str, part: SplitResponse, answer: str | None) -> tuple[int, int] | None:
        """What may be edited; None where nothing tells it from the answer, or precedes that."""
        found = reasoning_span(text, part, answer)
        said = None if part.form != "absent" else self._reads(text)
        if said is None and found is None:
            return (0, len(text)) if answer is None else None
        if part.form != "absent":
            return found
        last = len(text) if found is None else found[1]
        ends = [one.end() for one in SENTENCE.finditer(text) if one.end() <= last]
        if said is not None:
            ends = ends[: bisect_left(ends, True, key=lambda at: self._reads(text[at:]) != said)]
        return (0, len(text[: ends[-1]].rstrip())) if ends else None


def _edit(rule: str, share: float) -> _Edit:
    kind, _, rest = rule.strip().partition(" ")
    rest = rest.strip()
    if kind not in KINDS or bool(rest) is (kind == "cut-rechecks"):
        near = "" if kind in KINDS else did_you_mean(kind, KINDS)
        raise EpistillError(
            f"{rule!r} is no edit; expected delete WORDS, swap WORDS=NEW, inject WORDS@PLACE, cut "
            f"PATTERN or cut-rechecks{near}"
        )
    if kind == "cut-rechecks":
        return _cut_rechecks
    if kind == "inject":
        return _inject(rest, share)
    if kind == "cut":
        return _replace(_compiled(rest), "", words=False)
    if kind == "delete":
        return _replace(_any_of(rest, deleted=True), "", words=True)
    words, _, new = rest.partition("=")
    if not words.strip() or not new.strip():
        raise EpistillError(f"{rule!r} does not say what comes instead; expected swap WORDS=NEW")
    return _replace(_any_of(words, deleted=False), new.strip(), words=True)


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise EpistillError(f"{pattern!r} is no regular expression ({error})") from error


def _any_of(words: str, *, deleted: bool) -> re.Pattern[str]:
    """A run of the words; to be deleted, with the commas and spaces after it."""
    phrases = sorted(map(fold, words_named(words.strip())), key=len, reverse=True)
    one = f"(?:{'|'.join(map(on_word_boundaries, phrases))})"
    end = r"[,…]*[ \t]*" if deleted else ""
    return re.compile(rf"{one}(?:[,…]*[ \t]+{one})*{end}")


def _replace(pattern: re.Pattern[str], new: str, *, words: bool) -> _Edit:
    """Matches become `new`; of words in any case, the first letter in the case that was there."""

    def edit(reasoning: str, answer: str | None, rng: random.Random) -> tuple[str, int]:
        kept, at, count, lift = list[str](), 0, 0, False
        for found in pattern.finditer(fold(reasoning) if words else reasoning):
            capital = words and reasoning[found.start()].isupper()
            between = reasoning[at : found.start()]
            kept += [_begun(between) if lift else between, _capital(new) if capital else new]
            lift = (capital and not new) or (lift and not _begun(between))
            at, count = found.end(), count + 1
        rest = reasoning[at:]
        return "".join([*kept, _begun(rest) if lift else rest]), count

    return edit


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _begun(text: str) -> str:
    """What follows a deleted word that began its sentence, and may have been all of it."""
    return _capital(text.lstrip(".!?… \t"))


def _inject(rule: str, share: float) -> _Edit:
    try:
        wanted = word_rule("inject", rule)
    except ValueError as error:
        raise EpistillError(str(error)) from error
    before = wanted.place == "before"
    pattern = {
        "start": re.compile(r"\A"),
        "line": re.compile(r"^(?=.*\S)", re.MULTILINE),
        "after": re.compile(wanted.argument if wanted.place == "after" else ""),
        "before": re.compile(r"\Z" if wanted.argument in CLOSES else re.escape(wanted.argument)),
    }[wanted.place]

    def edit(reasoning: str, answer: str | None, rng: random.Random) -> tuple[str, int]:
        places = (f.start() if before else f.end() for f in pattern.finditer(reasoning))
        kept, at, count = list[str](), 0, 0
        for place in places:
            if count == wanted.most:
                break
            if share < 1 and rng.random() >= share:
                continue
            left = reasoning[max(0, place - 1) : place].strip() and " "
            right = reasoning[place : place + 1].strip() and " "
            kept += [reasoning[at:place], left, wanted.words, right]
            at, count = place, count + 1
        return "".join([*kept, reasoning[at:]]), count

    return edit


def _cut_rechecks(reasoning: str, answer: str | None, rng: random.Random) -> tuple[str, int]:
    seen = None if answer is None else verification(reasoning, answer)
    if seen is None or seen.recheck is None:
        return reasoning, 0
    kept = reasoning[: seen.recheck]
    return kept.rstrip() + reasoning[len(reasoning.rstrip()) :], 1


def as_long_as(lengths: Sequence[int], wanted: Sequence[int], rng: random.Random) -> list[int]:
    """Which of some texts are, together, as long as others.

    For each of these, in an order that is drawn, the nearest that is not taken yet, within NEAR.

    Args:
        lengths: Of the texts to choose from.
        wanted: Lengths in the same unit.

    Returns:
        Their numbers, in order; fewer than `wanted` where some match none.
    """
    free = sorted((length, i) for i, length in enumerate(lengths))
    taken: list[int] = []
    order = list(wanted)
    rng.shuffle(order)
    for length in order:
        place = bisect_left(free, (length, 0))
        beside = range(max(0, place - 1), min(place + 1, len(free)))
        near = min(beside, key=lambda at: abs(free[at][0] - length), default=None)
        if near is not None and abs(free[near][0] - length) <= NEAR * length:
            taken.append(free.pop(near)[1])
    return sorted(taken)
