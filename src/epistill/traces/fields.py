"""Where the parts of a trace stand in a record: one place that knows the names people use.

Enters: a record (a JSON object or a parquet row). Leaves: its responses as `Trace`s, and for each
the problem, sample number, tokens and truncation, with the name of the field that said so. The
names are data (`record_fields.toml`). A field may lie inside others (`rollout.text`). Beside a list
of responses, a list of equal length under any other name is read element by element.
"""

from __future__ import annotations

import ast
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import orjson

from epistill.errors import EpistillError
from epistill.readers.text_records import Unusable
from epistill.thinking import opens_thinking, split_thinking, with_thinking

_DATA = tomllib.loads(Path(__file__).with_name("record_fields.toml").read_text(encoding="utf-8"))
NAMES: dict[str, tuple[str, ...]] = {k: tuple(v) for k, v in _DATA.items() if isinstance(v, list)}
SCORE_FIELDS, SAMPLE_FIELDS = NAMES["score"], NAMES["sample"]
# What `measure` may look at; a parquet file's other columns are not read.
KNOWN_FIELDS = ("filter", *(name for names in NAMES.values() for name in names))
_KIND_OF_STOP: dict[str, Literal["ended", "cut", "interrupted"]] = {
    word: kind for kind, words in _DATA["stop_words"].items() for word in words
}
_PLURAL, _TYPES = frozenset(NAMES["plural"]), frozenset(NAMES["reasoning_types"])
_ASSISTANT = {"assistant", "gpt", "model", "bot", "ai", "chatbot"}
_USER = {"user", "human"}
_ROLES = ("role", "from")
_VERDICTS = {"true": 1, "false": 0, "c": 1, "i": 0, "p": 0.5, "n": 0}  # Inspect's letters
OTHER_FILTER = "the same responses under another filter"
MAX_LITERAL = 1 << 20


@dataclass(frozen=True, slots=True)
class Trace:
    """One response and the record it stands in.

    Attributes:
        text: The response; reasoning that a server returned apart is put back in `<think>` tags.
        record: The whole record; for a response that is an object itself, with its fields on top.
        row: Line of a JSONL file, row of a parquet file, from 1.
        index: Position in the record's list of responses; None for a record with one response.
        of: Length of that list.
        own: Names that the response itself has, where it is an object.
        turns: Turns of the assistant that were taken as this one response.
    """

    text: str
    record: Mapping[str, Any]
    row: int
    index: int | None = None
    of: int = 1
    own: frozenset[str] = field(default=frozenset(), compare=False)
    turns: int = field(default=1, compare=False)

    def first(self, names: Sequence[str], *, each: bool = False) -> tuple[Any, str | None]:
        """The first field that is there and not null, and its name; (None, None) without one.

        Args:
            names: Of fields.
            each: One value beside several responses is said of none of them.
        """
        for name in present(tuple(self.record), tuple(names)):
            value = get(self.record, name)
            if self.index is not None and name.partition(".")[0] not in self.own:
                if isinstance(value, list) and len(value) == 1 and self.of > 1:
                    value = value[0]  # one request's list of responses
                if isinstance(value, list) and len(value) == self.of:
                    value = value if is_chat(value) else value[self.index]
                elif each and self.of > 1 and not isinstance(value, list):
                    continue
            if value is not None:
                return value, name
        return None, None


def get(record: Mapping[str, Any], name: str) -> Any:
    """A field, dots leading inside; None where it is absent.

    Example:
        >>> get({"rollout": {"text": "so 3"}}, "rollout.text")
        'so 3'
    """
    if name in record:
        return record[name]
    value: Any = record
    for part in name.split("."):
        if not isinstance(value, Mapping):
            return None
        value = next(iter(value.values()), None) if part == "*" else value.get(part)
    return value


