"""Grade columns: what is graded against what, agreement with older labels, hostile answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from epistill.errors import EpistillError
from epistill.tasks import extract_answer, grade_responses
from epistill.traces import grade as grading
from epistill.traces.grade import COLUMNS, grade_files
from epistill.traces.measure import measure_files
from epistill.traces.options import Options
from epistill.traces.references import GradeOptions


def graded(path, **options):
    (result,) = grade_files([path], None, GradeOptions(**options))
    reading = result["reading"]
    skipped = sum(entry["count"] for entry in reading["skipped"].values())
    assert reading["responses_read"] == reading["responses_used"] + skipped
    assert reading["responses_used"] == sum(result["statuses"].values())
    with open(result["written"], encoding="utf-8") as lines:
        return result, [json.loads(line) for line in lines]


def test_columns_beside_the_record(write):
    records = [
        {
            "id": "p1",
            "ground_truth": "1/2",
            "response": r"<think>\boxed{3}</think>\boxed{0.5}",
            "x": 1,
        },
        {"id": "p1", "ground_truth": "1/2", "response": r"<think>so \boxed{0.5}"},  # cut: no answer
        {"id": "p2", "ground_truth": "7", "response": "#### 8"},
        {"id": "p2", "ground_truth": "7", "response": None},
        {"id": "p3", "response": "#### 8"},
    ]
    result, rows = graded(write("a.jsonl", records))
    assert [row["grade_status"] for row in rows] == ["correct", "unreadable", "wrong", None, None]
    assert [row["grade_score"] for row in rows] == [1.0, 0.0, 0.0, None, None]
    assert rows[0]["grade_extracted"] == "0.5"
    assert rows[1]["grade_reason"] == "the response has no answer part"
    assert [{k: v for k, v in row.items() if k not in COLUMNS} for row in rows] == records
    assert result["statuses"] == {"correct": 1, "wrong": 1, "unreadable": 1, "timeout": 0}
    assert result["score"]["value"] == pytest.approx(1 / 3)
    assert result["score"]["low"] <= 1 / 3 <= result["score"]["high"]
    assert result["problems"] == 2
    assert result["reading"]["skipped"] == {
        "null response": {"count": 1, "first_row": 4},
        "no reference answer": {"count": 1, "first_row": 5},
    }
    assert result["reading"]["fields"]["reference"] == {"ground_truth": 3}


def test_lists_get_lists(write):
    record = {"question": "?", "answer": "so\n#### 4", "responses": ["answer 4", None, "answer 5"]}
    _, (row,) = graded(write("a.jsonl", [record]))
    assert row["grade_score"] == [1.0, None, 0.0]
    assert row["grade_reference"] == ["4", None, "4"]


@pytest.mark.parametrize("records", [[{"answer": "B", "response": "Answer: (B)"}] * 2])
def test_letters_are_choices(write, records):
    result, rows = graded(write("a.jsonl", [*records, {"answer": "C", "response": "Answer: B"}]))
    assert result["graders"] == {"choice": 3}
    assert [row["grade_score"] for row in rows] == [1.0, 1.0, 0.0]
    result, rows = graded(write("b.jsonl", records), grader="exact")
    assert [row["grade_score"] for row in rows] == [0.0, 0.0]  # "(B)" is not "B"


def test_answers_from_a_file_of_problems(write, shared_data):
    problems = [
        {"question": "2+2?", "answer": "It is\n#### 4", "id": "p"},
        {"question": "\u00c5?", "answer": "9"},
    ]
    source = write("problems.jsonl", problems)
    records = [
        {"problem_id": "p", "response": "answer 4"},
        {
            "messages": [
                {"role": "user", "content": "A\u030a?"},  # in another spelling of Unicode
                {"role": "assistant", "content": "answer 9"},
            ]
        },
        {"problem_id": "z", "response": "answer 4", "answer": "4"},
    ]
    result, rows = graded(write("a.jsonl", records), problems=str(source), grader="exact")
    assert [row["grade_score"] for row in rows] == [1.0, 1.0, None]
    assert list(result["reading"]["skipped"]) == [f"problem not in {source}"]


def test_an_evaluation_of_this_package_is_not_graded_against_its_own_answers(write):
    record = {
        "problem_id": "p",
        "answer": "4",
        "status": "correct",
        "n_markers": 0,
        "text": "answer 4",
    }
    with pytest.raises(EpistillError, match="no reference answer"):
        graded(write("a.jsonl", [record]))


def test_disagreements_with_older_labels_are_listed(write):
    records = [
        {"id": i, "gold": str(i), "response": f"answer {i if ours else -1}", "is_correct": label}
        for i, (ours, label) in enumerate([(1, True), (1, False), (0, True), (0, False), (0, 1.0)])
    ]
    result, _ = graded(write("a.jsonl", records), grader="exact")
    agreement = result["agreement"]
    assert (agreement["labelled"], agreement["agree"]) == (5, 2)
    assert (agreement["correct_here_wrong_there"], agreement["wrong_here_correct_there"]) == (1, 2)
    assert [row["row"] for row in agreement["disagreements"]] == [2, 3, 5]
    assert agreement["disagreements"][0]["reference"] == "1"
    again, _ = graded(
        write("b.jsonl", [{**r, "grade_score": 0.0} for r in records]), grader="exact"
    )
    assert again["agreement"]["labelled"] == 5  # its own columns are not an older label


def test_grading_again_replaces_the_columns(write):
    _, rows = graded(write("a.jsonl", [{"gold": "4", "response": "answer 4"}]), grader="exact")
    _, again = graded(write("b.jsonl", [{**rows[0], "gold": "5"}]), grader="exact")
    assert again[0]["grade_score"] == 0.0
    (found,) = measure_files([write("c.jsonl", rows)], Options(keep=1))
    assert found.sample[0][1]["score"] == 1.0


HOSTILE = {
    "tower": r"\boxed{9**9**9**9}",
    "latex tower": r"\boxed{10^{10^{10}}}",
    "megabyte": "x" * 1_000_000,
    "megabyte boxed": r"\boxed{" + "1" * 1_000_000 + "}",
    "nested": r"\boxed{" + r"\frac{1}{" * 500 + "2" + "}" * 500 + "}",
    "braces": r"\boxed{" + "{" * 5000 + "}" * 5000 + "}",
    "control characters": "\\boxed{\x00\x01\x1b[31m\x7f}",
    "surrogate": "\\boxed{\ud800}",
    "quotes": '\\boxed{\'"""; import os}',
}


