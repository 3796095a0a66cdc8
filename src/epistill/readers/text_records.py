"""Records out of text: JSON lines, one JSON array or object, CSV.

All give (record, bytes it took); what is no record is `Unusable` with the reason. No more than
MAX_RECORD_BYTES of a record is held (MAX_OBJECT_BYTES of a file that is one object), and after a
longer line at most MAX_SKIPPED_BYTES are searched for the next one: a stream that inflates for
nothing ends there.
"""

from __future__ import annotations

import csv
import io
import json
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson

HALF_WRITTEN = "half-written last line"
BOM = b"\xef\xbb\xbf"
READ_BYTES = 64 << 10
HEAD_BYTES = 64 << 10
MAX_RECORD_BYTES = 64 << 20
MAX_OBJECT_BYTES = 256 << 20
MAX_SKIPPED_BYTES = 1 << 30
ROLES = ("role", "from")
# Where LangChain and Pydantic AI say who speaks; other things have such names too.
_SPEAKERS = {"type": ("human", "ai", "system", "tool"), "kind": ("request", "response")}
_HEADER = re.compile(r'"?[\w .:@/-]{0,64}"?')
FIELD_DATA: dict[str, Any] = tomllib.loads(
    Path(__file__).with_name("record_fields.toml").read_text(encoding="utf-8")
)
_HOLDERS = FIELD_DATA["whole_file"]["holders"]
_OF_A_RECORD = frozenset(FIELD_DATA["whole_file"]["of_a_record"])


class Unusable(Exception):
    """What cannot be used; the message is the reason it is counted under."""


Parsed = Mapping[str, Any] | Unusable | None


def kind_of(head: bytes, suffix: str) -> str:
    """What text is, by how it begins; the suffix only decides between CSV and lines of nothing."""
    head = head.removeprefix(BOM).lstrip()
    line, _, rest = head.partition(b"\n")
    if head.startswith(b"["):
        return "json array"
    if head.startswith(b"{"):
        # Lines are objects by themselves; the first line of a printed object is not.
        rest = rest.lstrip()
        opened = line.strip() == b"{" or line.rstrip().endswith((b"{", b"[", b","))
        return "json object" if opened and rest and not rest.startswith(b"{") else "json lines"
    cells = line.decode(errors="replace").strip().split(_delimiter(line))
    named = len(cells) > 1 and all(map(_HEADER.fullmatch, cells))
    if named or suffix in (".csv", ".tsv"):
        return "csv"
    return "parquet" if suffix == ".parquet" else "json lines"


def records(stream: Any, kind: str) -> Iterator[tuple[Parsed, int]]:
    """All records of a binary, buffered stream at its start, of a kind from `kind_of`."""
    if stream.peek(len(BOM)).startswith(BOM):
        stream.read(len(BOM))
    read = {"json array": _array, "json object": _object, "csv": _csv}.get(kind)
    yield from json_lines(stream, sys.maxsize, whole=True) if read is None else read(stream)


# ---- JSON


def json_lines(stream: Any, stop: int, *, whole: bool) -> Iterator[tuple[Parsed, int]]:
    """Records of the lines that begin before byte `stop` of a stream at the beginning of a line.

    Where it is the `whole` file, from its beginning, one line may be all of it.
    """
    left = stop if stop == sys.maxsize else stop - stream.tell()
    while left > 0 and (line := stream.readline(MAX_RECORD_BYTES)):
        left -= len(line)
        if len(line) == MAX_RECORD_BYTES and not line.endswith(b"\n"):
            line, skipped = b"", 0
            while left > 0 and skipped < MAX_SKIPPED_BYTES and not line.endswith(b"\n"):
                line = stream.readline(READ_BYTES)
                left, skipped = left - len(line), skipped + len(line)
                if not line:
                    break
            yield Unusable(f"line longer than {MAX_RECORD_BYTES >> 20} MiB"), 0
            if skipped >= MAX_SKIPPED_BYTES:
                yield Unusable("the rest, after a line without an end, is not read"), 0
                return
            continue
        record = parse_record(line)
        if whole and isinstance(record, dict) and not stream.peek(1):
            yield from ((inner, 0) for inner in _inside(record) or [record])
        else:
            yield record, len(line)
        whole = False