@lru_cache(maxsize=4096)
def present(keys: tuple[str, ...], names: tuple[str, ...]) -> tuple[str, ...]:
    """Those names that a record with these keys can hold; few records differ in their keys."""
    return tuple(name for name in names if name in keys or name.partition(".")[0] in keys)


def traces_of(
    record: Mapping[str, Any], row: int, field: str | None = None
) -> tuple[list[Trace | Unusable], str | None]:
    """The responses of a record, and the field they came from.

    Args:
        record: A JSON object.
        row: Its number in the file.
        field: Where the response is; None looks through the usual names.

    Returns:
        At least one entry: a response, or why there is none.

    Example:
        >>> traces, field = traces_of({"responses": ["a", None]}, row=1)
        >>> traces[0].text, str(traces[1]), field
        ('a', 'null response', 'responses')
    """
    names = present(tuple(record), NAMES["response"] if field is None else (field,))
    values = ((name, get(record, name)) for name in names)
    if field is None:
        values = ((name, value) for name, value in values if _may_be_response(name, value))
    found, value = next(((n, v) for n, v in values if v is not None), (None, None))
    if found is None:
        reason = "null response" if names else f"no field {field}" if field else "no response field"
        return [Unusable(reason)], next((name for name in names if name in record), None)
    value = _listed(value, several=found in _PLURAL)
    if isinstance(value, list) and not _is_one(found, value):
        while len(value) > 0 and all(isinstance(v, list) and not is_chat(v) for v in value):
            value = [inner for v in value for inner in v]
        if not value:
            return [Unusable("empty list of responses")], found
        return [_trace(v, record, row, i, len(value)) for i, v in enumerate(value)], found
    return [_trace(value, record, row)], found


def _may_be_response(name: str, value: Any) -> bool:
    # A number under `samples` is a count, and plain texts under `choices` are options to choose.
    if name.endswith("choices"):
        return isinstance(value, list) and all(isinstance(v, Mapping) for v in value)
    if name in ("message", "content") and isinstance(value, Mapping | list):
        return bool(value)
    return value is None or isinstance(value, str | list | Mapping)


def _listed(value: Any, *, several: bool = False) -> Any:
    """A list that is stored as a string, as tables do (chats; `several` responses too)."""
    if not isinstance(value, str) or not value.startswith("["):
        return value
    if value.startswith("[{"):
        try:
            turns = orjson.loads(value)
        except orjson.JSONDecodeError:
            return value
        return turns if several or is_chat(turns) else value
    if several and value.endswith("]") and len(value) <= MAX_LITERAL:
        try:
            found = ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return value
        return found if found and all(isinstance(one, str) for one in found) else value
    return value


