"""Where in the text each token lies, for any tokenizer; and which tokens belong to a marker.

Nothing is tokenised again: sampled ids need not be the ids that their text would be given.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any
from weakref import WeakKeyDictionary

from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerBase

Spans = Callable[[str], Sequence[tuple[int, int]]]

_PIECES: WeakKeyDictionary[PreTrainedTokenizerBase, dict[int, tuple[str, str]]] = (
    WeakKeyDictionary()
)


def token_ends(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> tuple[str, list[int]]:
    """The text of a response (special tokens kept), and of each id the characters up to its end.

    A token that alone is no whole character ends where its predecessor does.
    """
    if not ids:
        return "", []
    text = str(tokenizer.decode(list(ids), skip_special_tokens=False))
    known = _PIECES.setdefault(tokenizer, {})
    for token in set(ids).difference(known):
        alone, twice = (
            str(tokenizer.decode([token] * n, skip_special_tokens=False)) for n in (1, 2)
        )
        known[token] = (alone, twice[len(alone) :])  # many tokenizers put a blank between words
    pieces = [known[ids[0]][0], *(known[token][1] for token in ids[1:])]
    # Characters split over tokens, and blanks that depend on the neighbours, show up right here.
    if "".join(pieces) != text:
        stream = DecodeStream(skip_special_tokens=False)
        backend: Any = tokenizer.backend_tokenizer  # pyright: ignore[reportAttributeAccessIssue]
        pieces = [stream.step(backend, token) or "" for token in ids]
        text = "".join(pieces)
    return text, list(accumulate(map(len, pieces)))


def tokens_in_spans(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], find: Spans
) -> tuple[bool, ...]:
    """Whether each token shares a character with one of the spans that `find` sees in the text.

    Spans are ranges [start, stop) of characters, for example of `metrics.epistemic.marker_spans`.
    """
    text, ends = token_ends(tokenizer, ids)
    inside = [False] * len(ids)
    for start, stop in find(text):
        # The first token that ends behind `start`, up to the first that reaches `stop`.
        first, last = bisect_right(ends, start), bisect_left(ends, stop)
        inside[first : last + 1] = [True] * (min(last, len(ids) - 1) + 1 - first)
    return tuple(inside)
