"""Ways to state and to spell an answer, with the verdict that each deserves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from epistill.tasks.grading import Grader, grade_choice

CASES = Path(__file__).parents[1] / "data" / "verdict_cases.jsonl"


def grade_math(gold, said, **how):
    with Grader(workers=1) as grader:
        return grader.grade([("math", gold, said)], **how)[0]


def wrong_verdicts(rows):
    """(grader, reference, response, correct, cut) rows whose verdict is another."""
    rows = list(rows)
    with Grader(workers=1) as grader:
        grades = grader.grade(
            [tuple(row[:3]) for row in rows], cut=[row[4:] == [True] for row in rows]
        )
    for row, grade in zip(rows, grades, strict=True):
        if (grade.score > 0) != row[3]:
            yield *row, grade.extracted


def test_every_case_gets_its_verdict():
    rows = [json.loads(line) for line in CASES.read_text(encoding="utf-8").splitlines()]
    assert len(rows) > 1_500
    assert list(wrong_verdicts(rows)) == []


def test_shared_cases_get_their_verdicts(shared_data):
    path = shared_data.parent / "cases" / "grading.jsonl"
    if not path.is_file():
        pytest.skip("the shared cases are not here")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    fields = ("grader", "reference", "response", "correct")
    found = wrong_verdicts([r[name] for name in fields] for r in rows)
    assert list(found) == []


RESTATED = [
    "I have no way to compute 46 + 27.",
    "The answer is 46 + 27.",
    r"So \boxed{46+27}",
    "What is 46 + 27? It is the sum of 46 and 27.",
    "Answer: compute 46 + 27",
    "There are 73 words in this book, says the text.",
]


@pytest.mark.parametrize("text", RESTATED)
def test_restating_the_question_earns_nothing(text):
    assert grade_math("73", text).score == 0
    assert grade_math("46 + 27", "Answer: 46 + 27").score == 1  # the reference is of that kind


def test_a_response_without_a_frame_says_so_and_the_lenient_search_is_named():
    text = "She counts them all, which gives a total of 73 pieces for the day."
    strict, lenient = grade_math("73", text), grade_math("73", text, lenient=True)
    assert (strict.status.value, strict.frame) == ("unreadable", "")
    assert "no answer in a frame" in strict.reason
    assert (lenient.status.value, lenient.frame) == ("correct", "search")
    assert grade_math("73", text, cut=[True], lenient=True).status.value == "unreadable"


@pytest.mark.parametrize(
    ("text", "frame"),
    [(r"\boxed{5}", "boxed"), ("Answer: 5", "label"), ("#### 5", "hashes"), ("5", "whole"),
     ("<answer>5</answer>", "tag")],
)  # fmt: skip
def test_the_frame_is_named(text, frame):
    assert grade_math("5", text).frame == frame


def test_a_frame_that_holds_nothing_gives_way_to_the_one_before():
    assert grade_math("9", r"\boxed{9}. So \boxed{}").score == 1
    assert grade_choice("D", r"\boxed{\Delta E} **Answer: D**").score == 1


def test_what_stands_in_thinking_is_no_answer():
    texts = (r"<think>\boxed{7}</think> Stuck.", r"<think>so \boxed{7}", "[THINK]It is 7.[/THINK]")
    with Grader(workers=1) as grader:
        assert [g.score for g in grader.grade([("math", "7", text) for text in texts])] == [0] * 3