def parse_record(line: bytes) -> Parsed:
    """One record of JSON; what does not parse and has no end of line is half-written."""
    if line.isspace():
        return None
    half = not line.endswith(b"\n")
    try:
        record = orjson.loads(line)
        floats = isinstance(record, dict) and float in map(type, record.values())
        if floats and any(map(_is_beyond_64_bits, record.values())):
            record = json.loads(_text_of(line))
    except ValueError:
        # The standard reader also takes what Python writes: NaN, lone surrogates.
        try:
            record = json.loads(_text_of(line))
        except UnicodeDecodeError as error:
            return Unusable(HALF_WRITTEN if half and error.end == len(line) else "not UTF-8")
        except RecursionError:
            return Unusable("JSON nested too deeply")
        except ValueError:
            return Unusable(HALF_WRITTEN if half else "not JSON")
    return _as_record(record)


def _text_of(line: bytes) -> str:
    """Given bytes, the standard reader takes a line with zeros for UTF-16, half a letter off."""
    return line.decode("utf-8-sig", "surrogatepass")


def _as_record(value: Any) -> Mapping[str, Any] | Unusable:
    if isinstance(value, dict):
        return value
    if isinstance(value, list) and value:
        if all(isinstance(one, str) for one in value):  # several responses to one problem
            return {"generations": value}
        if is_chat(value):
            return {"messages": value}
        if all(isinstance(one, dict) for one in value):
            return {"samples": value}
    return Unusable("not an object")


def is_chat(value: Any) -> bool:
    """Whether a value is a list of turns with a role each."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(turn, dict) and role_of(turn) is not None for turn in value)
    )


def role_of(turn: dict[str, Any]) -> str | None:
    """Who speaks, in lower case; None where it is no turn of a chat.

    Example:
        >>> [role_of(turn) for turn in ({"role": "User"}, {"type": "ai"}, {"type": "text"})]
        ['user', 'ai', None]
    """
    for name in ROLES:
        if name in turn:
            return str(turn[name] or "").lower()
    named = (turn[name] for name, words in _SPEAKERS.items() if turn.get(name) in words)
    return next(named, None)


def plain_name(name: str) -> str:
    """A field's name as tables of results and the tables of names have it in common."""
    return name.strip().lower().replace(" ", "_")


def column_stem(name: str) -> str:
    """The name that the columns `output_0`, `output_1` of a wide table have in common."""
    return plain_name(name.rstrip("0123456789")).rstrip("_.-")


def _is_beyond_64_bits(value: object) -> bool:
    """Whether orjson may have rounded a whole number, such as a long id, to a float."""
    return isinstance(value, float) and abs(value) >= 2**63


def _object(stream: Any) -> Iterator[tuple[Parsed, int]]:
    data = stream.read(MAX_OBJECT_BYTES + 1)
    if len(data) > MAX_OBJECT_BYTES:
        yield Unusable(f"one JSON object longer than {MAX_OBJECT_BYTES >> 20} MiB"), 0
        return
    record = parse_record(data + b"\n")
    if isinstance(record, Unusable) and str(record) == "not JSON":  # lines, after all
        yield from json_lines(io.BufferedReader(io.BytesIO(data)), len(data), whole=False)  # type: ignore[arg-type]
    else:
        inside = _inside(record) if isinstance(record, dict) else None
        yield from ((inner, 0) for inner in inside or [record])


