r"""Whether an answer was verified before it was given, or committed to; and how many were weighed.

Enters: a response's reasoning and the final answer that was read from it. Leaves: a
`Verification`. In a world whose traces have a grammar it is exact (`world_readers`). Elsewhere
text is all there is: the answer is *stated* where it stands in the reasoning, and *verified* where
it then comes out again, as the right side of an equation (recomputed) or within
WINDOW words of a phrase of the checking lists (checked, substituted), before the reasoning ends.
Whether the check was sound, nobody looks. docs/metrics.md says what else it cannot see.
"""

from __future__ import annotations

import re
from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from statistics import fmean

from epistill.metrics.lexicon import load_lexicon
from epistill.metrics.words import WORD, fold, on_word_boundaries
from epistill.metrics.world_readers import READERS, Verification
from epistill.thinking import SplitResponse

WINDOW = 80
MOST_REASONING = 400_000  # characters; of longer reasoning only its end is looked at
CHECKING = ("checking-en", "checking-zh")
_FRACTION = re.compile(r"\\[dt]?frac\s*\{([^{}]+)\}\s*\{([^{}]+)\}")
_DRESS = re.compile(r"\\[,;!() ]|\\(?:text|mathrm|left|right)\b|[${}\s]")
_AROUND = "()[]（）【】<>*_`\"'“”.:,。"  # what stands around a letter
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_STATED = re.compile(
    r"(?:\banswer\b[^.\n]{0,40}?(?:\bis\b|\bbe\b|=|:)|\\boxed\s*\{|答案[^。\n]{0,12}?(?:是|为|：|:))"
    r"\W{0,6}(-?\d[\d,]*(?:\.\d+)?(?:/\d+)?)",
    re.IGNORECASE,
)
SENTENCE = re.compile(r"[.!?]\s+|[。！？]\s*|\n+")  # its end


def verification(reasoning: str, answer: str) -> Verification | None:
    """Look for an answer in the reasoning before it.

    Args:
        reasoning: From `reasoning_of`.
        answer: As a grader reads it from the response.

    Returns:
        None where text cannot tell: an answer of one letter stands in any prose, one of several
        lines (a program) is not written twice.

    Example:
        >>> verification("so 3 * 6 = 18. Check: 18 / 6 = 3.", "18")
        Verification(stated=11, verified=True, candidates=1, recheck=15)
        >>> verification("maybe 16 13 22 dust so 28", "28")
        Verification(stated=23, verified=False, candidates=2, recheck=None)
    """
    if (hidden := len(reasoning) - MOST_REASONING) > 0:
        found = verification(reasoning[hidden:], answer)
        return found and found.after(hidden)
    for reader in READERS:
        if (own := reader(reasoning, answer)) is not None:
            return own
    pattern = _occurrence(answer)
    if pattern is None:
        return None
    places = [found.span() for found in pattern.finditer(reasoning)]
    named = {found[1].replace(",", "") for found in _STATED.finditer(reasoning)}
    if not places:
        return Verification(None, False, len(named))
    named.add(_plain(answer).replace(",", ""))
    (first, stated), *later = places
    checks = _checks(reasoning, stated)
    again = [start for start, _ in later if _is_result(reasoning, start)]
    verified = bool(again) or any(_beside(reasoning, check, later) for check in checks)
    begins = min([*(start for start, _ in checks), *again], default=None)
    if begins is not None:  # with its sentence
        ends = [found.end() for found in SENTENCE.finditer(reasoning, stated, begins)]
        begins = ends[-1] if ends else begins
    return Verification(first, verified, len(named), begins)


def reasoning_span(text: str, part: SplitResponse, answer: str | None) -> tuple[int, int] | None:
    """Where the reasoning stands in a response: its thinking, else what precedes the answer.

    Args:
        text: The response.
        part: It, split.
        answer: As read from it; without thinking, its last occurrence ends the reasoning.

    Returns:
        [start, stop); None where nothing tells.
    """
    if part.form != "absent":
        start = text.find(part.thinking)
        return None if start < 0 else (start, start + len(part.thinking))
    pattern = None if answer is None else _occurrence(answer)
    places = [] if pattern is None else [found.start() for found in pattern.finditer(text)]
    return (0, places[-1]) if places else None


@dataclass(frozen=True, slots=True)
class Checked:
    """What one response contributes; None where its text cannot tell.

    Attributes:
        verified, committed: Its final answer was verified before it was given, or was not; neither
            where there is no final answer.
        candidates: As of `Verification`.
        first_commitment: Where the final answer first stands, as a share of its reasoning: near 0
            it was settled at once, near 1 after everything else. None where it is not there.
    """

    verified: bool | None
    committed: bool | None
    candidates: int | None = None
    first_commitment: float | None = None


