"""compare on files whose answer is known: every number by hand or by another way."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from epistill.comparison import compare
from epistill.comparison.compare import CompareOptions, compare_sides
from epistill.errors import EpistillError
from epistill.evaluation import maj_at_k, pass_at_k
from epistill.store import RunStore
from epistill.tasks.grading import Grader
from epistill.traces.options import Options

OPTIONS = CompareOptions(Options(keep=1000))


def traces(problems=25, samples=4, doubt=2, right=0.6, seed=0, **fields):
    """Records with a score, an answer of words, and `doubt` markers in half of them."""
    rng = np.random.default_rng(seed)
    for problem in range(problems):
        for sample in range(samples):
            correct = bool(rng.random() < right)
            answer = 7 if correct else int(rng.integers(3))
            thinking = "wait " * (doubt * (sample % 2)) + "so it is " * int(rng.integers(1, 9))
            yield {
                "problem_id": problem, "sample": sample, "correct": correct, "reference": "7",
                "grader": "exact", "text": f"<think>{thinking}</think>answer {answer}", **fields,
            }  # fmt: skip


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def compared(a, b, options=OPTIONS):
    with Grader() as grader:
        return compare_sides(a, b, options, grader)


@pytest.fixture
def pair(tmp_path):
    first, second = list(traces()), list(traces(doubt=0, right=0.4, seed=1))
    return write(tmp_path / "a.jsonl", first), write(tmp_path / "b.jsonl", second), first, second


def row_of(found, name, family="measures"):
    return next(row for row in found["sets"][0][family] if row["measure"] == name)


@pytest.mark.parametrize("lines", [0, 1])
def test_a_file_that_another_writes_before_it_is_graded_is_one_line(lines, pair, monkeypatch):
    """Grades of the new responses would stand beside the lengths of the old ones."""
    a, b, _, second = pair
    regrade = compare.regrade

    def late(*args):
        write(b, [*reversed(second), *second[:lines]])
        return regrade(*args)

    monkeypatch.setattr(compare, "regrade", late)
    with pytest.raises(EpistillError, match=r"b\.jsonl changed while it was read"):
        compared(a, b)


def test_every_number_by_hand(pair):
    a, b, first, second = pair
    found = compared(a, b).summary
    for name, value in {
        "avg@k": lambda rows: np.mean([r["correct"] for r in rows]),
        "pass@4": lambda rows: pass_at_k(4, sum(r["correct"] for r in rows), 4),
        "maj@4": lambda rows: maj_at_k(
            [r["text"].split()[-1] for r in rows], [r["correct"] for r in rows], 4
        ),
    }.items():
        row = row_of(found, name)
        for side, records in (("a", first), ("b", second)):
            expected = np.mean([value(records[i : i + 4]) for i in range(0, 100, 4)])
            assert row[side]["value"] == pytest.approx(expected)
        assert row["difference"]["value"] == pytest.approx(row["b"]["value"] - row["a"]["value"])
        assert row["difference"]["low"] < row["difference"]["value"] < row["difference"]["high"]
    density = row_of(found, "paper-en per 1,000 words")
    words = sum(
        len(r["text"].replace("<think>", "").replace("</think>", " ").split()) for r in first
    )
    waits = sum(r["text"].count("wait") for r in first)
    assert density["a"]["value"] == pytest.approx(1000 * waits / words)
    assert density["b"]["value"] == 0
    assert row_of(found, "length (words)")["a"]["value"] == pytest.approx(words / 100)
    assert found["sets"][0]["samples_per_problem"]["a"] == {"fewest": 4, "most": 4}


def test_looping_responses_are_counted_on_each_side(tmp_path):
    calm, stuck = list(traces()), list(traces())
    for record in stuck[:20]:
        record["text"] += " Wait, let me check that again." * 60
    found = compared(write(tmp_path / "a.jsonl", calm), write(tmp_path / "b.jsonl", stuck)).summary
    looping = found["sets"][0]["looping"]
    assert looping == {"a": {"count": 0, "share": 0.0}, "b": {"count": 20, "share": 0.2}}


def test_the_family_is_corrected_and_controls_are_not_in_it(pair):
    found = compared(*pair[:2]).summary
    rows = found["sets"][0]["measures"]
    tested = [row for row in rows if not row["control"]]
    assert [row["measure"] for row in rows if row["control"]] == ["control-en per 1,000 words"]
    assert found["settings"]["family_sizes"]["measures"] == len(tested) == 8
    smallest = min(tested, key=lambda row: row["p_value"])
    assert smallest["p_holm"] == pytest.approx(min(1.0, 8 * smallest["p_value"]))
    assert all(row["p_holm"] is None for row in rows if row["control"])
    assert row_of(found, "avg@k")["smallest_detectable"] > 0


def test_a_side_against_itself_differs_in_nothing(pair):
    found = compared(pair[0], pair[0]).summary
    for row in (*found["sets"][0]["measures"], *found["sets"][0]["budgets"]):
        assert row["difference"]["value"] == 0
        assert row["p_value"] == 1
    assert found["differs"] == []


def test_swapping_the_sides_turns_the_signs(pair):
    forth, back = compared(*pair[:2]).summary, compared(*pair[1::-1]).summary
    for one, other in zip(forth["sets"][0]["measures"], back["sets"][0]["measures"], strict=True):
        assert one["difference"]["value"] == pytest.approx(-other["difference"]["value"])
        assert one["p_value"] == other["p_value"]


# ---- refusals


def test_other_sampling_settings_are_refused_and_named(tmp_path):
    a = write(
        tmp_path / "a.jsonl", traces(sampling={"temperature": 1.0, "max_new_tokens": 64, "seed": 1})
    )
    b = write(tmp_path / "b.jsonl", traces(temperature=0.6, max_tokens=64))
    with pytest.raises(EpistillError, match=r"temperature is 1 in A and 0\.6 in B") as said:
        compared(a, b)
    assert "max_tokens" not in str(said.value)
    assert "\n" not in str(said.value)
    found = compared(a, b, replace(OPTIONS, allow_different_settings=True)).summary
    assert found["differs"] == ["temperature is 1 in A and 0.6 in B"]


@pytest.mark.parametrize("rule", ["force", "block"])
def test_words_that_one_side_was_made_to_write_are_another_setting(tmp_path, rule):
    plain = {"temperature": 1.0, "force": [], "block": []}
    a = write(tmp_path / "a.jsonl", traces(sampling=plain))
    b = write(tmp_path / "b.jsonl", traces(sampling={**plain, rule: ["maybe@start"]}))
    with pytest.raises(EpistillError, match=rf'{rule} is \[\] in A and \["maybe@start"\] in B'):
        compared(a, b)
    a, b = run_directory(tmp_path / "a"), run_directory(tmp_path / "b", **{rule: ["maybe@start"]})
    with pytest.raises(EpistillError, match=f"{rule} of 'held out' is null in A and .*maybe@start"):
        compared(a, b)


def test_how_many_rows_were_decoded_together_is_no_setting(tmp_path):
    a, b = (
        write(tmp_path / f"{rows}.jsonl", traces(sampling={"temperature": 1.0, "batch_rows": rows}))
        for rows in (8, 64)
    )
    assert compared(a, b).summary["differs"] == []


def test_settings_that_only_one_side_states_are_said(tmp_path):
    a = write(tmp_path / "a.jsonl", traces(temperature=1))
    b = write(tmp_path / "b.jsonl", traces())
    assert "only A says its temperature" in compared(a, b).summary["unknown"][0]
    assert "neither A nor B" in compared(b, b).summary["unknown"][0]


def test_other_problems_are_refused_and_counted(tmp_path):
    a, b = (write(tmp_path / f"{n}.jsonl", traces(problems=n)) for n in (25, 21))
    with pytest.raises(EpistillError, match=r"4 of 25 problems are only in A \(such as '21'\)"):
        compared(a, b)
    found = compared(a, b, replace(OPTIONS, common_problems=True)).summary
    assert found["sets"][0]["problems"] == 21
    assert found["sets"][0]["responses"] == {"a": 84, "b": 84}
    assert any("4 of 25 problems" in line for line in found["differs"])


def test_no_common_problem_is_an_error_even_where_differences_are_allowed(tmp_path):
    a = write(tmp_path / "a.jsonl", traces())
    b = write(tmp_path / "b.jsonl", ({**r, "problem_id": f"x{r['problem_id']}"} for r in traces()))
    with pytest.raises(EpistillError, match="no problem in common"):
        compared(a, b, replace(OPTIONS, common_problems=True))


@pytest.mark.parametrize("field", ["problem_id", "question"])
def test_one_problem_in_two_spellings_of_unicode_is_one(tmp_path, field):
    """A letter and its accent, as one character or two."""
    given = [{**r, "question": f"q{r['problem_id']}"} for r in traces()]
    a = write(tmp_path / "a.jsonl", ({**r, field: f"caf\u00e9 {r['problem_id']}"} for r in given))
    b = write(tmp_path / "b.jsonl", ({**r, field: f"cafe\u0301 {r['problem_id']}"} for r in given))
    options = replace(OPTIONS, reading=replace(OPTIONS.reading, problem_field=field))
    found = compared(a, b, options).summary
    assert found["sets"][0]["problems"] == 25
    assert row_of(found, "avg@k")["difference"]["value"] == 0


def test_one_id_for_two_questions_is_refused(tmp_path):
    """AIME24 and AIME25 both number their problems from 0."""
    a = write(tmp_path / "a.jsonl", ({**r, "question": f"a{r['problem_id']}"} for r in traces()))
    b = write(tmp_path / "b.jsonl", ({**r, "question": f"b{r['problem_id']}"} for r in traces()))
    with pytest.raises(EpistillError, match="25 of 25 problems have different questions"):
        compared(a, b)
    c = write(tmp_path / "c.jsonl", ({**r, "reference": "8"} for r in traces()))
    d = write(tmp_path / "d.jsonl", traces())
    with pytest.raises(EpistillError, match="different reference answers"):
        compared(c, d)


# ---- grades


def test_without_scores_the_grader_grades_and_with_them_disagreement_is_said(tmp_path):
    records = list(traces())
    bare = write(
        tmp_path / "bare.jsonl", ({k: v for k, v in r.items() if k != "correct"} for r in records)
    )
    right = write(tmp_path / "right.jsonl", records)
    assert row_of(compared(bare, right).summary, "avg@k")["difference"]["value"] == 0
    turned = write(
        tmp_path / "turned.jsonl", ({**r, "correct": not r["correct"]} for r in records[:4])
    )
    found = compared(turned, turned).summary["sets"][0]
    assert any("disagrees with 4 of 4 recorded scores" in line for line in found["warnings"])
    again = compared(turned, turned, replace(OPTIONS, regrade=True)).summary
    score = row_of(again, "avg@k")["a"]["value"]
    assert score == pytest.approx(np.mean([r["correct"] for r in records[:4]]))


def test_without_any_grade_lengths_are_still_compared(tmp_path):
    records = ({"problem_id": r["problem_id"], "text": r["text"]} for r in traces())
    path = write(tmp_path / "a.jsonl", records)
    found = compared(path, path).summary["sets"][0]
    assert found["measures"][0]["measure"] == "length (words)"
    first = "first commitment, share of the reasoning"
    assert set(found["reasons"]) == {"avg@k", "budgets", "strata", first}
    assert "--problems" in found["reasons"]["avg@k"]


def test_references_by_problem_or_question(tmp_path):
    records = ({"problem_id": r["problem_id"], "text": r["text"]} for r in traces())
    path = write(tmp_path / "a.jsonl", records)
    known = {str(problem): ("7", "exact") for problem in range(20)}
    found = compared(path, path, replace(OPTIONS, references=known)).summary["sets"][0]
    assert found["graded"] == {"a": 80, "b": 80}
    assert any("20 of 100 responses have neither" in line for line in found["warnings"])
    assert any("leave out 5 problems" in line for line in found["warnings"])


def test_k_and_uneven_samples(tmp_path):
    records = list(traces(samples=4))
    uneven = write(tmp_path / "a.jsonl", records[3:])  # problem 0 has one response
    even = write(tmp_path / "b.jsonl", records)
    found = compared(uneven, even).summary["sets"][0]
    assert any("k is 1 since" in line for line in found["warnings"])
    chosen = compared(uneven, even, replace(OPTIONS, k=4)).summary["sets"][0]
    row = next(row for row in chosen["measures"] if row["measure"] == "pass@4")
    assert row["difference"]["problems"] == 24
    assert any("leave out 1 problems" in line for line in chosen["warnings"])
    with pytest.raises(EpistillError, match="at most 4"):
        compared(uneven, even, replace(OPTIONS, k=5))


def test_nothing_is_dropped_silently(tmp_path):
    records = [*traces(), {"problem_id": 1, "text": None}, {"text": "no problem"}]
    path = write(tmp_path / "a.jsonl", records)
    with path.open("a") as out:
        out.write("{half")
    found = compared(path, path).summary
    reading = found["a"]["files"][0]["reading"]
    skipped = sum(entry["count"] for entry in reading["skipped"].values())
    assert reading["responses_read"] == reading["responses_used"] + skipped == 103
    assert set(reading["skipped"]) == {
        "null response",
        "no problem named",
        "half-written last line",
    }
    assert reading["skipped"]["no problem named"]["first_row"] == 102


# ---- budgets


def test_budget_scores_by_hand(tmp_path):
    """Three words of thinking, then the answer: right from the fifth word on."""
    text = "<think>so it is</think>answer 7"
    record = {"text": text, "reference": "7", "grader": "exact", "correct": True}
    rows = [{**record, "problem_id": i} for i in range(4)]
    long = {
        "text": "answer 7 " + "again " * 20 + "answer 8",
        "reference": "7",
        "grader": "exact",
        "correct": False,
    }
    a = write(tmp_path / "a.jsonl", rows)
    b = write(tmp_path / "b.jsonl", [{**long, "problem_id": i} for i in range(4)])
    found = compared(a, b, replace(OPTIONS, budgets=(2, 4, 5, 100))).summary
    got = {
        r["budget"]: (r["a"]["value"], r["b"]["value"], r["cut_share"])
        for r in found["sets"][0]["budgets"]
    }
    assert got[2] == (0, 0, {"a": 1, "b": 1})  # "answer 7" is cut: it could have gone on
    assert got[4] == (0, 0, {"a": 1, "b": 1})  # B: "answer 7 again again" is another answer
    assert got[5][0] == 1
    assert got[100] == (1, 0, {"a": 0, "b": 0})
    assert found["sets"][0]["budget_unit"] == "words"


def test_a_prefix_is_a_cut_response(tmp_path):
    """Two words of *Answer: 7 eggs* end in a frame that could have gone on."""
    record = {"text": "Answer: 7 eggs", "reference": "7", "grader": "math", "correct": True}
    a = write(tmp_path / "a.jsonl", [{**record, "problem_id": i} for i in range(4)])
    found = compared(a, a, replace(OPTIONS, budgets=(2, 3))).summary
    assert [r["a"]["value"] for r in found["sets"][0]["budgets"]] == [0, 1]


# ---- folders and runs


def test_folders_of_equal_names_are_sets_and_can_be_pooled(tmp_path):
    for side, seed in (("a", 0), ("b", 1)):
        (tmp_path / side).mkdir()
        for name in ("aime", "math"):
            write(tmp_path / side / f"{name}.jsonl", traces(seed=seed))
    found = compared(tmp_path / "a", tmp_path / "b").summary
    assert [one["set"] for one in found["sets"]] == ["aime", "math"]
    assert found["settings"]["family_sizes"]["measures"] == 16
    pooled = compared(tmp_path / "a", tmp_path / "b", replace(OPTIONS, pool=True)).summary
    assert [one["set"] for one in pooled["sets"]] == ["all"]
    assert pooled["sets"][0]["responses"]["a"] == 200


def run_directory(folder, temperature=1.0, batch_rows=256, **own):
    task = {"type": "star_search", "arms": 3, "depth": 1, "split": "test"}
    chosen = {"name": "held out", "task": task, "problems": 6, "samples": 2, **own}
    store = RunStore(folder)
    sampling = {"temperature": temperature, "batch_rows": batch_rows}
    store.begin({"sampling": sampling, "evaluations": [chosen]}, {})
    from epistill.config import EvalSet
    from epistill.tasks.coverage import load_eval_problems

    problems = load_eval_problems(EvalSet.model_validate(chosen).task, 6)
    rows = [
        {
            "problem_id": p.id, "sample": s, "correct": s == 0, "status": "correct" if s == 0 else "wrong",
            "n_tokens": 8, "n_words": 7, "n_markers": 1, "answer": p.answer if s == 0 else "x", "truncated": False,
            "text": f"maybe so </think> answer {p.answer}" if s == 0 else None,
        }
        for p in problems for s in (0, 1)
    ]  # fmt: skip
    store.write_evaluation("final-held out", rows)
    store.write_evaluation("curve", [{"step": 0}])
    return folder


def test_run_directories_with_texts_that_were_not_kept(tmp_path):
    a, b = run_directory(tmp_path / "a"), run_directory(tmp_path / "b", batch_rows=8)
    found = compared(a, b).summary
    (one,) = found["sets"]
    assert (one["set"], one["problems"], one["responses"]["a"], one["unit"]) == (
        "held out",
        6,
        12,
        "tokens",
    )
    assert row_of(found, "avg@k")["a"]["value"] == 0.5
    assert row_of(found, "paper-en per 1,000 tokens")["a"]["value"] == pytest.approx(1000 * 12 / 96)
    assert "control-en per 1,000 tokens" in one["reasons"]
    # References come from the run's configuration; only kept texts can be cut.
    assert one["budgets"][-1]["a"]["problems"] == 6
    assert any("12 responses have no text" in line for line in one["warnings"])
    assert any("6 problems" in line for line in one["warnings"])
    with pytest.raises(EpistillError, match="temperature is 1 in A and 2 in B"):
        compared(a, run_directory(tmp_path / "c", temperature=2.0))


def test_lists_of_responses_beside_lists_of_scores(tmp_path):
    rows = [{"id": i, "responses": ["answer 1", "answer 2"], "scores": [1, 0]} for i in range(5)]
    path = write(tmp_path / "a.jsonl", rows)
    found = compared(path, path).summary
    assert row_of(found, "avg@k")["a"]["value"] == 0.5
    assert row_of(found, "pass@2")["a"]["value"] == 1


def test_scores_that_are_words_are_said_with_their_row(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"id": 1, "response": "x", "score": "good"}])
    with pytest.raises(EpistillError, match=r"a\.jsonl: row 1: score 'score' is 'good'"):
        compared(path, path)


def test_a_run_without_final_evaluations_is_said(tmp_path):
    RunStore(tmp_path / "run").begin({"sampling": {}}, {})
    with pytest.raises(EpistillError, match="run has no final evaluation"):
        compared(tmp_path / "run", tmp_path / "run")


def test_dots_in_names_and_what_grade_wrote_stay_sets_of_their_own(tmp_path):
    for side in ("a", "b"):
        (tmp_path / side).mkdir()
        for name in ("math.s0.jsonl", "math.s1.jsonl", "math.s0.graded.jsonl"):
            write(tmp_path / side / name, traces(problems=3))
    found = compared(tmp_path / "a", tmp_path / "b").summary
    assert [one["set"] for one in found["sets"]] == ["math.s0.graded", "math.s0", "math.s1"]


def test_folders_without_a_common_name_are_one_set_and_that_is_said(tmp_path):
    for side in ("a", "b"):
        (tmp_path / side).mkdir()
        for name in ("math", "gsm"):
            records = traces(problems=3, question=name)
            moved = [
                {**record, "problem_id": f"{name}{record['problem_id']}"} for record in records
            ]
            write(tmp_path / side / f"{name}_{side}.jsonl", moved)
    (one,) = (found := compared(tmp_path / "a", tmp_path / "b").summary)["sets"]
    assert (one["set"], one["problems"]) == ("all", 6)
    assert any("A: 2 files are taken as one set" in line for line in found["unknown"])


def test_one_id_for_two_questions_of_one_side_is_refused(tmp_path):
    both = [*traces(problems=3, question="2+2?"), *traces(problems=3, question="3+3?")]
    path = write(tmp_path / "a.jsonl", both)
    with pytest.raises(
        EpistillError, match="3 of 3 problems have several questions under one id in A"
    ):
        compared(path, path)


def test_unverified_answers_and_candidates_are_compared(tmp_path):
    checked = "<think>so 7. Let me check: 7</think>\\boxed{7}"
    a, b = (
        write(
            tmp_path / name,
            [
                {"problem_id": i, "response": checked if i in verified else "so \\boxed{7}", "score": 1}
                for i in range(6)
            ],
        )
        for name, verified in (("a.jsonl", range(6)), ("b.jsonl", range(2)))
    )  # fmt: skip
    row = row_of(compared(a, b).summary, "answers given unverified")
    assert (row["a"]["value"], row["b"]["value"]) == (0, pytest.approx(4 / 6))
    row = row_of(compared(a, b).summary, "answers verified")
    assert (row["a"]["value"], row["b"]["value"]) == (1, pytest.approx(2 / 6))
    assert row_of(compared(a, b).summary, "candidates")["a"]["value"] == 1
    first = row_of(compared(a, b).summary, "first commitment, share of the reasoning")
    assert first["a"]["value"] == pytest.approx(3 / len("so 7. Let me check: 7"))
