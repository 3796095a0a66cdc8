"""`measure`, `shift` and `grade` as a user meets them."""

from __future__ import annotations

import json

import pytest

from tests.helpers.python import run_epistill


@pytest.fixture
def traces(tmp_path):
    def write(name, doubt, extra=""):
        path = tmp_path / name
        records = [
            {
                "problem_id": i // 2, "arm": f"arm{i % 2}", "gold": "4", "finish_reason": "stop",
                "output": f"<think>So 2 + 2 = 5. {doubt} 2 + 2 = 4.</think>The number\n#### {4 + i % 2}",
            }
            for i in range(40)
        ]  # fmt: skip
        path.write_text("".join(json.dumps(r) + "\n" for r in records) + extra)
        return path

    return write


def test_measure_prints_what_it_read_and_found(traces, tmp_path):
    path = traces("a.jsonl", "Wait,", '{"output": null}\n{"outp')
    done = run_epistill("measure", path, "--workers", 2, "--out", tmp_path / "found.json")
    assert done.returncode == 0, done.stderr
    assert "42 responses read, 40 used, 2 skipped; response from output (41)" in done.stdout
    assert "null response; first in row 41" in done.stderr
    assert "half-written last line; first in row 42" in done.stderr
    assert "paper-en: self-corrections per response" in done.stdout
    found = json.loads((tmp_path / "found.json").read_text())
    group = found["files"][0]["groups"]["(all)"]
    assert group["markers"]["paper-en"]["count"] == 40
    assert group["markers"]["paper-en"]["self_correction"]["episodes"] == 40
    assert group["markers"]["control-en"]["count"] == 40
    assert found["lexicons"]["paper-en"]["version"] == 1
    other = traces("b.jsonl", "Hmm,")
    again = json.loads(run_epistill("measure", path, "--by", "arm", "--json").stdout)
    assert set(again["files"][0]["groups"]) == {"arm0", "arm1"}
    again = json.loads(
        run_epistill("measure", path, other, "--response-field", "output", "--json").stdout
    )
    assert len(again["files"]) == 2
    assert again["files"][0]["groups"]["(all)"] == group


def test_shift_ranks_the_words(traces, tmp_path):
    a, b = traces("a.jsonl", "Wait,"), traces("b.jsonl", "So,", "broken\n")
    done = run_epistill("shift", a, b, "--top", 2, "--out", tmp_path / "found.json")
    assert done.returncode == 0, done.stderr
    assert "skipped 1 of 41 (not JSON; first in row 41)" in done.stderr
    assert "wait" in done.stdout
    found = json.loads((tmp_path / "found.json").read_text())
    assert {row["word"] for row in found["words"][:2]} == {"so", "wait"}
    assert found["shared_problems"] == 20
    assert json.loads(run_epistill("shift", a, b, "--json").stdout) == found


def test_grade_writes_columns_and_sums(traces, tmp_path):
    path = traces("a.jsonl", "Wait,", '{"output": null}\n')
    done = run_epistill("grade", path, "--out", tmp_path / "out.jsonl", "--json")
    assert done.returncode == 0, done.stderr
    assert "null response; first in row 41" in done.stderr
    (found,) = json.loads(done.stdout)["files"]
    assert found["statuses"] == {"correct": 20, "wrong": 20, "unreadable": 0, "timeout": 0}
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert len(rows) == 41
    assert sum(row["grade_score"] or 0 for row in rows) == 20
    again = run_epistill(
        "grade", tmp_path / "out.jsonl", "--grader", "exact", "--label-field", "grade_score"
    )
    assert "with an older label" in again.stdout
    assert "check the name" not in again.stderr
    mistyped = run_epistill(
        "grade", tmp_path / "out.jsonl", "--grader", "exact", "--label-field", "scor"
    )
    assert mistyped.returncode == 0
    assert "no response has a label in --label-field 'scor'" in mistyped.stderr
    assert "out.graded.jsonl" in again.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["measure", "none.jsonl"], "no file none.jsonl"),
        (["measure", "a.jsonl", "--workers", "0"], "--workers is 0"),
        (["measure", "a.jsonl", "--lexicon", "none"], "no lexicon 'none'"),
        (["measure", "a.jsonl", "--tokenizer", "none"], "no tokenizer at none"),
        (["measure", "a.jsonl", "--response-field", "text"], "1 no field text"),
        (
            ["measure", "a.jsonl", "--by", "arn"],
            "no response has --by 'arn'; fields found: response",
        ),
        (["measure", "a.jsonl", "--problem-field", "pid"], "no response has --problem-field 'pid'"),
        (["shift", "a.jsonl", "a.jsonl", "--problem-field", "pid"], "has --problem-field 'pid'"),
        (["shift", "a.jsonl", "none.jsonl"], "no file none.jsonl"),
        (["grade", "a.jsonl"], "no reference answer"),
        (
            ["grade", "a.jsonl", "--answer-field", "response", "--out", "a.jsonl/x.jsonl"],
            "could not write a.jsonl/x.jsonl",
        ),
        (["grade", "a.jsonl", "--grader", "vibes"], "--grader is 'vibes'"),
        (["grade", "a.jsonl", "--problems", "none.jsonl"], "no file 'none.jsonl'"),
        (["grade", "a.jsonl", "--time-limit", "0"], "--time-limit is 0"),
        (["grade", "a.jsonl", "--time-limit", "nan"], "--time-limit is nan"),
        (["grade", "a.jsonl", "--time-limit", "inf"], "--time-limit is inf"),
        (["measure", "a.jsonl", "--out", "."], "could not write .: it is a folder"),
        (["measure", "a.jsonl", "--report", "."], "could not write .: it is a folder"),
    ],
)
def test_a_mistake_is_one_line_with_status_2(arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl").write_text('{"response": "Wait"}\n')
    done = run_epistill(*arguments)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert words in line
    assert done.stdout == ""
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]
