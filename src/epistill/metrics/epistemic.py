"""Counting epistemic markers. A marker is a symptom, never a cause (`docs/metrics.md`).

Beside counts on word boundaries stands, under its own name, the substring count of the paper's
official script, so that published numbers can be compared.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from functools import cache

from epistill.metrics.lexicon import Lexicon, load_lexicon
from epistill.metrics.words import fold, on_word_boundaries


@cache
def _pattern(lexicon: Lexicon) -> re.Pattern[str]:
    # Longest first, so that a word that begins another cannot hide it, and exceptions hide theirs.
    phrases = sorted((*lexicon.words, *lexicon.exceptions), key=len, reverse=True)
    return re.compile("|".join(map(on_word_boundaries, phrases)))


def count_markers(text: str, lexicon: Lexicon | None = None) -> dict[str, int]:
    """Occurrences of each word of a lexicon (None: the paper's) on word boundaries, ignoring case.

    Example:
        >>> found = count_markers("Wait, it is unlikely. Wait!")
        >>> found["wait"], found["likely"]
        (2, 0)
    """
    lexicon = lexicon or load_lexicon()
    found = Counter(_pattern(lexicon).findall(fold(text)))
    return {word: found.get(word, 0) for word in lexicon.words}


def marker_spans(text: str, lexicon: Lexicon | None = None) -> list[tuple[int, int]]:
    """Character ranges [start, stop) of every marker, in order.

    Example:
        >>> marker_spans("Hmm. Unlikely, maybe")
        [(0, 3), (15, 20)]
    """
    lexicon = lexicon or load_lexicon()
    matches = _pattern(lexicon).finditer(fold(text))
    return [match.span() for match in matches if match[0] in lexicon.words]


def total_markers(text: str, lexicon: Lexicon | None = None) -> int:
    """Sum of `count_markers`.

    Example:
        >>> total_markers("Wait, it is unlikely. Wait!")
        2
    """
    return sum(count_markers(text, lexicon).values())


def density(markers: int, length: int) -> float | None:
    """Markers per 1,000 tokens (or words, whatever `length` counts); None for length 0.

    Example:
        >>> density(14, 1000)
        14.0
    """
    return 1000.0 * markers / length if length else None


def official_substring_count(text: str, lexicon: Lexicon | None = None) -> Mapping[str, int]:
    """The paper's own count (`check_epistemic_tokens.py`): `text.lower().count(word)` per word.

    It counts "unlikely" as likely, "waiting" as wait and "checked" as check.

    Example:
        >>> official_substring_count("Unlikely; I checked.")["likely"]
        1
    """
    lexicon = lexicon or load_lexicon()
    lowered = text.lower()
    return {word: lowered.count(word) for word in lexicon.words}
