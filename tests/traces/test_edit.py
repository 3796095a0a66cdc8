from __future__ import annotations

import json
from pathlib import Path

import pytest

import epistill
from epistill.errors import EpistillError
from epistill.metrics.words import count_words
from epistill.traces.edit import edit_files

DATA = Path(__file__).resolve().parents[2] / "examples" / "data"
RULES = ("cut-rechecks", "delete lexicon:paper-en")


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_what_is_written_every_command_reads(tmp_path):
    """Also from records of another make: several responses, nested, thinking beside the text."""
    made = write(
        tmp_path / "theirs.jsonl",
        [
            {
                "prompt": f"What is {i} + 1?",
                "gold": str(i + 1),
                "outputs": [
                    {"reasoning_content": f"Hmm, maybe {i + 1}. Wait.", "content": f"\\boxed{{{a}}}"}
                    for a in (i + 1, i)
                ],
            }
            for i in range(20, 26)
        ],
    )  # fmt: skip
    before = epistill.grade(made, out=tmp_path / "before.jsonl").summary["files"][0]
    found = epistill.edit(made, RULES, out=tmp_path / "edited.jsonl")
    assert found.summary["edits"]["delete lexicon:paper-en"] == {"responses": 12, "edits": 24}
    after = epistill.grade(found.path, out=tmp_path / "after.jsonl").summary["files"][0]
    assert after["statuses"] == before["statuses"]
    compared = epistill.compare(tmp_path / "before.jsonl", tmp_path / "after.jsonl").summary
    rows = {row["measure"]: row for row in compared["sets"][0]["measures"]}
    assert rows["avg@k"]["difference"]["value"] == 0
    summary = epistill.measure(found.path).summary["files"][0]["groups"]["(all)"]
    assert summary["markers"]["paper-en"]["count"] == 0
    assert summary["thinking"]["share"]["value"] == 1


def test_without_rules_nothing_but_the_form_changes(tmp_path):
    edit_files([DATA / "base.jsonl"], tmp_path / "plain.jsonl", ())
    again = epistill.compare(DATA / "base.jsonl", tmp_path / "plain.jsonl").summary["sets"][0]
    for row in again["measures"]:
        assert row["difference"] is None or row["difference"]["value"] == 0


def test_equal_seeds_draw_equal_places(tmp_path):
    rules = ("inject hmm@after:=", )  # fmt: skip
    texts = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        edit_files([DATA / "base.jsonl"], tmp_path / name, rules, share=0.5, seed=seed)
        texts.append((tmp_path / name).read_text())
    assert texts[0] == texts[1] != texts[2]


def test_lengths_are_matched_one_to_one(tmp_path):
    long = [{"problem_id": i, "response": "word " * (10 + i)} for i in range(60)]
    short = [{"problem_id": i, "response": "word " * n} for i, n in enumerate((20, 20, 40, 300))]
    found = edit_files(
        [write(tmp_path / "long", long)],
        tmp_path / "out",
        (),
        match_lengths=write(tmp_path / "short", short),
    )
    lengths = [count_words(row["response"]) for row in read(tmp_path / "out")]
    assert (len(lengths), 40 in lengths, found["left_out"]) == (3, True, 57)
    assert sorted(lengths)[:2] in ([19, 20], [20, 21])
    with pytest.raises(EpistillError, match="no response is as long"):
        edit_files(
            [tmp_path / "long"], tmp_path / "none", (),
            match_lengths=write(tmp_path / "huge", short[3:]),
        )  # fmt: skip


def test_mistakes_are_said_in_one_line(tmp_path):
    with pytest.raises(EpistillError, match="would overwrite"):
        edit_files([DATA / "base.jsonl"], DATA / "base.jsonl", ())
    with pytest.raises(EpistillError, match="none of 1 responses can be used"):
        edit_files([write(tmp_path / "x", [{"a": 1}])], tmp_path / "y", ())
    with pytest.raises(EpistillError, match="--share is 0"):
        epistill.edit(DATA / "base.jsonl", (), out=tmp_path / "y", share=0)
