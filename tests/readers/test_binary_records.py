"""Parquet files as other tools write them: what one value costs, and what it may not."""

from __future__ import annotations

from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from epistill.readers import record_files as read
from epistill.readers.record_files import pieces_of, read_piece
from epistill.readers.text_records import Unusable
from epistill.traces.measure import measure_files
from epistill.traces.options import Options


@pytest.fixture
def table(tmp_path):
    def write(**columns):
        path = tmp_path / "a.parquet"
        pq.write_table(pa.table(columns), path)
        return path

    return write


def records(path):
    (piece,) = pieces_of(path)
    return [row.record for rows in read_piece(piece) for row in rows]


def bad_text():
    """A string column whose second value is not UTF-8; pyarrow does not look."""
    offsets = pa.array([0, 4, 6, 9], pa.int32()).buffers()[1]
    return pa.StringArray.from_buffers(3, offsets, pa.py_buffer(b"wait\xff\xfehmm"))


def test_a_value_that_is_not_utf8_costs_its_row(table):
    (found,) = measure_files([table(response=bad_text(), id=[1, 2, 3])], Options())
    assert found.reading.used == 2
    assert found.reading.skipped == {"not UTF-8": (1, 2)}


def test_a_time_beyond_the_years_of_python_is_a_number(table):
    path = table(response=["a", "b"], at=pa.array([4 * 10**15, 0], pa.timestamp("ms")))
    first, second = records(path)
    assert first == {"response": "a", "at": 4 * 10**15}
    assert second["at"].year == 1970


def test_ids_that_json_does_not_have(table):
    for ids in (pa.array([Decimal("1.5"), Decimal("2.5")]), pa.array([b"a", b"b"])):
        (found,) = measure_files([table(response=["x", "y"], id=ids)], Options())
        assert len(found.groups["(all)"].sums) == 2


def test_dots_in_the_name_of_a_column(table):
    path = table(**{"rollout.text": ["wait"], "problem.id": [3], "x": [1]})
    (found,) = measure_files([path], Options(response_field="rollout.text"))
    assert found.reading.fields["problem"] == {"problem.id": 1}


def test_values_that_are_written_once_are_still_read_in_batches(table, monkeypatch):
    """A dictionary makes the file tiny: what its rows take is known when they are decoded."""
    monkeypatch.setattr(read, "BATCH_BYTES", 10_000)
    path = table(response=["wait " * 600] * 1000)
    assert path.stat().st_size < 20_000
    (piece,) = pieces_of(path)
    batches = list(read_piece(piece))
    assert sum(map(len, batches)) == 1000
    assert max(map(len, batches)) <= 6  # 3 KB a row
    numbers = [row.number for rows in batches for row in rows]
    assert numbers == list(range(1, 1001))


def test_short_rows_are_taken_together(table):
    (batch,) = (rows for rows in read_piece(pieces_of(table(response=["a"] * 2000))[0]) if rows)
    assert len(batch) == 2000
    assert not any(isinstance(row.record, Unusable) for row in batch)
