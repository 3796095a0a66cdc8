"""Where the parts of a trace stand in a record: one place that knows the names people use.

Enters: a record (a JSON object or a parquet row). Leaves: its responses as `Trace`s, and for each
the problem, sample number, tokens and truncation, with the name of the field that said so. A field
may lie inside others (`rollout.text`). Beside a list of responses, a list of equal length under any
other name is read element by element (`scores` beside `responses`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import orjson

from epistill.errors import EpistillError
from epistill.readers.text_records import Unusable
from epistill.tasks.files import ID_FIELDS, QUESTION_FIELDS
from epistill.thinking import opens_thinking, with_thinking

# In this order; the first that is there and not null is used.
RESPONSE_FIELDS = (
    "response.body.choices", "response", "completion", "output", "generation", "generated_text",
    "model_output", "prediction", "responses", "completions", "outputs", "generations",
    "generated_responses", "generated_texts", "predictions", "samples", "rollout.text", "rollout",
    "choices", "messages", "conversations", "text",
)  # fmt: skip
PROBLEM_FIELDS = (
    "problem_id", "question_id", "task_id", "example_id", "custom_id", "problem.id",
)  # fmt: skip
SAMPLE_FIELDS = ("sample", "sample_index", "sample_id", "rollout.sample")
TOKEN_FIELDS = (
    "n_tokens", "num_tokens", "completion_tokens", "output_tokens", "usage.completion_tokens",
    "response.body.usage.completion_tokens", "completion_ids", "rollout.completion_ids",
)  # fmt: skip
STOP_FIELDS = (
    "finish_reason", "finish_reasons", "truncated", "is_truncated", "stop_reason", "stop_reasons",
    "rollout.stop_reason",
)  # fmt: skip
SCORE_FIELDS = (
    "grade_score", "score", "correct", "is_correct", "reward", "scores", "rewards",
)  # fmt: skip
_OPENED_FIELDS = ("opened_thinking", "rollout.opened_thinking")
_PROMPT_FIELDS = ("rendered_prompt", "prompt_text", "prompt")
# What `measure` may look at; a parquet file's other columns are not read.
KNOWN_FIELDS = (
    *RESPONSE_FIELDS, *PROBLEM_FIELDS, *QUESTION_FIELDS, *ID_FIELDS, "extra_info", *SAMPLE_FIELDS,
    *TOKEN_FIELDS, *STOP_FIELDS, *SCORE_FIELDS, *_OPENED_FIELDS, *_PROMPT_FIELDS,
)  # fmt: skip
CUT = {"length", "max_tokens", "max_length", "max_new_tokens", "truncated"}
_TEXT_FIELDS = (
    "content", "text", "message", "response", "completion", "output", "generated_text", "value",
)  # fmt: skip
_REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking")
_CHATS = ("messages", "conversations")
_ASSISTANT, _USER = {"assistant", "gpt", "model", "bot"}, {"user", "human"}
_ROLES = ("role", "from")


@dataclass(frozen=True, slots=True)
class Trace:
    """One response and the record it stands in.

    Attributes:
        text: The response; reasoning that a server returned apart is put back in `<think>` tags.
        record: The whole record; for a response that is an object itself, with its fields on top.
        row: Line of a JSONL file, row of a parquet file, from 1.
        index: Position in the record's list of responses; None for a record with one response.
        of: Length of that list.
    """

    text: str
    record: Mapping[str, Any]
    row: int
    index: int | None = None
    of: int = 1

    def first(self, names: Sequence[str]) -> tuple[Any, str | None]:
        """The first field that is there and not null, and its name; (None, None) without one."""
        for name in present(tuple(self.record), tuple(names)):
            value = get(self.record, name)
            if self.index is not None and isinstance(value, list) and len(value) == self.of:
                value = value if is_chat(value) else value[self.index]
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
        value = value.get(part) if isinstance(value, Mapping) else None
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
        field: Where the response is; None looks through RESPONSE_FIELDS.

    Returns:
        At least one entry: a response, or why there is none.

    Example:
        >>> traces, field = traces_of({"responses": ["a", None]}, row=1)
        >>> traces[0].text, str(traces[1]), field
        ('a', 'null response', 'responses')
    """
    names = present(tuple(record), RESPONSE_FIELDS if field is None else (field,))
    values = ((name, get(record, name)) for name in names)
    if field is None:
        values = ((name, value) for name, value in values if _may_be_response(name, value))
    found, value = next(((n, v) for n, v in values if v is not None), (None, None))
    if found is None:
        reason = "null response" if names else f"no field {field}" if field else "no response field"
        return [Unusable(reason)], names[0] if names else None
    value = _turns(value)
    if not isinstance(value, list) or (is_chat(value) and not _are_replies(found, value)):
        return [_trace(value, record, row)], found
    if not value:
        return [Unusable("empty list of responses")], found
    return [_trace(v, record, row, i, len(value)) for i, v in enumerate(value)], found


def _may_be_response(name: str, value: Any) -> bool:
    # A number under `samples` is a count, and plain texts under `choices` are options to choose.
    if name.endswith("choices"):
        return isinstance(value, list) and all(isinstance(v, Mapping) for v in value)
    return value is None or isinstance(value, str | list | Mapping)


def _turns(value: Any) -> Any:
    """A chat that is stored as a JSON string, as parquet files do; else the value itself."""
    if isinstance(value, str) and value.startswith("[{"):
        try:
            turns = orjson.loads(value)
        except orjson.JSONDecodeError:
            return value
        return turns if is_chat(turns) else value
    return value


