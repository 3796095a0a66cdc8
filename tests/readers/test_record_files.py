"""Files of any make: what works, what is said in one line, and that the counts add up."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from epistill.errors import EpistillError
from epistill.readers import record_files as read
from epistill.readers.record_files import pieces_of, read_piece
from epistill.traces.measure import measure_files
from epistill.traces.options import Options


def zstd(data):
    return pa.compress(data, "zstd", asbytes=True)


GOOD = [{"response": f"Wait, {i}."} for i in range(5)]


def reading_of(path, **options):
    (found,) = measure_files([path], Options(**options))
    reading = found.reading
    assert reading.read == reading.used + sum(n for n, _ in reading.skipped.values())
    return reading


@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.txt", "a", "a.json", "a.log", "a.parquet", "a.jsonl.gz", "a.zst"]
)
def test_any_name_and_compression(write, name):
    path = write(name, GOOD)
    reading = reading_of(path)
    assert (reading.records, reading.read, reading.used, reading.skipped) == (5, 5, 5, {})
    assert reading.fields["response"] == {"response": 5}


def test_what_a_file_is_follows_from_its_bytes(write):
    path = write("a.parquet", GOOD)
    reading = reading_of(path.rename(path.with_suffix(".jsonl")))
    assert reading.used == 5


def test_utf_16_is_refused_and_never_read_half_a_letter_off(tmp_path):
    """What PowerShell's > writes. The second line, read as UTF-16 of its own, was `-丠wait`."""
    path = tmp_path / "a.jsonl"
    text = '{"response": "x"}\n{"response": "second 中 wait 中b"}\n'
    for encoding in ("utf-16", "utf-16-le", "utf-16-be"):
        path.write_bytes(text.encode(encoding))
        with pytest.raises(EpistillError, match=r"is UTF-16|none of"):
            reading_of(path)
    path.write_bytes(text.encode("utf-8-sig") + text.encode("utf-8-sig"))  # joined by cat
    assert reading_of(path).used == 4


def lines(*records):
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