def is_chat(value: Any) -> bool:
    """Whether a value is a list of turns with a role each."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(turn, Mapping) and any(r in turn for r in _ROLES) for turn in value)
    )


def _is_one(name: str, value: list[Any]) -> bool:
    """Whether a list is one response: a chat, or the parts of a message."""
    if is_chat(value):
        alone = all(_role(turn) in _ASSISTANT for turn in value)
        return not (alone and len(value) > 1 and name in _PLURAL)
    return bool(value) and all(isinstance(v, Mapping) and "type" in v for v in value)


def _role(turn: Mapping[str, Any]) -> str:
    return str(next(turn[r] for r in _ROLES if r in turn)).lower()


def _trace(
    value: Any, record: Mapping[str, Any], row: int, index: int | None = None, of: int = 1
) -> Trace | Unusable:
    own: Mapping[str, Any] = {}
    if isinstance(value, str):
        thinking, text, turns = "", value, 1
    else:
        value = _listed(value)
        thinking, text, turns = _spoken(value)
        if isinstance(value, Mapping):
            own = value
            # An id inside numbers the responses; the record's own says which problem they answer.
            ids = (*NAMES["problem"], *NAMES["number"])
            record = {**record, **value, **{name: record[name] for name in ids if name in record}}
        elif value is not None and not isinstance(value, list):
            return Unusable(f"response is a {type(value).__name__}, not text")
        elif isinstance(value, list) and not any(isinstance(v, Mapping) for v in value):
            return Unusable("response is a list, not text")
        elif is_chat(value) and not any(_role(turn) in _ASSISTANT for turn in value or ()):
            return Unusable("no assistant turn")
    trace = Trace(text or "", record, row, index, of, frozenset(own), turns)
    if not thinking and not present(tuple(record), NAMES["reasoning"]):
        return trace if text is not None else Unusable("null response")
    return _joined(trace, thinking, text)


def _joined(trace: Trace, thinking: str, text: str | None) -> Trace | Unusable:
    """The trace with thinking that stands beside its text; cut where only thinking is there."""
    if not thinking:
        thinking = _plain(trace.first(NAMES["reasoning"])[0])
    if text and thinking and split_thinking(text).form != "absent":
        return trace  # the server says it twice
    if not thinking:
        return trace if text is not None else Unusable("null response")
    ended = bool(text) or stop_of(trace)[0] == "ended"
    return replace(trace, text=with_thinking(thinking, text or "", closed=ended))


def _spoken(value: Any) -> tuple[str, str | None, int]:
    """Thinking, text (None without any) and turns of a chat, a message, its parts or an object."""
    if value is None or isinstance(value, str):
        return "", value, 1
    if is_chat(value):
        asked = max((i for i, turn in enumerate(value) if _role(turn) in _USER), default=-1)
        turns = [turn for turn in value[asked + 1 :] if _role(turn) in _ASSISTANT]
        said = [_spoken(_without_role(turn))[:2] for turn in turns]
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
        said = [_spoken(part)[:2] for part in value]
        texts = [text for _, text in said if text is not None]
        return _lines(t for t, _ in said), "".join(texts) if texts else None, 1
    if not isinstance(value, Mapping):
        return "", None, 1
    if value.get("type") in _TYPES or value.get("thought") is True:
        return _plain(value), None, 1
    thinking = next((t for n in NAMES["reasoning"] if (t := _plain(value.get(n)))), "")
    content = next((value[n] for n in NAMES["text"] if value.get(n) is not None), None)
    inner, text, turns = _spoken(_listed(content))
    return thinking or inner, text, turns


def _without_role(turn: Mapping[str, Any]) -> Mapping[str, Any]:
    return {name: value for name, value in turn.items() if name not in _ROLES}


def _lines(parts: Any) -> str:
    return "\n".join(part for part in parts if part)


def _plain(value: Any) -> str:
    """The text of reasoning, however it is wrapped; "" where there is none to read."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return _lines(map(_plain, value))
    if isinstance(value, Mapping):
        return next((t for n in NAMES["reasoning_texts"] if (t := _plain(value.get(n)))), "")
    return ""


BY_QUESTION, BY_STEM = "(question)", "(id without its last number)"


def problem_of(trace: Trace, field: str | None = None) -> tuple[str | None, str | None]:
    """What tells the problem of a trace from others: an id, else the question, else a plain id.

    A field named `id` comes last, since many files number their responses with it.

    Args:
        trace: The trace.
        field: Where its problem is; BY_QUESTION or BY_STEM as `problem_keys` chose; None looks.

    Returns:
        (key, field); (None, None) where nothing tells.
    """
    if field == BY_QUESTION:
        return question_of(trace)
    by_stem = field == BY_STEM
    value, name = trace.first(NAMES["problem"] if field is None or by_stem else (field,))
    if value is None and (field is None or by_stem):
        value, name = question_of(trace)
        if value is None:
            value, name = trace.first(NAMES["number"])
    if value is None:
        return None, None
    if isinstance(value, str):
        return value.removesuffix(stem_end(value)) if by_stem else value, name
    try:
        return orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS).decode(), name
    except orjson.JSONEncodeError:  # beyond 64 bits
        return str(value), name