def _inside(record: Mapping[str, Any], depth: int = 3) -> list[Mapping[str, Any]] | None:
    """The records inside an object that is a whole file; None where it is one itself."""
    values = list(record.values())
    if not depth or not values or not _OF_A_RECORD.isdisjoint(record):
        return _by_row(record)
    inner = {key: value for key, value in record.items() if isinstance(value, dict)}
    numbered = bool(inner) and all(map(str.isdecimal, inner))  # OpenCompass has a type beside them
    each = len(inner) == len(values) and not any(map(_OF_A_RECORD.isdisjoint, inner.values()))
    if numbered or each:
        return [{"idx": key, **value} for key, value in inner.items()]
    names, rows = record.get("columns"), record.get("data")
    if isinstance(names, list) and isinstance(rows, list):  # a data frame, split
        return [dict(zip(names, row, strict=False)) for row in rows]
    value: Any
    held = [record[name] for name in _HOLDERS if isinstance(record.get(name), list | dict)]
    for value in (*held, values if all(isinstance(v, list) for v in values) else None):
        if isinstance(value, dict):
            if found := _inside(value, depth - 1):
                return found
            parts = value.values()
            value = [(isinstance(v, dict) and _inside(v, depth - 1)) or v for v in parts]
        if value and all(map(is_chat, value)):
            return [{"messages": one} for one in value]
        if value and all(isinstance(one, list) for one in value):
            value = [inner for one in value for inner in one]
        if value and all(isinstance(v, dict) and not _OF_A_RECORD.isdisjoint(v) for v in value):
            return value
    return None


def _by_row(columns: Mapping[str, Any]) -> list[Mapping[str, Any]] | None:
    """Records of {column: {row: value}}, as data frames are written; None where it is no such."""
    first = next(iter(columns.values()), None)
    if not isinstance(first, dict) or not all(map(str.isdecimal, first)):
        return None
    if not all(isinstance(c, dict) and c.keys() == first.keys() for c in columns.values()):
        return None
    return [{name: column[row] for name, column in columns.items()} for row in first]


_INNER = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|["\[\]{}]', re.DOTALL)
_OUTER = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|["\[\]{},]', re.DOTALL)


def _array(stream: Any) -> Iterator[tuple[Parsed, int]]:
    """Elements of one array, each parsed when it is complete; nothing else of it is held."""
    data, step = stream.read(READ_BYTES).lstrip(), READ_BYTES
    at = start = 1
    depth = number = 0
    while True:
        token = (_INNER if depth else _OUTER).search(data, at)
        if token is None or token[0] == b'"':  # not all of an element, or of a string, is here
            at = (len(data) if token is None else token.start()) - start
            if len(data) - start > MAX_RECORD_BYTES:
                most = MAX_RECORD_BYTES >> 20
                yield Unusable(f"element longer than {most} MiB: the rest is not read"), 0
                return
            more = stream.read(step)
            step = min(2 * step, MAX_RECORD_BYTES)  # else a long string would be searched often
            if not more:
                if data[start:].strip():
                    yield Unusable("half-written last element"), 0
                return
            data, start = data[start:] + more, 0
            continue
        at = token.end()
        if token[0] in (b"[", b"{"):
            depth += 1
        elif token[0] in (b"]", b"}") and depth:
            depth -= 1
        elif token[0] in (b",", b"]"):
            if element := data[start : token.start()].strip():
                record = parse_record(element + b"\n")
                number += 1
                if isinstance(record, dict) and element.startswith(b"["):
                    record = {"idx": number - 1, **record}
                yield record, len(element)
            if token[0] == b"]":
                return
            start, step = at, READ_BYTES
        elif token[0] == b"}":
            yield Unusable("not JSON"), 0
            return


# ---- CSV


def _delimiter(line: bytes) -> str:
    return next((one for one in "\t,;" if one.encode() in line), ",")


def _csv(stream: Any) -> Iterator[tuple[Parsed, int]]:
    csv.field_size_limit(MAX_RECORD_BYTES)
    line = stream.peek(HEAD_BYTES).split(b"\n", 1)[0]
    text = io.TextIOWrapper(stream, encoding="utf-8", errors="surrogateescape", newline="")
    lines = csv.reader(text, delimiter=_delimiter(line))
    try:
        names = next(lines, [])
        for row in lines:
            if not row:
                yield None, 0
                continue
            cells = dict(zip(names, row, strict=False))
            size = sum(map(len, row))
            if len(row) > len(names):
                yield Unusable(f"{len(row)} cells under {len(names)} names"), size
            elif any("\udc80" <= c <= "\udcff" for cell in row if not cell.isascii() for c in cell):
                yield Unusable("not UTF-8"), size
            else:
                yield {n: cell for n, cell in cells.items() if n and cell != ""}, size
    except csv.Error as error:
        yield Unusable(f"not CSV from here on ({error})"), 0
