"""Reading trace files in pieces, so that memory stays flat and several processes can share a file.

Enters: paths of JSON lines (under any name, gzip and zstd too) or parquet. Leaves: `Piece`s, and
from each piece its records with their row numbers, unreadable ones with the reason. What a file is
follows from its first bytes, not from its name. It does not look into records: `fields` does.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import orjson

from epistill.errors import EpistillError
from epistill.traces.fields import Unusable

Format = Literal["json lines", "gzip", "zstd", "parquet"]
_MAGIC: dict[bytes, Format] = {
    b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"PAR1": "parquet",
}  # fmt: skip
SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet", ".gz", ".zst")
PIECE_BYTES = 2 << 20
BATCH_BYTES = 512 << 10
READ_BYTES = 64 << 10
HALF_WRITTEN = "half-written last line"
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a file that one process reads alone.

    Attributes:
        start, stop: Bytes for JSON lines (lines that begin there), row groups for parquet; the
            whole file for compressed ones.
    """

    path: Path
    format: Format
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Row:
    """One record of a piece.

    Attributes:
        number: Line or row within the piece, from 1.
        record: The record, or why there is none; None for an empty line, which is no record.
    """

    number: int
    record: Mapping[str, Any] | Unusable | None


def find_files(paths: Iterable[Path]) -> list[Path]:
    """The files themselves, and those with a known suffix inside folders, sorted.

    Raises:
        EpistillError: Nothing there, or a folder without trace files.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix in SUFFIXES and p.is_file())
            if not inside:
                raise EpistillError(
                    f"no trace files in folder {path}; expected {', '.join(SUFFIXES)}; name the "
                    "files themselves if they have other suffixes"
                )
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise EpistillError(f"no file {path}; expected JSON lines or parquet; check the path")
    return found


def pieces_of(path: Path) -> list[Piece]:
    """Cut a file; the cuts do not depend on how many processes will read it.

    Raises:
        EpistillError: Empty, unreadable, or one JSON array instead of lines.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(4096)
    except OSError as error:
        raise EpistillError(f"could not read {path}: {error.strerror}; check the path") from error
    if not head:
        raise EpistillError(f"{path} is empty; expected at least one record")
    format: Format = "json lines"
    for magic, compressed in _MAGIC.items():
        if head.startswith(magic):
            format = compressed
    if format == "parquet":
        groups = _parquet(path).num_row_groups
        return [Piece(path, format, group, group + 1) for group in range(groups)]
    if format != "json lines":
        return [Piece(path, format, 0, size)]
    if head.removeprefix(_BOM).lstrip().startswith(b"["):
        raise EpistillError(
            f"{path} is one JSON array; expected one object per line; convert it, for instance "
            f"with: jq -c '.[]' {path.name}"
        )
    return [
        Piece(path, format, start, min(start + PIECE_BYTES, size))
        for start in range(0, size, PIECE_BYTES)
    ]


def read_piece(piece: Piece, columns: Iterable[str] | None = None) -> Iterator[list[Row]]:
    """The records of a piece, some BATCH_BYTES at a time.

    Args:
        piece: From `pieces_of`.
        columns: Of a parquet file, those to read where they are there; None reads all.

    Raises:
        EpistillError: A parquet file that cannot be decoded.
    """
    if piece.format == "parquet":
        return _parquet_rows(piece, columns)
    return _line_rows(piece)


# ---- JSON lines


def _line_rows(piece: Piece) -> Iterator[list[Row]]:
    rows, size = [], 0
    for number, line in enumerate(_lines(piece), 1):
        rows.append(Row(number, line if isinstance(line, Unusable) else _parse(line)))
        size += 0 if isinstance(line, Unusable) else len(line)
        if size >= BATCH_BYTES:
            yield rows
            rows, size = [], 0
    yield rows


def _lines(piece: Piece) -> Iterator[bytes | Unusable]:
    """Lines that begin inside the piece; last, why there are no more where a stream is broken."""
    with _open(piece) as file:
        try:
            if piece.start:  # the line that the piece before this one ends in is read there
                file.seek(piece.start - 1)
                file.readline()
            elif file.peek(len(_BOM)).startswith(_BOM):
                file.read(len(_BOM))
            left = piece.stop - file.tell() if piece.format == "json lines" else sys.maxsize
            while left > 0 and (line := file.readline()):
                left -= len(line)
                yield line
        except OSError as error:
            yield Unusable(f"broken {piece.format} stream: the rest cannot be read ({error})")


def _open(piece: Piece) -> Any:
    if piece.format == "json lines":
        return piece.path.open("rb", buffering=READ_BYTES)
    import pyarrow as pa

    # pyarrow goes on after the end of a frame, and says so when a stream ends too early.
    stream = pa.input_stream(str(piece.path), compression=piece.format)
    return io.BufferedReader(stream, READ_BYTES)


def _parse(line: bytes) -> Mapping[str, Any] | Unusable | None:
    if line.isspace():
        return None
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError:
        # The standard reader also takes what Python writes: NaN, lone surrogates.
        try:
            record = json.loads(line)
        except UnicodeDecodeError:
            return Unusable("not UTF-8")
        except (ValueError, RecursionError):
            return Unusable("not JSON" if line.endswith(b"\n") else HALF_WRITTEN)
    if not isinstance(record, dict):
        return Unusable("not an object")
    return record


# ---- parquet


def _parquet(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # Without these two a whole row group would be held in memory.
        return pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, error) from error


def _parquet_rows(piece: Piece, columns: Iterable[str] | None) -> Iterator[list[Row]]:
    import pyarrow as pa

    file = _parquet(piece.path)
    there = set(file.schema_arrow.names)
    chosen = None if columns is None else sorted({c.partition(".")[0] for c in columns} & there)
    group = file.metadata.row_group(piece.start)
    per_batch = max(1, group.num_rows * BATCH_BYTES // max(1, group.total_byte_size))
    number = 0
    try:
        for batch in file.iter_batches(
            min(per_batch, 4096), row_groups=[piece.start], columns=chosen, use_threads=False
        ):
            yield [Row(number, record) for number, record in enumerate(_rows(batch), number + 1)]
            number += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(piece.path, error) from error


def _rows(batch: Any) -> list[Mapping[str, Any]]:
    return batch.to_pylist() if batch.num_columns else [{}] * batch.num_rows


def _unreadable(path: Path, error: Exception) -> EpistillError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return EpistillError(f"{path} is not a readable parquet file ({reason}); write it again")
