"""Counting epistemic markers. A marker is a symptom, never a cause (`docs/metrics.md`).

Enters: text. Leaves: counts per word on word boundaries, densities, and beside them, under its own
name, the substring count of the paper's official script, so that published numbers can be compared.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from functools import cache

from epistill.metrics.lexicon import Lexicon, load_lexicon

_WORD = re.compile(r"\w+(?:['’]\w+)*")


@cache
def _pattern(lexicon: Lexicon) -> re.Pattern[str]:
    # Longest first, so that a word that begins another cannot hide it.
    words = sorted(lexicon.words, key=len, reverse=True)
    return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, words))})(?!\w)", re.IGNORECASE)


def count_markers(text: str, lexicon: Lexicon | None = None) -> dict[str, int]:
    """Occurrences of each marker on word boundaries, ignoring case.

    Args:
        text: Any text.
        lexicon: None takes the paper's ten markers.

    Returns:
        Marker to count, for every word of the lexicon (0 included).

    Example:
        >>> found = count_markers("Wait, it is unlikely. Wait!")
        >>> found["wait"], found["likely"]
        (2, 0)
    """
    lexicon = lexicon or load_lexicon()
    found = Counter(match.lower() for match in _pattern(lexicon).findall(text))
    return {word: found.get(word, 0) for word in lexicon.words}


def marker_spans(text: str, lexicon: Lexicon | None = None) -> list[tuple[int, int]]:
    """Character ranges [start, stop) of every marker, in order."""
    return [match.span() for match in _pattern(lexicon or load_lexicon()).finditer(text)]


def total_markers(text: str, lexicon: Lexicon | None = None) -> int:
    """Sum of `count_markers`."""
    return sum(count_markers(text, lexicon).values())


def count_words(text: str) -> int:
    """Runs of word characters, apostrophes inside a word included.

    Example:
        >>> count_words("Don't stop at 3.5, wait")
        6
    """
    return sum(1 for _ in _WORD.finditer(text))


def density(markers: int, length: int) -> float | None:
    """Markers per 1,000 tokens (or words, whatever `length` counts); None for length 0.

    Example:
        >>> density(14, 1000)
        14.0
    """
    return 1000.0 * markers / length if length else None


def official_substring_count(text: str, lexicon: Lexicon | None = None) -> Mapping[str, int]:
    """The paper's own count: `text.lower().count(word)` per word.

    It counts "unlikely" as likely, "waiting" as wait and "checked" as check; kept under this name
    only for comparison with published numbers. Source: the official repository's
    `check_epistemic_tokens.py`.

    Example:
        >>> official_substring_count("Unlikely; I checked.")["likely"]
        1
    """
    lexicon = lexicon or load_lexicon()
    lowered = text.lower()
    return {word: lowered.count(word) for word in lexicon.words}