ROBUST = {
    "half-written last line": (
        lines(*GOOD) + b'{"response": "Wait',
        5,
        {"half-written last line": (1, 6)},
    ),
    "half-written inside a character": (
        lines(*GOOD) + '{"response": "等'.encode()[:-1],
        5,
        {"half-written last line": (1, 6)},
    ),
    "invalid UTF-8 without an end of line": (
        lines(*GOOD) + b'{"response": "\xff\xfe"}',
        5,
        {"not UTF-8": (1, 6)},
    ),
    "invalid UTF-8": (
        lines(*GOOD) + b'{"response": "Wait \xff\xfe"}\n' + lines(*GOOD),
        10,
        {"not UTF-8": (1, 6)},
    ),
    "broken line": (
        lines(*GOOD[:2]) + b"{oops}\n" + lines(*GOOD[2:]) + b"[1]\n7\n",
        5,
        {"not JSON": (1, 3), "not an object": (2, 7)},
    ),
    "empty response": (lines({"response": ""}, *GOOD), 6, {}),
    "null response": (
        lines({"response": None}, *GOOD, {"response": None}),
        5,
        {"null response": (2, 1)},
    ),
    "5 MB response": (lines({"response": "Wait, 3 * 4 = 12. " * 300_000}, *GOOD), 6, {}),
    "empty lines": (b"\n\n" + lines(*GOOD) + b"  \n", 5, {}),
    "byte order mark": (b"\xef\xbb\xbf" + lines(*GOOD), 5, {}),
    "carriage returns": (lines(*GOOD).replace(b"\n", b"\r\n"), 5, {}),
    "NaN": (b'{"response": "Wait", "loss": NaN}\n', 1, {}),
    "lone surrogate": (b'{"response": "Wait \\ud800"}\n', 1, {}),
    "NUL": (b'{"response": "Wait \\u0000"}\n', 1, {}),
    "deeply nested": (b'{"response": "a", "x": ' + b"[" * 5000 + b"]" * 5000 + b"}\n", None, None),
    "mixed schemas": (
        lines(
            {"response": "Wait"},
            {"completion": "Hmm", "id": 3},
            {"responses": ["Maybe", None, 7]},
            {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]},
            {"messages": [{"role": "user", "content": "?"}]},
            {"question": "no response at all"},
            {"responses": []},
        ),
        4,
        {
            "null response": (1, 3),
            "response is a int, not text": (1, 3),
            "no assistant turn": (1, 5),
            "no response field": (1, 6),
            "empty list of responses": (1, 7),
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ROBUST)
def test_nothing_is_dropped_silently(write, name):
    data, used, skipped = ROBUST[name]
    if used is None:  # a line that no reader takes is skipped or used, but never ends the run
        data, used, skipped = data + lines(*GOOD), None, None
    reading = reading_of(write("a.jsonl", data))
    if used is None:
        assert reading.read == 6
        return
    assert (reading.used, reading.skipped) == (used, skipped)


def test_a_broken_compressed_stream_keeps_what_came_before(write, tmp_path):
    many = lines(*({"response": f"Wait {i} " + "x" * 400} for i in range(3000)))
    for name, data in (
        ("a.gz", gzip.compress(many)),
        ("a.zst", zstd(many)),
    ):
        path = tmp_path / name
        path.write_bytes(data[: len(data) // 2])
        reading = reading_of(path)
        assert 0 < reading.used < 3000
        (reason,) = (r for r in reading.skipped if r.startswith("broken"))
        assert reading.skipped[reason] == (1, reading.rows)


@pytest.mark.parametrize("end", [-1, -9, 20_000, 1_000])
def test_every_line_before_the_break_of_a_gzip_stream_is_used(tmp_path, end):
    rng = np.random.default_rng(0)
    many = lines(*({"response": f"wait {x}"} for x in rng.random(3000)))
    data = gzip.compress(many)[:end]
    (tmp_path / "a.gz").write_bytes(data)
    whole = zlib.decompressobj(31).decompress(data).count(b"\n")
    assert reading_of(tmp_path / "a.gz").used == whole
    assert whole > 60


@pytest.mark.parametrize("compress", [gzip.compress, zstd])
def test_what_follows_a_whole_stream_costs_none_of_it(tmp_path, compress):
    (tmp_path / "a.bin").write_bytes(compress(lines(*GOOD)) + b"garbage!!")
    reading = reading_of(tmp_path / "a.bin")
    assert reading.used == 5
    assert [count for count, _ in reading.skipped.values()] == [1]


def test_several_frames_and_members(tmp_path):
    frame = zstd(lines(*GOOD))
    (tmp_path / "a.zst").write_bytes(frame * 2)
    (tmp_path / "a.gz").write_bytes(gzip.compress(lines(*GOOD)) * 3)
    assert reading_of(tmp_path / "a.zst").used == 10
    assert reading_of(tmp_path / "a.gz").used == 15


REFUSED = {
    "empty file": ("a.jsonl", b"", "is empty"),
    "zero rows of JSON lines": ("a.jsonl", b"\n\n", "zero rows"),
    "zero rows of parquet": ("a.parquet", {"response": []}, "zero rows"),
    "no response field": ("a.jsonl", [{"reply": "a", "id": 1}], "fields found: id, reply"),
    "only null": ("a.jsonl", [{"response": None}] * 2, "2 null response (first in row 1)"),
    "half a parquet file": ("a.jsonl", b"PAR1\x15\x04", "not a readable parquet file"),
    "an image": ("a.jsonl", b"\x89PNG\r\n\x1a\n" + bytes(range(256)), "not JSON"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_gives_nothing_is_said_in_one_line(write, name):
    file, content, words = REFUSED[name]
    with pytest.raises(EpistillError) as error:
        measure_files([write(file, content)], Options())
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_paths_and_folders(write, tmp_path):
    with pytest.raises(EpistillError, match="no file"):
        measure_files([tmp_path / "none.jsonl"], Options())
    (tmp_path / "empty").mkdir()
    with pytest.raises(EpistillError, match="no trace files in folder"):
        measure_files([tmp_path / "empty"], Options())
    write("b.jsonl", GOOD)
    write("a.parquet", GOOD[:2])
    write("notes.txt", b"nothing")
    found = measure_files([tmp_path], Options())
    assert [(m.path.name, m.reading.used) for m in found] == [("a.parquet", 2), ("b.jsonl", 5)]


@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=30),
    st.integers(1, 64),
    st.booleans(),
)
def test_pieces_hold_every_line_once(tmp_path_factory, lengths, piece_bytes, ends):
    path = tmp_path_factory.mktemp("pieces") / "a.jsonl"
    expected = ["x" * n for n in lengths]
    data = b"".join(lines({"response": text}) for text in expected)
    path.write_bytes(data if ends else data[:-1])
    size = path.stat().st_size
    found = []
    (whole,) = pieces_of(path)
    for start in range(0, size, piece_bytes):
        piece = replace(whole, start=start, stop=min(start + piece_bytes, size))
        found += [row.record["response"] for rows in read_piece(piece) for row in rows]
    assert found == expected


def test_row_numbers_count_across_pieces(write, monkeypatch):
    monkeypatch.setattr(read, "PIECE_BYTES", 100)
    path = write("a.jsonl", lines(*GOOD * 10) + b"broken\n" + lines(*GOOD))
    assert len(pieces_of(path)) > 10
    assert reading_of(path).skipped == {"not JSON": (1, 51)}


def test_parquet_reads_only_the_columns_it_needs(tmp_path):
    import polars as pl

    path = tmp_path / "a.parquet"
    frame = pl.DataFrame(
        {"output": ["Wait", "Hmm"], "embedding": [[0.0] * 9] * 2, "arm": ["x", "y"]}
    )
    frame.write_parquet(path, row_group_size=1)
    assert len(pieces_of(path)) == 2
    (found,) = measure_files([path], Options(by="arm"))
    assert set(found.groups) == {"x", "y"}
    rows = [r for rows in read_piece(pieces_of(path)[0], ["output"]) for r in rows]
    assert rows[0].record == {"output": "Wait"}


def test_several_processes_find_what_one_finds(write, monkeypatch):
    monkeypatch.setattr(read, "PIECE_BYTES", 2000)
    records = [
        {
            "problem_id": i // 4,
            "response": f"<think>Wait {i}. Maybe.</think>{i}",
            "arm": f"a{i % 3}",
        }
        for i in range(200)
    ]
    data = lines(*records[:77]) + b"broken\n" + lines(*records[77:], records[0])
    path = write("a.jsonl", data)
    options = Options(by="arm", keep=20)
    (one,) = measure_files([path], options)
    (two,) = measure_files([path], options, workers=2)
    assert one.reading.skipped == two.reading.skipped == {"not JSON": (1, 78)}
    assert one.reading.repeated() == two.reading.repeated() == (1, 202)
    for group, sums in one.groups.items():
        np.testing.assert_array_equal(sums.sums, two.groups[group].sums)
    assert one.sample == two.sample
    assert len(one.sample) == 20


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_memory_does_not_grow_with_the_file(tmp_path):
    """Peak memory of a process on 12 MB and on 60 MB, many pieces each."""
    line = json.dumps({"problem_id": 1, "response": "So 3 * 4 = 12. Wait, let me check. " * 100})
    peaks = []
    for megabytes in (12, 60):
        path = tmp_path / f"{megabytes}.jsonl"
        path.write_text((line + "\n") * (megabytes * 1_000_000 // len(line)))
        code = (
            "from pathlib import Path\n"
            "from epistill.traces.measure import measure_files\n"
            "from epistill.traces.options import Options\n"
            f"measure_files([Path({str(path)!r})], Options())\n"
            "status = Path('/proc/self/status').read_text()\n"  # ru_maxrss survives exec
            "print(status.partition('VmHWM:')[2].split()[0])"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        peaks.append(int(done.stdout) / 1024)
    assert peaks[1] < peaks[0] + 20, peaks
    assert peaks[1] < 500


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
@pytest.mark.parametrize("kept", [8, 30])
def test_a_compressed_stream_cut_in_its_first_block_is_one_reason(write, name, kept):
    path = write(name, [{"response": f"wait {i}"} for i in range(50)])
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(EpistillError, match="broken"):
        measure_files([path], Options())


def test_long_ids_are_not_rounded(write):
    ids = (123456789012345678901234567890, 123456789012345678901234567891)
    path = write("a.jsonl", [{"response": "a", "problem_id": i} for i in ids])
    assert [
        row.record["problem_id"] for rows in read_piece(pieces_of(path)[0]) for row in rows
    ] == [*ids]
    assert len(measure_files([path], Options())[0].groups["(all)"].sums) == 2


def test_different_texts_without_an_id_are_not_repeated(write):
    same = [{"id": 0, "response": "x" * 120 + str(i) + "y" * 120} for i in range(5)]
    assert reading_of(write("a.jsonl", same)).repeated() == (0, 0)
    assert reading_of(write("b.jsonl", [*same, same[1]])).repeated() == (1, 6)


def grown(path):
    path.write_bytes(path.read_bytes() + lines(*GOOD))


def rewritten(path):
    path.write_bytes(bytes(reversed(path.read_bytes())))


def replaced(path):
    other = path.with_name("other")
    other.write_bytes(path.read_bytes() * 2)
    other.replace(path)


def shrunk(path):
    path.write_bytes(path.read_bytes()[:-1])


WAYS = {"grown": grown, "rewritten": rewritten, "replaced": replaced, "shrunk": shrunk,
        "gone": Path.unlink}  # fmt: skip


@pytest.mark.parametrize("told", WAYS)
@pytest.mark.parametrize("name", ["a.jsonl", "array.json", "a.csv", "a.parquet", "a.jsonl.gz", "a.zst"])  # fmt: skip
def test_a_file_that_changes_while_it_is_read_is_one_line(name, told, write, tmp_path, monkeypatch):
    monkeypatch.setattr(read, "BATCH_ROWS", 2)
    path = tmp_path / name
    if name == "array.json":
        path.write_text(json.dumps(GOOD))
    elif name == "a.csv":
        path.write_text("id,response\n" + "".join(f'1,"Wait, {i}."\n' for i in range(5)))
    else:
        path = write(name, GOOD)
    (piece,) = pieces_of(path)
    batches = read_piece(piece)
    found = [row.record["response"] for row in next(batches)]
    WAYS[told](path)
    if (name, told) == ("a.jsonl", "grown"):  # a log of a run that goes on: what was there is read
        found += [row.record["response"] for rows in batches for row in rows]
        assert found == [row["response"] for row in GOOD]
        return
    with pytest.raises(EpistillError, match=r"changed while it was read|could not read") as refused:
        list(batches)
    assert "\n" not in str(refused.value)
    assert path.name in str(refused.value)
