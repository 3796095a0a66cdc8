from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epistill.config import NumberPairsTask
from epistill.errors import EpistillError
from epistill.inputs import task_from_name
from epistill.seeds import named_random
from epistill.tasks.coverage import load_eval_problems, make_curriculum
from epistill.tasks.grading import grade_responses
from epistill.tasks.number_pairs import make_pairs, pair_problem
from epistill.tasks.pair_traces import pair_trace
from epistill.tasks.written_sums import numbers_and_value

tasks = st.builds(
    NumberPairsTask,
    numbers=st.integers(3, 6),
    largest=st.integers(20, 80),
    operation=st.sampled_from(["sum", "difference"]),
    wording=st.sampled_from(["plain", "story"]),
)


@given(tasks, st.integers(0, 10**6))
def test_exactly_one_pair_of_the_listed_numbers_is_right(task, index):
    problem = pair_problem(task, 0, index)
    *numbers, target = map(int, re.findall(r"\d+", problem.messages[0].content))
    assert len(set(numbers)) == task.numbers
    assert max(numbers) <= task.largest
    sign = 1 if task.operation == "sum" else -1
    pairs = [
        (a, b)
        for i, a in enumerate(numbers)
        for b in numbers[i + 1 :]
        if max(a, b) + sign * min(a, b) == target
    ]
    assert len(pairs) == 1
    assert numbers_and_value(problem.answer) == (sorted(pairs[0]), target)


@given(tasks, st.integers(0, 10**6))
def test_a_worked_solution_is_graded_right_and_calculates_right(task, index):
    problem = pair_problem(task, 0, index)
    (grade,) = grade_responses([("expression", problem.answer, problem.solution)])
    assert grade.score == 1.0
    assert "must be" not in problem.solution
    for text in re.findall(r"\d+ [+-] \d+ = \d+", problem.solution):
        numbers_and_value(text)  # raises where it is wrong


def test_unguided_traces_search_doubt_verify_and_sometimes_answer_unchecked():
    pairs = [make_pairs(NumberPairsTask(), "t", i) for i in range(400)]
    traces = [pair_trace(p, named_random("t", i)) for i, p in enumerate(pairs)]
    hasty = [t for t in traces if "must be" in t]
    items = [("expression", p.answer, t) for p, t in zip(pairs, traces, strict=True)]
    right = [grade.score for grade in grade_responses(items)]
    assert 0.15 < len(hasty) / 400 < 0.3
    assert 400 - len(hasty) <= sum(right) < 400 - len(hasty) / 2
    assert 0.3 < sum("Check:" in t for t in traces) / 400 < 0.5


@pytest.mark.parametrize(
    ("said", "status"),
    [
        ("Answer: 31 + 8", "correct"),
        ("Answer: 8 + 31 = 39.", "correct"),
        ("Answer: 39", "wrong"),
        ("Answer: 31 - 8", "wrong"),
        ("Answer: 8 + 31 + 0", "wrong"),
        ("Answer: 20 + 19", "wrong"),
        ("Answer: 8 + 31 = 40", "unreadable"),
        ("Answer: 8 and 31", "unreadable"),
        ("8 + 31 it is, I think", "unreadable"),
        ("Answer: " + "8 + " * 10_000, "unreadable"),
    ],
)
def test_the_expression_grader(said, status):
    (grade,) = grade_responses([("expression", "8 + 31", f"<think>\nhm\n</think>\n{said}")])
    assert grade.status.value == status


def test_names_of_the_task():
    assert task_from_name("number-pairs") == NumberPairsTask()
    assert task_from_name("number-pairs:5x60:difference:story") == NumberPairsTask(
        numbers=5, largest=60, operation="difference", wording="story"
    )
    with pytest.raises(EpistillError, match="NUMBERSxLARGEST"):
        task_from_name("number-pairs:4")


def test_splits_and_seeds_are_different_problems_and_coverage_is_a_prefix():
    task = NumberPairsTask()
    test = {p.messages for p in load_eval_problems(task.model_copy(update={"split": "test"}), 200)}
    train = {p.messages for p in make_curriculum(task, None, 0).at(0, 200)}
    assert len(test) == len(train) == 200
    assert len(test & train) < 5  # by chance alone
    small, large = make_curriculum(task, 8, 0).pool, make_curriculum(task, 64, 0).pool
    assert small is not None
    assert large is not None
    assert large[:8] == small


def test_knobs_without_a_question_are_refused():
    with pytest.raises(EpistillError, match="lower numbers"):
        make_pairs(NumberPairsTask(numbers=9, largest=6), 0)
