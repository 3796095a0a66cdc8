"""The one reader of records: files in pieces, so that memory stays flat and processes share them.

What a file is follows from its first bytes, not from its name. No record may take more than
MAX_RECORD_BYTES; a file that is one JSON object, no more than MAX_OBJECT_BYTES.
"""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from epistill.errors import EpistillError, did_you_mean
from epistill.integrity import check_file_of_a_run
from epistill.readers import binary_records, text_records
from epistill.readers.text_records import BOM, Parsed, Unusable

_MAGIC = {
    b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"PAR1": "parquet", b"PK\x03\x04": "zip",
}  # fmt: skip
SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet", ".csv", ".tsv", ".eval", ".gz", ".zst")
PIECE_BYTES = 2 << 20
BATCH_BYTES = 512 << 10
BATCH_ROWS = 4096
ENTRIES = 64  # of a zip, in a piece


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a file that one process reads alone.

    Attributes:
        format: "json lines", "json array", "json object", "csv", "gzip", "zstd", "parquet", "zip".
        start, stop: Bytes for JSON lines (lines that begin there), row groups for parquet, entries
            for zip; the whole file for others.
        state: Of the file when it was cut: which one it is, its bytes, when it was changed.
    """

    path: Path
    format: str
    start: int
    stop: int
    state: tuple[int, int, int] = (0, 0, 0)


@dataclass(frozen=True, slots=True)
class FileRecord:
    """A record, why there is none, or None for an empty line; numbered in its piece from 1."""

    number: int
    record: Parsed


def find_files(paths: Iterable[Path]) -> list[Path]:
    """The files themselves, and those with a known suffix inside folders, sorted.

    Raises:
        EpistillError: Nothing there, a folder without trace files, or a damaged file of a run.
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
            raise EpistillError(
                f"no file {path}; expected JSON lines or parquet; check the path{near_file(path)}"
            )
    for file in found:
        check_file_of_a_run(file)
    return found


def near_file(path: Path, *others: str) -> str:
    """What was meant by a path that leads nowhere: a file beside it, or another choice."""
    folder = path.expanduser().parent
    beside = [str(file) for file in folder.iterdir()][:1000] if folder.is_dir() else []
    return did_you_mean(str(path), [*others, *(name for name in beside if name != str(path))])


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
        EpistillError: Empty or unreadable.
    """
    try:
        state = _state(path)
        with path.open("rb") as file:
            head = file.read(text_records.HEAD_BYTES)
    except OSError as error:
        raise EpistillError(f"could not read {path}: {error.strerror}; check the path") from error
    size = state[1]
    if not head:
        raise EpistillError(f"{path} is empty; expected at least one record")
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise EpistillError(
            f"{path} is UTF-16; expected UTF-8: iconv -f UTF-16 -t UTF-8 {path.name} makes it so"
        )
    format = next((name for magic, name in _MAGIC.items() if head.startswith(magic)), None)
    format = format or text_records.kind_of(head, path.suffix)
    stop, step = size, size
    if format == "parquet":
        stop, step = binary_records.row_groups(path), 1
    elif format == "zip":
        stop, step = len(binary_records.zip_entries(path)), ENTRIES
    elif format == "json lines":
        step = PIECE_BYTES
    return [Piece(path, format, at, min(at + step, stop), state) for at in range(0, stop, step)]


def check_unchanged(pieces: Iterable[Piece], again: Iterable[Piece]) -> None:
    """Refuse files that changed between two cuts: what is read twice would not fit together.

    Raises:
        EpistillError: Which did.
    """
    for before, now in zip_longest(pieces, again):
        if before != now:
            raise _changed((before or now).path)


def _state(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def _changed(path: Path) -> EpistillError:
    return EpistillError(
        f"{path} changed while it was read; expected a file that nothing writes to: wait for its "
        "writer, or read a copy"
    )


def read_piece(piece: Piece, columns: Iterable[str] | None = None) -> Iterator[list[FileRecord]]:
    """The records of a piece, some BATCH_BYTES at a time; of parquet, some or all `columns`.

    Raises:
        EpistillError: A parquet file that cannot be decoded, or a file that is another one since it
            was cut. JSON lines may have grown: those of then are read.
    """
    rows: list[FileRecord] = []
    size = 0
    try:
        for number, (record, taken) in enumerate(_records(piece, columns), 1):
            rows.append(FileRecord(number, record))
            size += taken
            if size >= BATCH_BYTES or len(rows) >= BATCH_ROWS:
                yield rows
                rows, size = [], 0
        now = _state(piece.path)
    except OSError as error:
        raise EpistillError(f"could not read {piece.path}: {error.strerror or error}") from error
    grown = piece.format == "json lines" and now[0] == piece.state[0] and now[1] > piece.state[1]
    if now != piece.state and not grown:
        raise _changed(piece.path)
    yield rows


def read_records(path: Path) -> Iterator[tuple[int, Mapping[str, Any] | Unusable]]:
    """Every record of a file with its row, from 1; empty lines are left out."""
    before = number = 0
    for piece in pieces_of(path):
        for rows in read_piece(piece):
            for row in rows:
                number = before + row.number
                if row.record is not None:
                    yield number, row.record
        before = number


def _records(piece: Piece, columns: Iterable[str] | None) -> Iterator[tuple[Parsed, int]]:
    if piece.format == "parquet":
        return binary_records.parquet_records(piece.path, piece.start, columns, BATCH_BYTES)
    if piece.format == "zip":
        return binary_records.zip_records(piece.path, piece.start, piece.stop)
    if piece.format in ("gzip", "zstd"):
        return _compressed(piece)
    return _text(piece)


def _text(piece: Piece) -> Iterator[tuple[Parsed, int]]:
    with io.BufferedReader(io.FileIO(piece.path), text_records.READ_BYTES) as file:
        if piece.format != "json lines":
            yield from text_records.records(file, piece.format)
            return
        if piece.start:  # the line that the piece before this one ends in is read there
            file.seek(piece.start - 1)
            while file.tell() < piece.stop:
                if file.readline(text_records.READ_BYTES).endswith(b"\n"):
                    break
        elif file.peek(len(BOM)).startswith(BOM):
            file.read(len(BOM))
        yield from text_records.json_lines(file, piece.stop, whole=not piece.start)


def _compressed(piece: Piece) -> Iterator[tuple[Parsed, int]]:
    stream = binary_records.decompressed(piece.path, piece.format)
    try:
        head = stream.peek(text_records.HEAD_BYTES)
        inner = Path(piece.path.stem).suffix
        yield from text_records.records(stream, text_records.kind_of(head, inner))
    except (OSError, csv.Error) as error:
        reason = f"broken {piece.format} stream: the rest cannot be read ({error})"
        yield Unusable(reason), 0
