from __future__ import annotations

import gzip
import json

import polars as pl
import pyarrow as pa
import pytest


def zstd(data):
    return pa.compress(data, "zstd", asbytes=True)


@pytest.fixture
def write(tmp_path):
    """Write records (or raw bytes) under a name; what the file is follows from the name."""

    def write(name, records):
        path = tmp_path / name
        if name.endswith(".parquet"):
            pl.DataFrame(records, strict=False, infer_schema_length=None).write_parquet(path)
            return path
        data = records
        if not isinstance(records, bytes):
            data = b"".join(json.dumps(r, ensure_ascii=False).encode() + b"\n" for r in records)
        if name.endswith(".gz"):
            data = gzip.compress(data)
        if name.endswith(".zst"):
            data = zstd(data)
        path.write_bytes(data)
        return path

    return write
