"""Which token says what: classes of tokens from text offsets, whatever the tokenizer.

Enters: a tokenizer and response ids. Leaves: the characters each token wrote, and its class.
Nothing is read off token strings: a word is found in the text, and the tokens whose characters
overlap it get its class.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from epistill.metrics.epistemic import marker_spans
from epistill.metrics.lexicon import Lexicon
from epistill.rollouts.offsets import token_ends

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CLASSES = ("marker", "control", "number", "other")
MARKER, CONTROL, NUMBER, OTHER = range(len(CLASSES))
# Digits with their separators, and operators; not a hyphen (or / or *) between two letters, and not
# the brackets of a tag, which the first branch takes out of the way.
_LETTER = r"[^\W\d_]"
_NUMBER = re.compile(
    r"<[/|]?\w[\w|]*>|(\d+(?:[.,]\d+)*|[+=<>^%×÷±≤≥≠≈√]"
    rf"|(?<!{_LETTER})[-*/]|[-*/](?!{_LETTER}))"
)

Spans = list[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class TokenClasses:
    """Classes of one response's tokens.

    Attributes:
        classes: [T], indices into CLASSES.
        starts: [T] bool: this token begins a marker.
        pieces: What each token wrote.
    """

    classes: NDArray[np.int8]
    starts: NDArray[np.bool_]
    pieces: tuple[str, ...]


def classify(
    tokenizer: PreTrainedTokenizerBase,
    ids: Sequence[int],
    *,
    markers: Lexicon,
    control: Lexicon | None,
    ends: Iterable[int] = (),
) -> TokenClasses:
    """Class of every token of a response: marker, control word, number or operator, other.

    A token that overlaps two words belongs to the first class of that order.

    Args:
        tokenizer: The model's.
        ids: [T] the response, an end token included.
        markers: Words of doubt.
        control: Ordinary words of like frequency; None for none.
        ends: Ids of end tokens; one at the end is "other" and wrote nothing.
    """
    ended = bool(ids) and ids[-1] in set(ends)
    body = list(ids[:-1]) if ended else list(ids)
    text, spans = token_spans(tokenizer, body)
    classes = np.full(len(ids), OTHER, dtype=np.int8)
    starts = np.zeros(len(ids), dtype=np.bool_)
    found = [(NUMBER, match.span()) for match in _NUMBER.finditer(text) if match[1]]
    if control is not None:
        found += [(CONTROL, span) for span in marker_spans(text, control)]
    found += [(MARKER, span) for span in marker_spans(text, markers)]
    left = np.array([a for a, _ in spans], dtype=np.int64)
    right = np.array([b for _, b in spans], dtype=np.int64)
    for kind, (start, stop) in found:
        over = np.flatnonzero((left < stop) & (right > start) & (right > left))
        classes[over] = kind
        if kind == MARKER and over.size:
            starts[over[0]] = True
    pieces = tuple(text[a:b] for a, b in spans) + (("",) if ended else ())
    return TokenClasses(classes, starts, pieces)


def token_spans(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> tuple[str, Spans]:
    """The decoded text, and the characters [start, stop) of it that each token wrote.

    Tokens that share a character (bytes of one) all get it, so that a marker begins at the first.

    Args:
        tokenizer: A fast one.
        ids: [T] tokens, special tokens kept as text.
    """
    text, ends = token_ends(tokenizer, ids)
    starts = [0, *ends[:-1]]
    stops = ends.copy()
    for t in range(len(ids) - 2, -1, -1):
        if ends[t] == starts[t]:  # not a whole character: that of the token which completes it
            stops[t] = stops[t + 1]
    return text, list(zip(starts, stops, strict=True))
