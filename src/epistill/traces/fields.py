"""Where the parts of a trace stand in a record: one place that knows the names people use.

Enters: a record (a JSON object or a parquet row). Leaves: its responses as `Trace`s, and for each
the problem, sample number, tokens and truncation, with the name of the field that said so. The
names are data (`readers/record_fields.toml`). A field may lie inside others (`rollout.text`).
Beside a list of responses, a list of equal length under any other name is read element by element.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import wraps
from typing import Any, TypeVar

import orjson

from epistill.errors import EpistillError
from epistill.readers.text_records import Unusable, is_chat, role_of
from epistill.thinking import opens_thinking, split_thinking, with_thinking
from epistill.traces.reply_texts import (
    ASSISTANT,
    NAMES,
    RecordNames,
    get,
    is_log_likelihood,
    is_one_response,
    is_plural,
    kind_of_stop,
    listed,
    may_be_response,
    numbered_columns,
    plain,
    present,
    question_in,
    shape_of,
    spoken,
)

SCORE_FIELDS, SAMPLE_FIELDS = NAMES["score"], NAMES["sample"]
# What `measure` may look at; a parquet file's other columns are not read.
KNOWN_FIELDS = ("filter", *(name for names in NAMES.values() for name in names))
_NEITHER = ("answer", "solution")  # what may be the reference
VERDICT_WORDS = dict.fromkeys(NAMES["wrong"], 0) | dict.fromkeys(NAMES["right"], 1)
_VERDICTS = VERDICT_WORDS | {"c": 1, "i": 0, "p": 0.5, "n": 0}  # Inspect's letters
Found = TypeVar("Found")
_Place = tuple[int | None, int]  # index among the responses of a record, and their number
OTHER_FILTER = "the same responses under another filter"


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
        shape: Of the record; None computes it.
        known: What was looked up in it before.
    """

    text: str
    record: Mapping[str, Any]
    row: int
    index: int | None = None
    of: int = 1
    own: frozenset[str] = field(default=frozenset(), compare=False)
    turns: int = field(default=1, compare=False)
    shape: RecordNames | None = field(default=None, compare=False, repr=False)
    known: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)

    def first(self, names: Sequence[str], *, each: bool = False) -> tuple[Any, str | None]:
        """The first field that is there and not null, and its name; (None, None) without one.

        Args:
            names: Of fields.
            each: One value beside several responses is said of none of them.
        """
        for name in present(self.shape or shape_of(self.record), tuple(names)):
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
    shape = shape_of(record)
    names = present(shape, NAMES["response"] if field is None else (field,))
    found = value = None
    for name in names:
        value = get(record, name)
        if value is not None and (field is not None or may_be_response(name, value, record)):
            found = name
            break
    if found is None and (columns := numbered_columns(shape)):
        lists = {name: [record[c] for c in numbered if c in record] for name, numbered in columns}
        return traces_of({**record, **lists}, row, field)
    if found is None:
        names = tuple(name for name in names if name not in _NEITHER or field is not None)
        empty = next((name for name in names if get(record, name) is None), None)
        if empty is not None and present(shape, NAMES["reasoning"]):  # cut in thinking
            return [_trace(None, record, row, shape)], empty
        reason = "null response" if names else f"no field {field}" if field else "no response field"
        return [Unusable(reason)], next((name for name in names if name in record), None)
    value = listed(value, several=is_plural(found))
    if isinstance(value, list) and not is_one_response(found, value):
        while len(value) > 0 and all(isinstance(v, list) and not is_chat(v) for v in value):
            if any(map(is_log_likelihood, value)):
                return [Unusable("log-likelihoods, no text")], found
            value = [inner for v in value for inner in v]
        if not value:
            return [Unusable("empty list of responses")], found
        return [_trace(v, record, row, shape, (i, len(value))) for i, v in enumerate(value)], found
    return [_trace(value, record, row, shape)], found


def _trace(
    value: Any, record: Mapping[str, Any], row: int, shape: RecordNames, place: _Place = (None, 1)
) -> Trace | Unusable:
    own: Mapping[str, Any] = {}
    if isinstance(value, str):
        thinking, text, turns = "", value, 1
    else:
        value = listed(value)
        thinking, text, turns = spoken(value)
        if isinstance(value, Mapping):
            own = value
            # An id inside numbers the responses; the record's own says which problem they answer.
            ids = (*NAMES["problem"], *NAMES["number"])
            record = {**record, **value, **{name: record[name] for name in ids if name in record}}
        elif value is not None and not isinstance(value, list):
            return Unusable(f"response is a {type(value).__name__}, not text")
        elif isinstance(value, list) and not any(isinstance(v, Mapping) for v in value):
            return Unusable("response is a list, not text")
        elif is_chat(value) and not any(role_of(turn) in ASSISTANT for turn in value or ()):
            return Unusable("no assistant turn")
    shape = shape_of(record) if own else shape
    trace = Trace(text or "", record, row, *place, frozenset(own), turns, shape)
    if not thinking and not present(shape, NAMES["reasoning"]):
        return trace if text is not None else Unusable("null response")
    return _joined(trace, thinking, text)


