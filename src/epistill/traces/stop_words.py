"""How a response ended, in the words of all servers (`record_fields.toml`).

Enters: what a field says. Leaves: "ended", "cut" or "interrupted", or a word that is not known.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from epistill.traces.reply_texts import FIELD_DATA

_KINDS: dict[str, str] = {
    word.replace("_", ""): kind
    for kind, words in FIELD_DATA["stop_words"].items()
    for word in words
}


def kind_of_stop(value: Any, name: str) -> str | None:
    """The kind, or the word itself where it is not known; None where the field says nothing.

    Example:
        >>> kind_of_stop("FinishReason.MAX_TOKENS", "finish_reason"), kind_of_stop("<|im_end|>", "")
        ('cut', 'ended')
    """
    if isinstance(value, Mapping):  # {"type": "length", "length": 10}, {"reason": "length"}
        value = value.get("type", value.get("reason"))
    if not isinstance(value, str | int | float):
        return None
    word = str(value).lower()
    said = isinstance(value, bool) or word in ("true", "false")
    if said or ("truncated" in name and not isinstance(value, str)):
        return "cut" if word not in ("false", "0", "0.0") else "ended"
    if not isinstance(value, str) or (word[:1] == "<" and word[-1:] == ">"):
        return "ended"  # the token that ended it
    kind = _KINDS.get(_letters(word))
    if kind is None and (name.endswith("status") or word in ("none", "null", "unknown", "")):
        return None
    return kind or value


@lru_cache(maxsize=1024)
def _letters(word: str) -> str:
    """`FinishReason.MAX_TOKENS`, `maxTokens` and `max_tokens` are one word."""
    letters = "".join(character for character in word if character.isalnum())
    return letters.removeprefix("finishreason") or letters
