"""The tokens that can begin a marker: those whose probability is the marker mass.

Enters: a tokenizer and a lexicon. Leaves: token ids, and the markers that have none.
"""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from epistill.metrics.lexicon import Lexicon

SHORTEST_PREFIX = 4  # letters of a marker that its first token must have, to stand for it


@dataclass(frozen=True, slots=True)
class FirstTokens:
    """The tokens whose probability is the marker mass.

    Attributes:
        ids: Sorted; each begins a marker in some spelling (case, with or without a space).
        missing: Markers with no such token: their first token is shorter than four letters and
            not the whole word, so its probability is mostly that of other words.
    """

    ids: tuple[int, ...]
    missing: tuple[str, ...]


def first_tokens(tokenizer: PreTrainedTokenizerBase, lexicon: Lexicon) -> FirstTokens:
    """Tokens that begin a marker.

    A token counts if, without its space, it is the whole marker or its first four letters or more.
    So the mass is that of marker *beginnings*: with a vocabulary that splits "alternatively" it
    includes other words with the same beginning.

    Args:
        tokenizer: The model's.
        lexicon: The markers.
    """
    ids: set[int] = set()
    missing: list[str] = []
    for word in lexicon.words:
        mine: set[int] = set()
        for spelled in dict.fromkeys((word, word.capitalize(), word.upper())):
            for text in (spelled, " " + spelled, "\n" + spelled):
                mine |= _first_of(tokenizer, text, word)
        if not mine:
            missing.append(word)
        ids |= mine
    return FirstTokens(tuple(sorted(ids)), tuple(missing))


def _first_of(tokenizer: PreTrainedTokenizerBase, text: str, word: str) -> set[int]:
    """The token of `text` that begins the word, if it is long enough to stand for it."""
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    begins = len(text) - len(word)
    for token, (start, stop) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
        if stop <= begins:
            continue
        part = text[max(start, begins) : stop]
        known = token != tokenizer.unk_token_id
        long_enough = len(part) >= SHORTEST_PREFIX or part.lower() == word
        return {int(token)} if known and long_enough else set()
    return set()