def test_hostile_answers_cost_at_most_the_limit_and_never_the_run(write):
    records = [{"id": name, "gold": "5", "response": text} for name, text in HOSTILE.items()]
    data = b"".join(
        json.dumps(r).encode() + b"\n"
        for r in [*records, {"id": "g", "gold": "5", "response": "#### 5"}]
    )
    _, rows = graded(write("a.jsonl", data), time_limit_s=1.5)
    statuses = {row["id"]: row["grade_status"] for row in rows}
    assert statuses.pop("g") == "correct"
    assert set(statuses) == set(HOSTILE)
    assert "correct" not in statuses.values()
    assert statuses["latex tower"] == "timeout"


def test_equal_answers_get_one_verdict_in_their_places():
    same = ("math", "4", "so many words\n#### 4")
    items = [
        same,
        ("math", "4", "#### 5"),
        ("math", "5", "#### 4"),
        ("math", "4", "answer 4"),
        same,
    ]
    items.append(
        ("math", "4", "no short answer, but a text that goes on and on about $2+2=4$ here")
    )
    found = grade_responses(items)
    assert [g.score for g in found[:5]] == [1, 0, 0, 1, 1]
    assert found[0] == grade_responses([same])[0]


EQUIVALENT = [
    ("1/2", r"\boxed{\frac{1}{2}}"), ("0.5", r"\boxed{\dfrac{1}{2}}"), (r"\frac12", "Answer: 1/2"),
    (r"90^\circ", r"\boxed{90}"), ("90", r"\boxed{90^{\circ}}"), (r"[0,\infty)", r"\boxed{[0, \infty)}"),
    ("(1,2)", r"\boxed{\left(1, 2\right)}"), (r"\text{east}", r"\boxed{east}"),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\boxed{\begin{pmatrix}1\\2\end{pmatrix}}"),
    (r"2\sqrt{3}", r"\boxed{\sqrt{12}}"), ("1,234", "#### 1234"), (r"50\%", r"\boxed{50}"),
    (r"x^2+2x+1", r"\boxed{(x+1)^2}"), (r"\$18", "#### 18"), ("-3", r"\boxed{-3.0}"),
    (r"\{1,2\}", r"\boxed{\{2,1\}}"),
]  # fmt: skip
DIFFERENT = [
    ("(1,2)", r"\boxed{[1,2]}"), ("1/2", r"\boxed{2}"), (r"\text{east}", r"\boxed{\text{west}}"),
    (r"(0,1]", r"\boxed{(0,1)}"), ("3", r"\boxed{-3}"), ("10", r"\boxed{100}"),
]  # fmt: skip


def test_equivalent_forms_are_equal_and_others_are_not():
    found = grade_responses([("math", gold, answer) for gold, answer in EQUIVALENT + DIFFERENT])
    wrong = [pair for pair, g in zip(EQUIVALENT, found, strict=False) if g.score < 1]
    right = [
        pair for pair, g in zip(DIFFERENT, found[len(EQUIVALENT) :], strict=True) if g.score > 0
    ]
    assert (wrong, right) == ([], [])


def test_every_gsm8k_gold_answer_against_itself(shared_data):
    """8,792 worked solutions, read as responses."""
    rows = []
    for name in ("train", "test"):
        text = (shared_data / f"gsm8k/{name}.jsonl").read_text(encoding="utf-8")
        rows += [json.loads(line)["answer"] for line in text.splitlines()]
    golds = [row.rpartition("####")[2].strip() for row in rows]
    assert [extract_answer(row) for row in rows] == golds
    pairs = dict.fromkeys(zip(golds, golds, strict=True))  # equal pairs are graded once anyway
    found = grade_responses([("math", gold, f"#### {gold}") for gold, _ in pairs])
    assert [gold for (gold, _), g in zip(pairs, found, strict=True) if g.score < 1] == []


