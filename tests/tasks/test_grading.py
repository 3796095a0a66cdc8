from __future__ import annotations

import pytest

from epistill.records import GradeStatus
from epistill.tasks.answers import extract_answer, frames
from epistill.tasks.grading import Grader, grade_choice, grade_exact


@pytest.fixture(scope="module")
def grader():
    with Grader(time_limit_s=3.0) as grader:
        yield grader


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"thus \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"first \boxed{1}, no: \boxed{\sqrt{2}}", r"\sqrt{2}"),
        ("work\n#### 1,234", "1,234"),
        ("The answer is 42.", "42"),
        ("**Answer:** 7", "7"),
        ("answer 18", "18"),
        ("<answer>\nB\n</answer>", "B"),
        ("42", "42"),
        (r"\boxed{never closed", None),
        ("", None),
        ("a long story without any end " * 10, None),
    ],
)
def test_extraction(text, answer):
    assert extract_answer(text) == answer


def test_braces_balance():
    assert [f.text for f in frames(r"\boxed{\text{a \} b}}")] == [r"\text{a \} b}"]
    assert list(frames("nothing")) == []


@pytest.mark.parametrize(
    ("gold", "response", "status"),
    [
        ("1/2", r"\boxed{\frac{2}{4}}", "correct"),
        ("0.5", r"\boxed{\dfrac12}", "correct"),
        (r"\frac{\pi}{2}", r"so \boxed{\pi/2}", "correct"),
        ("90^\\circ", r"\boxed{90}", "correct"),
        ("[0,1)", r"\boxed{[0, 1)}", "correct"),
        ("(1,2)", r"\boxed{(2,1)}", "wrong"),
        (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\boxed{\begin{pmatrix}1&2\\3&4\end{pmatrix}}", "correct"),
        ("18", "#### 18", "correct"),
        ("1234", "#### 1,234", "correct"),
        (r"\text{east}", r"\boxed{\text{east}}", "correct"),
        ("5", "I cannot tell which of these long sentences would hold any value at all", "unreadable"),
        ("5", "", "unreadable"),
    ],
)  # fmt: skip
def test_math(grader, gold, response, status):
    (grade,) = grader.grade([("math", gold, response)])
    assert grade.status.value == status
    assert (grade.extracted is None) == (status == "unreadable")


HOSTILE = {
    "tower": r"\boxed{9**9**9**9}",
    "latex tower": r"\boxed{9^{9^{9^{9}}}}",
    "factorials": r"\boxed{" + "!" * 200 + "}",
    "megabyte": "x" * 1_000_000,
    "megabyte boxed": r"\boxed{" + "1" * 1_000_000 + "}",
    "braces": r"\boxed{" + "{" * 3000 + "}" * 3000 + "}",
    "fractions": r"\boxed{" + r"\frac{1}{" * 400 + "}" * 400 + "}",
    "control characters": "\\boxed{\x00\x01\x1b[31m}",
    "dollars": "$" * 100_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_answer_costs_at_most_the_limit_and_is_not_correct(grader, name):
    bad, good = grader.grade([("math", "5", HOSTILE[name]), ("math", "5", r"\boxed{5}")])
    assert bad.status is not GradeStatus.CORRECT
    assert good.status is GradeStatus.CORRECT  # the run goes on, which without a limit never ends


@pytest.mark.parametrize(
    ("response", "extracted"),
    [
        ("<answer>B</answer>", "B"),
        ("Answer: (B) 3.5", "B"),
        (r"\boxed{B}", "B"),
        ("The answer is B: because", "B"),
        ("The answer is probably option B", "B"),
        ("The answer is A or B", None),
        ("no letter", None),
    ],
)
def test_choice(response, extracted):
    grade = grade_choice("B", response)
    assert grade.extracted == extracted
    assert (grade.status is GradeStatus.CORRECT) == (extracted == "B")
    assert grade.reason == "" or extracted is None


def test_exact_ignores_case_and_space():
    assert grade_exact("New York", "answer new  york").score == 1.0
    assert grade_exact("18", "answer 19").status is GradeStatus.WRONG


def test_order_is_kept_across_graders(grader):
    grades = grader.grade(
        [
            ("exact", "a", "answer a"),
            ("math", "2", r"\boxed{4/2}"),
            ("choice", "C", "<answer>D</answer>"),
        ]
    )
    assert [g.status.value for g in grades] == ["correct", "correct", "wrong"]


def test_every_gsm8k_test_answer_against_itself(grader, shared_data):
    from epistill.tasks.files import load_problems

    problems = load_problems(str(shared_data / "gsm8k/test.jsonl")).problems
    grades = grader.grade([("math", p.answer, p.solution) for p in problems])
    assert [p.answer for p, g in zip(problems, grades, strict=True) if g.score < 1] == []


def test_every_math500_answer_against_itself(grader, shared_data):
    from epistill.tasks.files import load_problems

    problems = load_problems(str(shared_data / "math/math500.parquet")).problems
    grades = grader.grade([("math", p.answer, "\\boxed{" + p.answer + "}") for p in problems])
    assert [p.answer for p, g in zip(problems, grades, strict=True) if g.score < 1] == []


@pytest.mark.parametrize(
    ("gold", "said", "status"),
    [
        ("5", "The value is 5.", "correct"),
        ("5", "x is 5", "correct"),
        ("5", "It equals $5$.", "correct"),
        ("5", "So she makes 5 dollars.", "correct"),
        ("1000", "She has 1,000 dollars.", "correct"),
        ("-3", r"\boxed{the result is -3}", "correct"),
        ("5", "The value is 6.", "wrong"),
        ("5", "5 apples", "correct"),
        (r"\sqrt{5}", "sqrt(5)", "correct"),
        ("5", "sqrt 5", "wrong"),
    ],
)
def test_a_sentence_is_searched_for_its_number(grader, gold, said, status):
    (grade,) = grader.grade([("math", gold, said)], lenient=True)
    assert grade.status.value == status
