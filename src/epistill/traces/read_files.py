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

from epistill.errors import EpistillError, first_line
from epistill.traces.fields import Unusable

Format = Literal["json lines", "gzip", "zstd", "parquet"]
_MAGIC: dict[bytes, Format] = {
    b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"PAR1": "parquet",
}  # fmt: skip
SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet", ".gz", ".zst")
PIECE_BYTES = 2 << 20
BATCH_BYTES = 512 << 10
READ_BYTES = 64 << 10
PARQUET_ROWS = 256  # decoded at a time
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
class FileRecord:
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


def stem_of(path: Path) -> str:
    """A file's name without the suffixes that say how it is written.

    Example:
        >>> stem_of(Path("runs/math.s0.jsonl.gz"))
        'math.s0'
    """
    name = path.name
    while (suffix := Path(name).suffix) in SUFFIXES:
        name = name.removesuffix(suffix)
    return name


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


def read_piece(piece: Piece, columns: Iterable[str] | None = None) -> Iterator[list[FileRecord]]:
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


def _line_rows(piece: Piece) -> Iterator[list[FileRecord]]:
    rows, size = [], 0
    for number, line in enumerate(_lines(piece), 1):
        rows.append(FileRecord(number, line if isinstance(line, Unusable) else _parse(line)))
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
    return io.BufferedReader(_UpToTheBreak(piece), READ_BYTES)


class _UpToTheBreak(io.RawIOBase):
    """A compressed file, every byte of it up to where it is broken.

    pyarrow goes on after the end of a frame, and says so when a stream ends too early; but it loses
    what it had of the read that failed. So a broken file is opened again, and read in ever smaller
    steps towards the break.
    """

    def __init__(self, piece: Piece) -> None:
        self._piece, self._at, self._step = piece, 0, READ_BYTES
        self._stream = self._open()

    def _open(self) -> Any:
        import pyarrow as pa

        return pa.input_stream(str(self._piece.path), compression=self._piece.format)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        while True:
            try:
                data = self._stream.read(min(len(buffer), self._step))
            except OSError:
                if self._step == 1:
                    raise
                self._step //= 2
                self._skip_to_where_it_was()
            else:
                buffer[: len(data)] = data
                self._at += len(data)
                return len(data)

    def _skip_to_where_it_was(self) -> None:
        self._stream = self._open()
        left = self._at
        while left:
            left -= len(self._stream.read(min(left, READ_BYTES)))


def _parse(line: bytes) -> Mapping[str, Any] | Unusable | None:
    if line.isspace():
        return None
    half = not line.endswith(b"\n")
    try:
        record = orjson.loads(line)
        if isinstance(record, dict) and any(map(_is_beyond_64_bits, record.values())):
            record = json.loads(line)
    except orjson.JSONDecodeError:
        # The standard reader also takes what Python writes: NaN, lone surrogates.
        try:
            record = json.loads(line)
        except UnicodeDecodeError as error:
            return Unusable(HALF_WRITTEN if half and error.end == len(line) else "not UTF-8")
        except (ValueError, RecursionError):
            return Unusable(HALF_WRITTEN if half else "not JSON")
    if not isinstance(record, dict):
        return Unusable("not an object")
    return record


def _is_beyond_64_bits(value: object) -> bool:
    """Whether orjson may have rounded a whole number, such as a long id, to a float."""
    return isinstance(value, float) and abs(value) >= 2**63


# ---- parquet


def _parquet(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # Without these two a whole row group would be held in memory.
        return pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, error) from error


def _parquet_rows(piece: Piece, columns: Iterable[str] | None) -> Iterator[list[FileRecord]]:
    import pyarrow as pa

    file = _parquet(piece.path)
    there = set(file.schema_arrow.names)
    chosen = None
    if columns is not None:  # a name with dots may be a column's own, or lead inside one
        chosen = sorted({part for c in columns for part in (c, c.partition(".")[0])} & there)
    number, rows, size = 0, [], 0
    try:
        for batch in file.iter_batches(
            PARQUET_ROWS, row_groups=[piece.start], columns=chosen, use_threads=False
        ):
            # What the file says of its sizes is of encoded values, which may repeat for nothing.
            step = max(1, batch.num_rows * BATCH_BYTES // max(1, batch.nbytes))
            for start in range(0, batch.num_rows, step):
                part = batch.slice(start, step)
                rows += [
                    FileRecord(n, record) for n, record in enumerate(_records(part), number + 1)
                ]
                number, size = number + part.num_rows, size + part.nbytes
                if size >= BATCH_BYTES:
                    yield rows
                    rows, size = [], 0
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(piece.path, error) from error
    yield rows


def _records(batch: Any) -> list[Mapping[str, Any] | Unusable]:
    if not batch.num_columns:
        return [{}] * batch.num_rows
    try:
        return batch.to_pylist()
    except (ValueError, OverflowError):  # of one value or more
        return [_record(batch.slice(i, 1)) for i in range(batch.num_rows)]


def _record(row: Any) -> Mapping[str, Any] | Unusable:
    import pyarrow as pa

    record: dict[str, Any] = {}
    for name, column in zip(row.schema.names, row.columns, strict=True):
        try:
            (record[name],) = column.to_pylist()
        except UnicodeDecodeError:
            return Unusable("not UTF-8")
        except (ValueError, OverflowError):  # a time beyond the years that Python knows
            (record[name],) = column.cast(pa.int64()).to_pylist()
    return record


def _unreadable(path: Path, error: Exception) -> EpistillError:
    return EpistillError(
        f"{path} is not a readable parquet file ({first_line(error)}); write it again"
    )
