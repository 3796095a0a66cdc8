"""JSON and JSON lines on disk: written whole or not at all, read or refused in one line."""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import Any

from epistill.errors import EpistillError, damaged, why_unread


def open_file(path: Path) -> BufferedReader:
    """Open a file for reading; OSError also where it is a pipe or device, which need not end."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise OSError(errno.EINVAL, "a pipe or device", str(path))
    return path.open("rb")


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise EpistillError(
            f"could not write {path}: {error.strerror}; make room or choose another folder"
        ) from error


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a whole file or nothing: temporary file in the same folder, flush, rename."""
    if os.path.isdir(path):  # pathlib's raises where a folder above cannot be entered
        raise EpistillError(f"could not write {path}: it is a folder; name a file in it")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    # Models can write lone surrogates, which UTF-8 cannot hold: they become question marks.
    data = content.encode("utf-8", "replace") if isinstance(content, str) else content
    with _writing(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as out:
                out.write(data)
                out.flush()
                os.fsync(out.fileno())
            temporary.replace(path)
        except OSError:
            with suppress(OSError):
                temporary.unlink()
            raise


def json_bytes(value: Any) -> bytes:
    """As `write_json` writes it."""
    text = json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    return text.encode("utf-8", "replace")


def write_json(path: Path, value: Any) -> None:
    """Write JSON that keeps nulls and never holds NaN."""
    write_atomic(path, json_bytes(value))


def read_json(path: Path, kind: type = dict, folder: Path | None = None) -> Any:
    """Read JSON; Damaged where it is absent, no JSON, or not of the expected kind."""
    try:
        with open_file(path) as file:
            value = strict_json(file.read().decode("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(path, why_unread(error), folder) from error
    if not isinstance(value, kind):
        found = type(value).__name__
        raise damaged(path, f"it holds a {found}, expected a {kind.__name__}", folder)
    return value


def write_jsonl(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write records, one per line, whole or not at all."""
    write_atomic(path, "".join(map(_line, records)))


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, allow_nan=False, ensure_ascii=False) + "\n"


def read_jsonl(path: Path, folder: Path | None = None) -> list[dict[str, Any]]:
    """Read records; a half-written last line (a killed writer) is left out.

    Raises:
        Damaged: Another line is no JSON object.
    """
    return follow_jsonl(path, folder)()


def follow_jsonl(path: Path, folder: Path | None = None) -> Callable[[], list[dict[str, Any]]]:
    """Gives at each call the records that came since the call before, so `read_jsonl` at first."""
    offset = number = 0

    def added() -> list[dict[str, Any]]:
        nonlocal offset, number
        if not path.exists():
            return []
        records = []
        try:
            with open_file(path) as file:
                file.seek(offset)
                found = file.read()
            whole = found[: found.rfind(b"\n") + 1]
            lines = whole.decode("utf-8").split("\n")[:-1]
        except (OSError, ValueError) as error:
            raise damaged(path, why_unread(error), folder) from error
        for line in lines:
            number += 1
            try:
                record = strict_json(line)
            except (ValueError, RecursionError) as error:
                raise damaged(path, f"line {number}: {why_unread(error)}", folder) from error
            if not isinstance(record, dict):
                raise damaged(path, f"line {number} is no record", folder)
            records.append(record)
        offset += len(whole)
        return records

    return added


def append_jsonl(path: Path, record: Mapping[str, Any]) -> None:
    """Add one line."""
    append_text(path, _line(record))


def append_text(path: Path, text: str) -> None:
    """Add to the end of a file, which need not be there yet."""
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8", errors="replace") as out:
            out.write(text)


def remove_file(path: Path) -> None:
    """Remove a file if it is there."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise EpistillError(f"could not remove {path}: {error.strerror}") from error


def spelled_out(value: Any) -> Any:
    """NaN and infinities as the strings "nan", "inf", "-inf"."""
    if isinstance(value, Mapping):
        return {key: spelled_out(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [spelled_out(one) for one in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def strict_json(text: str) -> Any:
    """JSON whose numbers are numbers: ValueError at NaN, at Infinity and at 1e400, which is one."""
    return json.loads(text, parse_constant=_number, parse_float=_number)


def _number(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text[:20]} is no number")
    return value