def _joined(trace: Trace, thinking: str, text: str | None) -> Trace | Unusable:
    """The trace with thinking that stands beside its text; cut where only thinking is there."""
    if not thinking:
        thinking = plain(trace.first(NAMES["reasoning"])[0])
    if text and thinking and split_thinking(text).form != "absent":
        return trace  # the server says it twice
    if not thinking:
        return trace if text is not None else Unusable("null response")
    ended = bool(text) or stop_of(trace)[0] == "ended"
    return replace(trace, text=with_thinking(thinking, text or "", closed=ended), known={})


def _once(look: Callable[[Trace], Found]) -> Callable[[Trace], Found]:
    """Look up a trace's field once, however often it is asked for."""

    @wraps(look)
    def found(trace: Trace) -> Found:
        if look not in trace.known:
            trace.known[look] = look(trace)
        return trace.known[look]

    return found


BY_QUESTION, BY_STEM = "(question)", "(id without its last number)"
_STEM_END = re.compile(
    "[-_:/.#](?:(?:sample|rollout|run|rep|repeat|repetition|try|trial|attempt|seed|epoch|gen|"
    "generation|completion|response|choice|iter|s|r|n|k)[-_:/.#]?)?[0-9]+$",
    re.IGNORECASE,
)


def problem_of(trace: Trace, field: str | None = None) -> tuple[str | None, str | None]:
    """What tells the problem of a trace from others: an id, else the question, else a plain id.

    A field named `id` comes last, since many files number their responses with it.

    Args:
        trace: The trace.
        field: Where its problem is; BY_QUESTION or BY_STEM as `problem_keys` chose; None looks.

    Returns:
        (key, field), the key in one spelling; (None, None) where nothing tells.
    """
    key, name = _problem_as_written(trace, field)
    return None if key is None else one_spelling(key), name


def one_spelling(key: str) -> str:
    """Letters with marks composed (NFC): files of two systems write one id in two ways."""
    return unicodedata.normalize("NFC", key)


def _problem_as_written(trace: Trace, field: str | None) -> tuple[str | None, str | None]:
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
        >>> stem_end("prob-12-3"), stem_end("prob_7_sample_3"), stem_end("prob")
        ('-3', '_sample_3', '')
    """
    end = _STEM_END.search(key)
    return end[0] if end is not None and end.start() > 0 else ""


def question_of(trace: Trace) -> tuple[str | None, str | None]:
    """The question as text: a question field, or the last user turn of a chat."""
    for name in present(trace.shape or shape_of(trace.record), NAMES["question"]):
        if (text := question_in(trace.first((name,))[0])) is not None:
            return text, name
    return None, None


@_once
def tokens_of(trace: Trace) -> tuple[int | None, str | None]:
    """Tokens of the response as a field says, or the length of its token ids.

    What a server counts over several choices is known of none of them.
    """
    value, name = trace.first(NAMES["tokens"], each=True)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return len(value), name
    number = _number(value)
    if number is None or not 0 <= number < 2**53:  # -1 where nobody counted
        return None, None
    return int(number), name


@_once
def stop_of(trace: Trace) -> tuple[str | None, str | None]:
    """How the response ended: "ended" by itself, "cut" at a limit, "interrupted" by the server.

    Returns:
        (kind, field); a word that is not known instead of the kind; (None, None) without a field.
    """
    value, name = trace.first(NAMES["stop"], each=True)
    of_the_prompt = name == "truncated" and "padded" in trace.record  # lighteval
    kind = None if name is None or of_the_prompt else kind_of_stop(value, name)
    return (None, None) if kind is None else (kind, name)


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
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    number = _number(value)
    if value is None or isinstance(value, Mapping):
        return None, None
    if number is None:
        raise EpistillError(
            f"row {trace.row}: {what} {name!r} is {str(value)[:40]!r}; expected a number or a "
            "truth value"
        )
    return (None, None) if math.isnan(number) else (float(number), name)