def checked_response(text: str, part: SplitResponse, answer: str | None) -> Checked:
    """`verification` of a whole response.

    Args:
        text: The response.
        part: It, split.
        answer: Its final answer; None without one.
    """
    if answer is None or part.form == "unclosed":
        return Checked(False, False)
    span = reasoning_span(text, part, answer)
    if span is None:
        return Checked(None, None)
    found = verification(text[slice(*span)], answer)
    if found is None:
        return Checked(None, None)
    first = None if found.stated is None else found.stated / (span[1] - span[0])
    return Checked(found.verified, not found.verified, found.candidates, first)


def verification_means(responses: Sequence[Checked]) -> dict[str, float | None]:
    """`verified_share`, `committed_share` and `candidates` of responses.

    Returns:
        Each over the responses whose text can tell; None where none can.
    """
    columns = {
        "verified_share": [one.verified for one in responses],
        "committed_share": [one.committed for one in responses],
        "candidates": [one.candidates for one in responses],
    }
    known = {name: [v for v in column if v is not None] for name, column in columns.items()}
    return {name: fmean(values) if values else None for name, values in known.items()}


def _plain(answer: str) -> str:
    """An answer without the dress of LaTeX."""
    return _DRESS.sub("", _FRACTION.sub(r"\1/\2", answer)).rstrip(".")


def _occurrence(answer: str) -> re.Pattern[str] | None:
    """The answer wherever it is written: numbers with or without commas, fractions either way."""
    program = "\n" in answer  # as it is read from its block, one of one line ends with it
    answer = _plain(answer)
    bare = answer.strip(_AROUND)
    if program or not answer or (len(bare) == 1 and bare.isalpha()):
        return None
    if _NUMBER.fullmatch(answer):
        whole, _, part = answer.replace(",", "").partition(".")
        grouped = re.sub(r"(?<=\d)(?=(?:\d{3})+$)", ",?", whole)
        part = part.rstrip("0")
        tail = rf"\.{part}0*" if part else r"(?:\.0+)?"
        return re.compile(rf"(?<![\d.,/]){grouped}{tail}(?![\d/]|[.,]\d)")
    top, slash, below = answer.partition("/")
    if slash and re.fullmatch(r"-?\d+", top) and below.isdigit():
        sign, top = ("-\\s*" if top.startswith("-") else ""), top.lstrip("-")
        return re.compile(
            rf"(?<![\d/]){sign}(?:{top}\s*/\s*{below}(?!\d)"
            rf"|\\[dt]?frac\s*\{{\s*{top}\s*\}}\s*\{{\s*{below}\s*\}})"
        )
    loose = r"\s*".join(re.escape(one) for one in answer)
    left, right = (r"(?<!\w)" * answer[0].isalnum(), r"(?!\w)" * answer[-1].isalnum())
    return re.compile(left + loose + right, re.IGNORECASE)


def _is_result(reasoning: str, start: int) -> bool:
    """Whether what begins here is the right side of an equation."""
    return reasoning[max(0, start - 24) : start].rstrip(" $({\\").endswith(("=", "≈", "approx"))


def _checks(reasoning: str, begin: int) -> list[tuple[int, int]]:
    """Where phrases of the checking lists stand from a place on, in order.

    Each is looked for by itself: so many alternatives in one pattern take a hundred times as long.
    """
    text = fold(reasoning)
    found: list[tuple[int, int]] = []
    for phrase, pattern, counts in _phrases():
        at = text.find(phrase, begin)
        while at >= 0:
            if pattern.match(text, at):
                found.append((at, at + len(phrase) if counts else -1))
            at = text.find(phrase, at + 1)
    excepted = {start for start, stop in found if stop < 0}
    return sorted(span for span in found if span[1] > 0 and span[0] not in excepted)


@cache
def _phrases() -> list[tuple[str, re.Pattern[str], bool]]:
    """Phrase, its pattern, and whether it counts: where an exception begins, no phrase does."""
    return [
        (phrase, re.compile(on_word_boundaries(phrase)), phrase in lexicon.words)
        for lexicon in map(load_lexicon, CHECKING)
        for phrase in (*lexicon.words, *lexicon.exceptions)
    ]


def _beside(reasoning: str, check: tuple[int, int], places: Sequence[tuple[int, int]]) -> bool:
    """Whether one of the places, in order, is within WINDOW words of a check."""
    after = bisect(places, check)
    for near in places[max(0, after - 1) : after + 1]:
        (_, first), (second, _) = sorted((check, near))
        words = WORD.finditer(reasoning, first, max(first, second))
        if sum(1 for _ in islice(words, WINDOW + 1)) <= WINDOW:
            return True
    return False