def test_math500_solutions_agree_with_their_gold_answers(shared_data):
    """The human solutions end in a box; every disagreement with the gold answer is known."""
    import polars as pl

    from epistill.tasks.files import load_problems

    path = shared_data / "math/math500.parquet"
    solutions = [json.loads(text)["solution"] for text in pl.read_parquet(path)["extra_info"]]
    problems = load_problems(str(path)).problems
    assert len(problems) == len(solutions) == 500
    found = grade_responses(
        [("math", p.answer, s) for p, s in zip(problems, solutions, strict=True)]
    )
    apart = [(p.answer, g.extracted) for p, g in zip(problems, found, strict=True) if g.score < 1]
    assert apart == KNOWN_DISAGREEMENTS


KNOWN_DISAGREEMENTS: list[tuple[str, str]] = []


@pytest.mark.parametrize(
    ("records", "options", "words"),
    [
        ([{"response": "a"}], {}, "no reference answer"),
        ([{"response": "a", "answer": "1"}], {"answer_field": "key"}, "no key"),
        ([{"reply": "a", "answer": "1"}], {}, "no response field"),
    ],
)
def test_nothing_to_grade_is_said_and_nothing_is_written(write, tmp_path, records, options, words):
    with pytest.raises(EpistillError, match=words):
        graded(write("a.jsonl", records), **options)
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]


def test_the_input_is_never_overwritten(write, tmp_path):
    path = write("a.jsonl", [{"response": "answer 1", "gold": "1"}])
    with pytest.raises(EpistillError, match="overwrite"):
        grade_files([path], path, GradeOptions())
    other = write("b.jsonl", [{"response": "answer 1", "gold": "1"}])
    with pytest.raises(EpistillError, match="name a folder"):
        grade_files([path, other], path, GradeOptions())
    found = grade_files([path, other], tmp_path / "out", GradeOptions(grader="exact"))
    assert [f["written"] for f in found] == [str(tmp_path / f"out/{n}.graded.jsonl") for n in "ab"]


def test_batches_keep_rows_and_order(write, monkeypatch):
    monkeypatch.setattr(grading, "BATCH", 3)
    records = [{"id": i, "gold": str(i), "response": f"answer {i - i % 2}"} for i in range(11)]
    data = b"".join(json.dumps(r).encode() + b"\n" for r in records[:5]) + b"broken\n"
    data += b"".join(json.dumps(r).encode() + b"\n" for r in records[5:])
    result, rows = graded(write("a.jsonl", data), grader="exact")
    assert [row["id"] for row in rows] == list(range(11))
    assert [row["grade_score"] for row in rows] == [1.0 - i % 2 for i in range(11)]
    assert result["reading"]["skipped"] == {"not JSON": {"count": 1, "first_row": 6}}


def test_a_label_that_is_no_number_is_no_label(write):
    data = b'{"id": 0, "gold": "5", "response": "#### 5", "score": NaN}\n'
    data += b'{"id": 1, "gold": "5", "response": "#### 5", "score": 1}\n'
    result, _ = graded(write("a.jsonl", data))
    assert result["agreement"]["labelled"] == 1


def test_labels_that_are_written_as_words(write):
    rows = [{"response": "4", "gold": "4", "is_correct": label} for label in ("true", "False")]
    (found,) = grade_files([write("a.jsonl", rows)], None, GradeOptions(grader="exact"))
    assert found["agreement"]["labelled"] == 2
    assert found["agreement"]["agree"] == 1


def test_a_folder_is_graded_twice_and_its_results_are_not(write, tmp_path):
    write("math.s0.jsonl", [{"response": "4", "gold": "4"}])
    write("math.s1.jsonl", [{"response": "5", "gold": "4"}])
    for _ in range(2):
        found = grade_files([tmp_path], None, GradeOptions(grader="exact"))
        assert [one["score"]["value"] for one in found] == [1, 0]
    names = {path.name for path in tmp_path.iterdir()}
    assert {"math.s0.graded.jsonl", "math.s1.graded.jsonl"} == names - {
        "math.s0.jsonl",
        "math.s1.jsonl",
    }
    named = [tmp_path / "math.s0.jsonl", tmp_path / "math.s0.graded.jsonl"]
    with pytest.raises(EpistillError, match="would overwrite what is graded"):
        grade_files(named, None, GradeOptions(grader="exact"))


def test_nan_beside_a_lone_surrogate_is_null(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"response": "\\ud800 5", "gold": "5", "x": NaN}\n')
    (found,) = grade_files([path], None, GradeOptions(grader="exact"))
    written = Path(found["written"]).read_text(encoding="utf-8")
    assert json.loads(written, parse_constant=pytest.fail)["x"] is None
