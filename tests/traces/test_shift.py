"""Counting for the vocabulary shift, against plain counting; what is said of the markers."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest

from epistill.errors import EpistillError
from epistill.metrics import count_markers, count_words
from epistill.metrics.words import WORD, fold
from epistill.readers import record_files as read
from epistill.traces import shift as shifting
from epistill.traces.options import Options
from epistill.traces.shift import shift_files

PLAIN = [
    "so",
    "the",
    "sum",
    "of",
    "3",
    "and",
    "4",
    "is",
    "7,",
    "then",
    "we",
    "divide",
    "it",
    "by",
    "the",
    "number",
]


def traces(seed, doubt, problems=15, samples=3, words=60, **extra):
    rng = random.Random(seed)
    records = []
    for i in range(problems * samples):
        pool = PLAIN + ["wait", "maybe"] * doubt
        text = " ".join(rng.choices(pool, k=words + i % 7))
        records.append({"problem_id": f"p{i // samples}", "response": text, **extra})
    return records


@pytest.fixture
def sets(write):
    return [write("a.jsonl", traces(1, 3))], [write("b.jsonl", traces(2, 0))]


def test_rows_equal_plain_counting(sets):
    found = shift_files(*sets, Options())
    texts = [[r["response"] for r in traces(1, 3)], [r["response"] for r in traces(2, 0)]]
    counts = [Counter(w for t in part for w in WORD.findall(fold(t))) for part in texts]
    lengths = [sum(map(count_words, part)) for part in texts]
    assert {row["word"] for row in found["words"]} == {
        w for w in counts[0] + counts[1] if not w.isdigit()
    }
    for row in found["words"]:
        a, b = (count[row["word"]] for count in counts)
        assert (row["count_a"], row["count_b"]) == (a, b)
        assert row["delta_per_1k_words"]["value"] == pytest.approx(
            1000 * b / lengths[1] - 1000 * a / lengths[0]
        )
        assert row["delta_per_response"] == pytest.approx((b - a) / 45)
    assert [row["rank"] for row in found["words"]] == list(range(1, len(found["words"]) + 1))
    assert (found["a"]["words"], found["b"]["words"]) == tuple(lengths)
    assert found["shared_problems"] == 15


def test_markers_that_went_stand_first_and_ordinary_words_do_not(sets):
    found = shift_files(*sets, Options())
    first = found["words"][:2]
    assert {row["word"] for row in first} == {"wait", "maybe"}
    for row in first:
        assert row["lexicon"] == "paper-en"
        assert row["q_value"] < 1e-6
        assert row["delta_per_1k_words"]["high"] < 0
        assert row["moved_more_than_share_of_like_words"] == 1.0
    paper = found["lexicons"]["paper-en"]
    assert (paper["words"], paper["q_below_05"]) == (2, 2)
    assert (
        paper["mean_abs_delta_per_response"] > 5 * found["ordinary"]["mean_abs_delta_per_response"]
    )


def test_no_shift_is_no_shift(write):
    a, b = write("a.jsonl", traces(1, 1)), write("b.jsonl", traces(2, 1))
    found = shift_files([a], [b], Options())
    assert min(row["q_value"] for row in found["words"] if row["q_value"] is not None) > 0.01


def test_phrases_and_chinese_words_are_words(write):
    text = "等等，这可能不对，但是可能性。Wait, don't."
    path = write("a.jsonl", [{"problem_id": i, "response": text} for i in range(12)])
    found = shift_files([path], [path], Options())
    rows = {row["word"]: row for row in found["words"]}
    assert (
        rows["可能"]["count_a"]
        == 12 * count_markers(text, shifting.load_lexicon("epistemic-zh"))["可能"]
    )
    assert rows["等等"]["lexicon"] == "epistemic-zh"
    assert rows["don't"]["count_a"] == rows["性"]["count_a"] == 12
    assert all(row["p_value"] in (None, pytest.approx(1)) for row in found["words"])


def test_pieces_processes_and_folding_change_no_sum(sets, monkeypatch):
    whole = shift_files(*sets, Options())
    monkeypatch.setattr(read, "PIECE_BYTES", 2000)
    assert shift_files(*sets, Options()) == whole
    assert shift_files(*sets, Options(), workers=2) == whole
    monkeypatch.setattr(shifting, "MAX_CLUSTERS", 8)
    folded = shift_files(*sets, Options())
    assert folded["a"]["problems"] is None
    assert folded["a"]["clusters"] <= 8
    for row, other in zip(whole["words"], folded["words"], strict=True):
        assert (row["word"], row["count_a"], row["rank"]) == (
            other["word"],
            other["count_a"],
            other["rank"],
        )
        assert row["delta_per_1k_words"]["value"] == pytest.approx(
            other["delta_per_1k_words"]["value"]
        )


def test_a_large_vocabulary_keeps_the_frequent_words_and_every_marker(write, monkeypatch):
    monkeypatch.setattr(shifting, "MAX_WORDS", 5)
    monkeypatch.setattr(shifting, "MAX_SEEN", 80)
    rare = " ".join(f"rare{chr(97 + i)}{chr(97 + j)}" for i in range(10) for j in range(10))
    records = [
        {"problem_id": i, "response": f"so so so the the sum sum {rare} wait"} for i in range(12)
    ]
    path = write("a.jsonl", records)
    found = shift_files([path], [path], Options(lexicons=("paper-en",)))
    names = [row["word"] for row in found["words"]]
    assert set(names) >= {"so", "the", "wait"}
    assert len(names) == 5
    assert found["a"]["words"] == 12 * 108
    assert found["a"]["words_of_the_vocabulary"] < found["a"]["words"]


def test_sets_without_words_are_refused_and_skips_are_counted(write):
    good = write("a.jsonl", [*traces(1, 1), {"response": None}])
    empty = write("b.jsonl", [{"response": ""}])
    with pytest.raises(EpistillError, match="has a word"):
        shift_files([good], [empty], Options())
    with pytest.raises(EpistillError, match="no response field"):
        shift_files([good], [write("c.jsonl", [{"x": 1}])], Options())
    reading = shift_files([good], [good], Options())["a"]["reading"]
    assert (reading["responses_used"], reading["responses_read"]) == (45, 46)
    assert np.isfinite(reading["skipped"]["null response"]["first_row"])


def test_thinking_tags_are_no_words(write):
    def tagged(name, seed):
        rows = traces(seed, 1)
        for row in rows:
            row["response"] = f"<think>\n{row['response']}\n</think>\n\nanswer 7"
        return write(name, rows)

    found = shift_files([tagged("a.jsonl", 1)], [tagged("b.jsonl", 2)], Options())
    words = {row["word"] for row in found["words"]}
    assert "answer" in words
    assert "think" not in words


def test_a_parquet_file_without_row_groups_is_named(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "none.parquet"
    pq.ParquetWriter(path, pa.schema([("response", pa.string())])).close()
    with pytest.raises(EpistillError, match=r"none\.parquet has zero rows"):
        shift_files([path], [path], Options(), workers=2)


def test_a_file_that_grows_between_its_two_readings_is_one_line(tmp_path, monkeypatch):
    a, b = (tmp_path / f"{name}.jsonl" for name in "ab")
    for path in (a, b):
        path.write_text("".join(f'{{"problem_id": {i}, "response": "so 3"}}\n' for i in range(9)))
    frame = shifting._frame

    def growing(*seen):
        with b.open("a") as file:
            file.write('{"problem_id": 10, "response": "new words"}\n')
        return frame(*seen)

    monkeypatch.setattr(shifting, "_frame", growing)
    with pytest.raises(EpistillError, match=r"b\.jsonl changed while it was read"):
        shift_files([a], [b], Options())
