"""Records out of parquet and zip files, and the bytes of compressed ones.

All give (record, bytes it took). A parquet file is decoded a few rows at a time, by what its row
groups say they hold; of a zip entry at most MAX_RECORD_BYTES are inflated.
"""

from __future__ import annotations

import io
import re
import struct
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from epistill.errors import EpistillError, first_line
from epistill.readers.text_records import (
    MAX_RECORD_BYTES,
    READ_BYTES,
    Parsed,
    Unusable,
    column_stem,
    parse_record,
    plain_name,
)

PARQUET_ROWS = 256  # decoded at a time
_ZSTD = 93  # the number of zstd among a zip's compressions, which zipfile knows from 3.14 on
_SAMPLE = re.compile(r"samples/.+_epoch_[0-9]+(?:/sample)?\.json")  # ids may have slashes


def decompressed(source: Any, compression: str) -> io.BufferedReader:
    """A stream of the bytes of a gzip or zstd file (or buffer), up to where it is broken."""
    return io.BufferedReader(_UpToTheBreak(source, compression), READ_BYTES)


class _UpToTheBreak(io.RawIOBase):
    """A compressed file, every byte of it up to where it is broken.

    pyarrow goes on after the end of a frame, and says so when a stream ends too early; but it loses
    what it had of the read that failed. So a broken file is opened again, and read in ever smaller
    steps towards the break.
    """

    def __init__(self, source: Any, compression: str) -> None:
        self._source = str(source) if isinstance(source, Path) else source
        self._compression, self._at, self._step = compression, 0, READ_BYTES
        self._open()

    def _open(self) -> None:
        import pyarrow as pa

        self._stream = pa.input_stream(self._source, compression=self._compression)
        left = self._at
        while left:
            left -= len(self._stream.read(min(left, READ_BYTES)))

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
                self._open()
            else:
                buffer[: len(data)] = data
                self._at += len(data)
                return len(data)


# ---- parquet


def _parquet(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # Without these two a whole row group would be held in memory.
        return pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, error) from error


def row_groups(path: Path) -> int:
    """How many parts a parquet file has."""
    return _parquet(path).num_row_groups


def parquet_records(
    path: Path, group: int, columns: Iterable[str] | None, batch_bytes: int
) -> Iterator[tuple[Parsed, int]]:
    """The rows of one row group; of a value that cannot be read, only its row is lost."""
    import pyarrow as pa

    file = _parquet(path)
    there = set(file.schema_arrow.names)
    chosen = None
    if columns is not None:  # a name with dots may be a column's own, or lead inside one
        wanted = {plain_name(part) for c in columns for part in (c, c.partition(".")[0])}
        chosen = [name for name in sorted(there) if wanted & {plain_name(name), column_stem(name)}]
    held = file.metadata.row_group(group)
    parts = [held.column(i) for i in range(held.num_columns)]
    parts = [p for p in parts if chosen is None or p.path_in_schema.partition(".")[0] in chosen]
    size = sum(part.total_uncompressed_size for part in parts)
    if size > MAX_RECORD_BYTES * max(1, held.num_rows):
        yield _too_long(), 0
        return
    # A dictionary holds a value once for all its rows: one row may be as long as the whole column.
    repeated = sum(p.total_uncompressed_size for p in parts if p.has_dictionary_page)
    rows = max(1, min(PARQUET_ROWS, MAX_RECORD_BYTES // max(1, repeated)))
    try:
        for batch in file.iter_batches(rows, row_groups=[group], columns=chosen, use_threads=False):
            # What the file says of its sizes is of encoded values, which may repeat for nothing.
            step = max(1, batch.num_rows * batch_bytes // max(1, batch.nbytes))
            for start in range(0, batch.num_rows, step):
                part = batch.slice(start, step)
                each = part.nbytes // part.num_rows
                if each > MAX_RECORD_BYTES:
                    yield from [(_too_long(), 0)] * part.num_rows
                    continue
                for record in _rows(part):
                    yield record, each
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, error) from error


def _too_long() -> Unusable:
    return Unusable(f"rows longer than {MAX_RECORD_BYTES >> 20} MiB")


def _rows(batch: Any) -> list[Mapping[str, Any] | Unusable]:
    if not batch.num_columns:
        return [{}] * batch.num_rows
    try:
        return batch.to_pylist()
    except (ValueError, OverflowError):  # of one value or more
        return [_row(batch.slice(i, 1)) for i in range(batch.num_rows)]


def _row(row: Any) -> Mapping[str, Any] | Unusable:
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
    why = first_line(error)
    return EpistillError(f"{path} is not a readable parquet file ({why}); write it again")


# ---- zip


def zip_entries(path: Path) -> list[zipfile.ZipInfo]:
    """The samples of an Inspect log.

    Raises:
        EpistillError: Not a zip file, or none in it.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            found = [entry for entry in archive.infolist() if _SAMPLE.fullmatch(entry.filename)]
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise EpistillError(
            f"{path} is not a readable zip file ({error}); copy it again"
        ) from error
    if not found:
        raise EpistillError(
            f"{path} is a zip file without samples/*.json, as an Inspect log has them; unpack it "
            "and name the files inside"
        )
    return found


def zip_records(path: Path, start: int, stop: int) -> Iterator[tuple[Parsed, int]]:
    """The samples of some entries."""
    broken = (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError)
    with zipfile.ZipFile(path) as archive, path.open("rb") as raw:
        for entry in zip_entries(path)[start:stop]:
            try:
                data = _inflated(archive, raw, entry)
            except broken as error:
                yield Unusable(f"broken zip entry ({first_line(error)})"), 0
                continue
            if len(data) > MAX_RECORD_BYTES:
                yield Unusable(f"zip entry longer than {MAX_RECORD_BYTES >> 20} MiB"), 0
            else:
                yield parse_record(data + b"\n"), len(data)


def _inflated(archive: zipfile.ZipFile, raw: Any, entry: zipfile.ZipInfo) -> bytes:
    if entry.compress_type != _ZSTD:
        member = archive.open  # of bytes, whatever the locale
        with member(entry) as stream:
            return stream.read(MAX_RECORD_BYTES + 1)
    import pyarrow as pa

    raw.seek(entry.header_offset + 26)  # the local header ends with two lengths of what follows it
    name, extra = struct.unpack("<HH", raw.read(4))
    raw.seek(name + extra, 1)
    packed = raw.read(entry.compress_size)
    return decompressed(pa.py_buffer(packed), "zstd").read(MAX_RECORD_BYTES + 1)
