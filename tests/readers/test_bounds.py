"""What would fill the memory is one reason, and what stands beside it is still read."""

from __future__ import annotations

import gzip
import json
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from epistill.errors import EpistillError
from epistill.readers import binary_records, record_files, text_records
from epistill.readers.record_files import read_records
from epistill.readers.text_records import Unusable
from epistill.tasks.files import load_problems

GOOD = json.dumps({"question": "1+1?", "answer": "2", "response": "So 2"}).encode() + b"\n"


@pytest.fixture(autouse=True)
def small(monkeypatch):
    for module in (text_records, binary_records):
        monkeypatch.setattr(module, "MAX_RECORD_BYTES", 4096)
    monkeypatch.setattr(text_records, "MAX_OBJECT_BYTES", 8192)
    monkeypatch.setattr(text_records, "MAX_SKIPPED_BYTES", 1 << 20)


def read(path):
    found = [record for _, record in read_records(path)]
    return sum(isinstance(r, dict) for r in found), [
        str(r) for r in found if isinstance(r, Unusable)
    ]


LONG = b'{"response": "' + b"a " * 40_000 + b'"}\n'


def test_a_line_without_an_end(tmp_path, monkeypatch):
    monkeypatch.setattr(record_files, "PIECE_BYTES", 1000)
    (tmp_path / "a.jsonl").write_bytes(GOOD + LONG + GOOD + b"\0" * 50_000)
    used, reasons = read(tmp_path / "a.jsonl")
    assert (used, len(reasons)) == (2, 2)
    assert all(reason.startswith("line longer than") for reason in reasons)


@pytest.mark.parametrize(
    "compress", [gzip.compress, lambda d: pa.compress(d, "zstd", asbytes=True)]
)
def test_bombs(compress, tmp_path):
    (tmp_path / "a.gz").write_bytes(compress(GOOD + LONG + GOOD))
    assert read(tmp_path / "a.gz") == (2, ["line longer than 0 MiB"])
    (tmp_path / "a.gz").write_bytes(compress(GOOD + b"\0" * (3 << 20)))
    used, reasons = read(tmp_path / "a.gz")
    assert (used, len(reasons)) == (1, 2)
    assert "is not read" in reasons[1]


def test_arrays_objects_and_zip_entries(tmp_path):
    (tmp_path / "a.json").write_bytes(b"[" + GOOD + b"," + LONG + b"," + GOOD + b"]")
    used, reasons = read(tmp_path / "a.json")
    assert used == 1
    assert reasons == ["element longer than 0 MiB: the rest is not read"]
    (tmp_path / "b.json").write_bytes(b'{\n"results": [' + LONG + b"]}")
    assert read(tmp_path / "b.json") == (0, ["one JSON object longer than 0 MiB"])
    with zipfile.ZipFile(tmp_path / "c.eval", "w", zipfile.ZIP_DEFLATED) as log:
        log.writestr("samples/0_epoch_1.json", GOOD)
        log.writestr("samples/1_epoch_1.json", LONG)
    assert read(tmp_path / "c.eval") == (1, ["zip entry longer than 0 MiB"])


def test_parquet_that_repeats_one_value(tmp_path):
    pq.write_table(pa.table({"response": ["a" * 3000] * 500}), tmp_path / "a.parquet")
    assert (tmp_path / "a.parquet").stat().st_size < 20_000
    sizes = [n for _, n in binary_records.parquet_records(tmp_path / "a.parquet", 0, None, 1 << 19)]
    assert len(sizes) == 500
    pq.write_table(pa.table({"response": ["a" * 50_000] * 2}), tmp_path / "b.parquet")
    assert read(tmp_path / "b.parquet") == (0, ["rows longer than 0 MiB"])
    # Where a long value stands once for many rows, the file's own sizes do not tell.
    pq.write_table(pa.table({"response": ["a" * 50_000] * 100 + ["b"]}), tmp_path / "c.parquet")
    assert read(tmp_path / "c.parquet") == (1, ["rows longer than 0 MiB"] * 100)


def test_depth(tmp_path):
    deep = b'{"x": ' + b"[" * 20_000 + b"]" * 20_000 + b"}\n"
    (tmp_path / "a.jsonl").write_bytes(GOOD + deep.replace(b"x", b"response") + GOOD)
    used, (reason,) = read(tmp_path / "a.jsonl")
    assert used == 2
    assert reason in ("JSON nested too deeply", "line longer than 0 MiB")
    with pytest.raises(EpistillError, match="line 2 is"):
        load_problems(str(tmp_path / "a.jsonl"))


@pytest.mark.parametrize("data", [
    b'[{"a": "x]},{"}, {"a": "\\"}, "},\n{"a": [1, {"b": 2}]}]', b" \n[\n]", b'[{"a": 1}, {"a": 2',
    b'[{"a": 1}} ]', b'[1, "x", null, {"a": 1}]', b'[{"a":"' + b"\\\\" * 900 + b'"}]',
])  # fmt: skip
def test_arrays_are_cut_where_json_cuts_them(data, tmp_path, monkeypatch):
    monkeypatch.setattr(text_records, "READ_BYTES", 7)
    (tmp_path / "a.json").write_bytes(data)
    found = [record for _, record in read_records(tmp_path / "a.json")]
    try:
        expected = json.loads(data)
    except ValueError:
        assert isinstance(found[-1], Unusable)
        return
    assert len(found) == len(expected)
    assert all(f == e or isinstance(f, Unusable) for f, e in zip(found, expected, strict=True))
    assert [f for f in found if isinstance(f, dict)] == [e for e in expected if isinstance(e, dict)]


def test_csv_cells_hold_lines_and_bad_rows_cost_themselves(tmp_path):
    (tmp_path / "a.csv").write_bytes(
        b'question,response\nq,"two\nlines, ""said"""\n\nq,caf\xe9\nq,a,b,c\nq,last\n'
    )
    used, reasons = read(tmp_path / "a.csv")
    assert (used, reasons) == (2, ["not UTF-8", "4 cells under 2 names"])