def is_chat(value: Any) -> bool:
    """Whether a value is a list of turns with a role each."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(turn, Mapping) and any(r in turn for r in _ROLES) for turn in value)
    )


def _are_replies(name: str, turns: list[Any]) -> bool:
    """Whether several turns of the assistant alone are as many responses, not one chat."""
    alone = all(turn.get("role", turn.get("from")) in _ASSISTANT for turn in turns)
    return alone and len(turns) > 1 and name not in _CHATS


def _last_turn(turns: list[Any], roles: set[str]) -> Mapping[str, Any] | None:
    spoken = ((next(turn[r] for r in _ROLES if r in turn), turn) for turn in reversed(turns))
    return next((turn for role, turn in spoken if role in roles), None)


def _trace(
    value: Any, record: Mapping[str, Any], row: int, index: int | None = None, of: int = 1
) -> Trace | Unusable:
    if isinstance(value, str):
        return Trace(value, record, row, index, of)
    try:
        text = _text(_turns(value))
    except Unusable as unusable:
        return unusable
    if isinstance(value, Mapping):
        # An id inside numbers the responses; the record's own says which problem they answer.
        ids = (*PROBLEM_FIELDS, *ID_FIELDS)
        record = {**record, **value, **{name: record[name] for name in ids if name in record}}
    return Trace(text, record, row, index, of)


def _text(value: Any) -> str:
    """The text of a response that is a chat, a message or an object."""
    if value is None:
        raise Unusable("null response")
    if isinstance(value, str):
        return value
    if is_chat(value):
        reply = _last_turn(value, _ASSISTANT)
        if reply is None:
            raise Unusable("no assistant turn")
        return _text(reply)
    if isinstance(value, Mapping):
        content = next((value[n] for n in _TEXT_FIELDS if value.get(n) is not None), None)
        thinking = next((value[n] for n in _REASONING_FIELDS if value.get(n)), None)
        if isinstance(content, list):  # parts, as multimodal servers return them
            content = "".join(p.get("text") or "" for p in content if isinstance(p, Mapping))
        if isinstance(thinking, str):
            return with_thinking(thinking, "" if content is None else _text(content))
        return _text(content)
    raise Unusable(f"response is a {type(value).__name__}, not text")


def problem_of(trace: Trace, field: str | None = None) -> tuple[str | None, str | None]:
    """What tells the problem of a trace from others: an id, else the question, else a plain id.

    A field named `id` comes last, since many files number their responses with it.

    Returns:
        (key, field); (None, None) where nothing tells.
    """
    value, name = trace.first((field,) if field else PROBLEM_FIELDS)
    if value is None and field is None:
        value, name = question_of(trace)
        if value is None:
            value, name = trace.first((*ID_FIELDS, "extra_info.index"))
    if value is None:
        return None, None
    if isinstance(value, str):
        return value, name
    try:
        return orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS).decode(), name
    except orjson.JSONEncodeError:  # beyond 64 bits
        return str(value), name


def question_of(trace: Trace) -> tuple[str | None, str | None]:
    """The question as text: a question field, or the last user turn of a chat."""
    value, name = trace.first((*QUESTION_FIELDS, *_CHATS))
    value = _turns(value)
    if is_chat(value):
        asked = _last_turn(value, _USER) or {}
        value = asked.get("content", asked.get("value"))
    return (value, name) if isinstance(value, str) else (None, None)


def tokens_of(trace: Trace) -> tuple[int | None, str | None]:
    """Tokens of the response as a field says, or the length of its token ids.

    What a server counts over several choices is known of none of them.
    """
    value, name = trace.first(TOKEN_FIELDS)
    if name is not None and "usage." in name and trace.of > 1:
        return None, None
    if isinstance(value, Sequence) and not isinstance(value, str):
        return len(value), name
    finite = isinstance(value, int | float) and math.isfinite(value)
    return (int(value), name) if finite else (None, None)


def cut_of(trace: Trace) -> tuple[bool | None, str | None]:
    """Whether the response was cut at a limit, as a field says; (None, None) where none does."""
    value, name = trace.first(STOP_FIELDS)
    if isinstance(value, Mapping):  # SGLang's {"type": "length", "length": 10}
        value = value.get("type")
    value = _spelled_out(value)
    if name is None or not isinstance(value, str | int | float):
        return None, None
    if isinstance(value, str):
        return value.lower() in CUT, name
    return bool(value) and "truncated" in name, name  # a number elsewhere is the id of a token


def _spelled_out(value: Any) -> Any:
    """A truth value that was written as a word; anything else as it is."""
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    return value


def opened_in_prompt(trace: Trace) -> bool:
    """Whether a field says, or a rendered prompt shows, that the prompt opened `<think>`."""
    said, _ = trace.first(_OPENED_FIELDS)
    if said is not None:
        return bool(said)
    prompt, _ = trace.first(_PROMPT_FIELDS)
    return isinstance(prompt, str) and opens_thinking(prompt)


def number_of(trace: Trace, names: Sequence[str], what: str) -> tuple[float | None, str | None]:
    """A field that must be a number or a truth value ("true" too), or a list of one.

    Raises:
        EpistillError: It is something else.
    """
    value, name = trace.first(names)
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    value = _spelled_out(value)
    if value is None:
        return None, None
    if not isinstance(value, int | float):
        raise EpistillError(
            f"row {trace.row}: {what} {name!r} is {str(value)[:40]!r}; expected a number or a "
            "truth value"
        )
    return (None, None) if math.isnan(value) else (float(value), name)