def stem_end(key: str) -> str:
    """The separator and number that an id ends in; "" where it ends in none.

    Example:
        >>> stem_end("prob-12-3"), stem_end("prob")
        ('-3', '')
    """
    stem = key.rstrip("0123456789")
    return key[len(stem) - 1 :] if len(stem) < len(key) and stem[-1:] in "-_:/.#" and stem else ""


def question_of(trace: Trace) -> tuple[str | None, str | None]:
    """The question as text: a question field, or the last user turn of a chat."""
    value, name = trace.first(NAMES["question"])
    value = _listed(value)
    if is_chat(value):
        asked = next((turn for turn in reversed(value) if _role(turn) in _USER), {})
        value = _spoken(_without_role(asked))[1]
    return (value, name) if isinstance(value, str) else (None, None)


def tokens_of(trace: Trace) -> tuple[int | None, str | None]:
    """Tokens of the response as a field says, or the length of its token ids.

    What a server counts over several choices is known of none of them.
    """
    value, name = trace.first(NAMES["tokens"], each=True)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return len(value), name
    number = _number(value)
    finite = number is not None and math.isfinite(number)
    return (int(number), name) if finite and number is not None else (None, None)


def stop_of(trace: Trace) -> tuple[str | None, str | None]:
    """How the response ended: "ended" by itself, "cut" at a limit, "interrupted" by the server.

    Returns:
        (kind, field); a word that is not known instead of the kind; (None, None) without a field.
    """
    value, name = trace.first(NAMES["stop"], each=True)
    if isinstance(value, Mapping):  # {"type": "length", "length": 10}, {"reason": "length"}
        value = value.get("type", value.get("reason"))
    if name is None or not isinstance(value, str | int | float):
        return None, None
    word = str(value).lower().replace("-", "_").replace(" ", "_")
    if "truncated" in name:
        if "padded" in trace.record:  # lighteval: of the prompt
            return None, None
        if word in ("true", "false") or not isinstance(value, str):
            return "cut" if word not in ("false", "0", "0.0") else "ended", name
    if not isinstance(value, str):
        return "ended", name  # the id of the token that ended it
    kind = _KIND_OF_STOP.get(word)
    if kind is None and (name.endswith("status") or word in ("none", "null", "unknown", "")):
        return None, None
    return kind or value, name


def cut_of(trace: Trace) -> tuple[bool | None, str | None]:
    """Whether the response was cut short, at a limit or by the server; None where nothing tells."""
    kind, name = stop_of(trace)
    if kind not in ("ended", "cut", "interrupted"):
        return None, None
    return kind != "ended", name


def opened_in_prompt(trace: Trace) -> bool:
    """Whether a field says, or a rendered prompt shows, that the prompt opened thinking."""
    said, _ = trace.first(NAMES["opened"])
    if said is not None:
        return bool(said)
    prompt, _ = trace.first(NAMES["prompt"])
    return isinstance(prompt, str) and opens_thinking(prompt)


def _number(value: Any) -> float | None:
    """A number, a truth value, or one of these as a word; None for anything else."""
    if isinstance(value, str):
        try:
            value = _VERDICTS.get(value.lower()) if value.isalpha() else float(value)
        except ValueError:
            return None
    return value if isinstance(value, int | float) else None


def number_of(trace: Trace, names: Sequence[str], what: str) -> tuple[float | None, str | None]:
    """A field that must be a number or a truth value ("true" too), or a list of one.

    Raises:
        EpistillError: It is something else.
    """
    value, name = trace.first(names, each=True)
    if isinstance(value, Mapping):  # Inspect: {"scorer": {"value": "C"}}
        value = get({"of": value}, "of.*.value")
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    number = _number(value)
    if value is None:
        return None, None
    if number is None:
        raise EpistillError(
            f"row {trace.row}: {what} {name!r} is {str(value)[:40]!r}; expected a number or a "
            "truth value"
        )
    return (None, None) if math.isnan(number) else (float(number), name)
