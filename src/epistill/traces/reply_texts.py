"""What a response says, however it is wrapped: a chat, a message, its parts, a list in a string.

Enters: a record, or a value of one. Leaves: a value by its name, its thinking and text. `fields`
knows which names mean what.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import orjson

from epistill.readers.text_records import (
    FIELD_DATA,
    ROLES,
    column_stem,
    is_chat,
    plain_name,
    role_of,
)
from epistill.thinking import split_thinking

NAMES: dict[str, tuple[str, ...]] = {
    name: tuple(found) for name, found in FIELD_DATA.items() if isinstance(found, list)
}
_TYPES, _PLURAL = frozenset(NAMES["reasoning_types"]), frozenset(NAMES["plural"])
ASSISTANT = {"assistant", "gpt", "model", "bot", "ai", "chatbot", "response"}
_USER = {"user", "human", "request"}
# What a request asks for under a name of reasoning.
_SETTINGS = {"enabled", "disabled", "adaptive", "auto", "on", "off", "none", "minimal", "low",
             "medium", "high", "xhigh", "true", "false"}  # fmt: skip
MAX_LITERAL_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, eq=False)
class RecordNames:
    """The names in a record, and those with names inside; one object for all that are equal."""

    keys: tuple[str, ...]
    nested: tuple[str, ...]


def get(record: Mapping[str, Any], name: str) -> Any:
    """A field, dots leading inside (of each entry of a list); None where it is absent.

    Example:
        >>> get({"rollout": {"text": "so 3"}}, "rollout.text")
        'so 3'
    """
    if name in record:
        return record[name]
    value: Any = record
    for part in _parts(name):
        if isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
            value = [one.get(part) for one in value]
            if all(one is None for one in value):
                return None
            continue
        if not isinstance(value, dict):
            return None
        value = next(iter(value.values()), None) if part == "*" else value.get(part)
    return value


@lru_cache(maxsize=4096)
def _parts(name: str) -> tuple[str, ...]:
    return tuple(name.split("."))


def shape_of(record: Mapping[str, Any]) -> RecordNames:
    """The shape of a record; few records of a file differ in it."""
    nested = [name for name, value in record.items() if isinstance(value, dict | list)]
    return _shape(tuple(record), tuple(nested))


_shape = lru_cache(maxsize=4096)(RecordNames)


@lru_cache(maxsize=4096)
def present(shape: RecordNames, names: tuple[str, ...]) -> tuple[str, ...]:
    """Those names that a record of this shape can hold; `Final Answer` is `final_answer`."""
    keys, nested = set(shape.keys), set(shape.nested)
    plain_names = {plain_name(key): key for key in reversed(shape.keys)}
    found = (
        name
        if name in keys or name.partition(".")[0] in nested
        else plain_names.get(plain_name(name))
        for name in names
    )
    return tuple(dict.fromkeys(name for name in found if name is not None))


@lru_cache(maxsize=4096)
def numbered_columns(shape: RecordNames) -> tuple[tuple[str, list[str]], ...]:
    """Columns that are one list in a wide table: `output_0`, `output_1` are `output`."""
    found: dict[str, list[str]] = {}
    for key in shape.keys:
        found.setdefault(column_stem(key), []).append(key)
    wide = {stem: keys for stem, keys in found.items() if stem not in shape.keys and keys[1:]}
    return tuple((stem, sorted(keys, key=lambda k: (len(k), k))) for stem, keys in wide.items())


def listed(value: Any, *, several: bool = False) -> Any:
    """A list that is stored as a string, as tables do (chats; `several` responses too)."""
    if not isinstance(value, str) or not value.startswith("[" if several else "[{"):
        return value
    for read in (orjson.loads, ast.literal_eval)[: 1 + (len(value) <= MAX_LITERAL_BYTES)]:
        with suppress(ValueError, SyntaxError, MemoryError, RecursionError):
            found = read(value)
            fits = several and found and all(isinstance(one, str | dict) for one in found)
            return found if fits or is_chat(found) else value
    return value


def may_be_response(name: str, value: Any, record: Mapping[str, Any]) -> bool:
    """Whether the value under a name of responses is one, or several, in this record."""
    if name == "answer":  # the reference, unless another field says that
        return isinstance(value, str) and any(record.get(n) for n in NAMES["reference"])
    if name == "solution":  # a worked one, unless nothing is asked beside it (EvalPlus)
        return "task_id" in record and not present(shape_of(record), NAMES["question"])
    # A number under `samples` is a count, and plain texts under `choices` are options to choose.
    if name.endswith("choices"):
        return isinstance(value, list) and all(isinstance(v, Mapping) for v in value)
    if name in ("message", "content") and isinstance(value, Mapping | list):
        return bool(value)
    return isinstance(value, (str, list, dict))


def is_log_likelihood(value: list[Any]) -> bool:
    """Whether lm-evaluation-harness wrote (log-likelihood, whether it was the largest)."""
    try:
        float(value[0])
    except (ValueError, TypeError, IndexError):
        return False
    return len(value) == 2 and str(value[1]) in ("True", "False")


def is_plural(name: str) -> bool:
    """Whether a list under this name is several responses."""
    return plain_name(name) in _PLURAL


def is_one_response(name: str, value: list[Any]) -> bool:
    """Whether a list is one response: a chat, or the parts of a message."""
    if is_chat(value):
        alone = all(role_of(turn) in ASSISTANT for turn in value)
        return not (alone and len(value) > 1 and is_plural(name))
    return bool(value) and all(isinstance(v, Mapping) and "type" in v for v in value)


def question_in(value: Any) -> str | None:
    """The question as text: a text, or the last user turn of a chat."""
    value = listed(value)
    if is_chat(value):
        asked = next((turn for turn in reversed(value) if role_of(turn) in _USER), {})
        value = spoken(_without_role(asked))[1]
    return value if isinstance(value, str) and value.strip() else None


def spoken(value: Any) -> tuple[str, str | None, int]:
    """Thinking, text (None without any) and turns of a chat, a message, its parts or an object."""
    if value is None or isinstance(value, str):
        return "", value, 1
    if is_chat(value):
        asked = max((i for i, turn in enumerate(value) if role_of(turn) in _USER), default=-1)
        turns = [turn for turn in value[asked + 1 :] if role_of(turn) in ASSISTANT]
        said = [spoken(_without_role(turn))[:2] for turn in turns]
        said = [(thinking, text) for thinking, text in said if thinking or text]
        if len(said) > 1:  # every turn may have thinking of its own
            parts = [split_thinking(text or "") for _, text in said]
            said = [
                (f"{thinking}\n{part.thinking}".strip(), part.answer)
                for (thinking, _), part in zip(said, parts, strict=True)
            ]
        elif not said and turns and any("content" in t and t["content"] == "" for t in turns):
            return "", "", 1
        texts = [text for _, text in said if text]
        return _lines(t for t, _ in said), "\n".join(texts) if texts else None, max(1, len(said))
    if isinstance(value, list):
        said = [spoken(part)[:2] for part in value]
        texts = [text for _, text in said if text is not None]
        return _lines(t for t, _ in said), "".join(texts) if texts else None, 1
    if not isinstance(value, Mapping):
        return "", None, 1
    if (
        value.get("type", value.get("part_kind")) in _TYPES  # the latter is Pydantic AI's
        or value.get("thought") is True
        or value.get("channel") == "analysis"  # harmony
    ):
        return plain(value), None, 1
    thinking = next((t for n in NAMES["reasoning"] if (t := plain(get(value, n)))), "")
    content = next((value[n] for n in NAMES["text"] if value.get(n) is not None), None)
    if content is value.get("nodes") and isinstance(content, list):  # verifiers: a graph of turns
        content = [node.get("message") for node in content]
    inner, text, turns = spoken(listed(content))
    return thinking or inner, text, turns


def _without_role(turn: Mapping[str, Any]) -> Mapping[str, Any]:
    if isinstance(inner := turn.get("data"), Mapping):  # LangChain's `messages_to_dict`
        return inner
    return {name: value for name, value in turn.items() if name not in ROLES}


def _lines(parts: Any) -> str:
    return "\n".join(part for part in parts if part)


def plain(value: Any) -> str:
    """The text of reasoning, however it is wrapped; "" where there is none to read."""
    if isinstance(value, str):
        return "" if len(value) < 10 and value.lower() in _SETTINGS else value
    if isinstance(value, list):
        return _lines(map(plain, value))
    if isinstance(value, Mapping) and "effort" not in value:
        # What is redacted is there in code; its summary may be told.
        names = ("summary",) if value.get("redacted") else NAMES["reasoning_texts"]
        return next((t for n in names if (t := plain(value.get(n)))), "")
    return ""


_KINDS: dict[str, str] = {
    word.replace("_", ""): kind
    for kind, words in FIELD_DATA["stop_words"].items()
    for word in words
}

_SAYS_NOTHING = ("none", "null", "unknown", "unspecified", "")


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
    kind = _KINDS.get(letters := _letters(word))
    if kind is None and (name.endswith("status") or letters in _SAYS_NOTHING):
        return None
    return kind or value


@lru_cache(maxsize=1024)
def _letters(word: str) -> str:
    """`FinishReason.MAX_TOKENS`, `maxTokens` and `max_tokens` are one word."""
    letters = "".join(character for character in word if character.isalnum())
    for prefix in ("finishreason", "reason", "finished"):  # of enumerations of SDKs
        letters = letters.removeprefix(prefix) or letters
    return letters
