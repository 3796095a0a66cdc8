from __future__ import annotations

import pytest

from epistill.axes import Context
from epistill.errors import EpistillError
from epistill.records import Grade, GradedRollout, GradeStatus, Message, Problem, Rollout
from epistill.teacher.context import (
    NAMED_CONTEXTS,
    context_texts,
    teacher_messages,
)
from epistill.thinking import split_thinking


def problem(name, solution=None):
    return Problem(
        name, (Message("system", "s"), Message("user", f"Q {name}")), f"A{name}", "exact", solution
    )


def graded(name, sample, text, correct, extracted="x", solution=None, opened=True):
    return GradedRollout(
        problem(name, solution),
        Rollout(name, sample, (1, 2), (3,), (-0.1,), "eos", text),
        Grade(GradeStatus.CORRECT if correct else GradeStatus.WRONG, extracted),
        opened,
    )


GROUP = [
    graded("p", 0, "t0 </think> a0", False, "w0"),
    graded("p", 1, "t1 </think> a1", True, "Ap"),
    graded("p", 2, "t2 </think> a2", True, "Ap"),
    graded("q", 0, "u0 </think> b0", False, "w9"),
    graded("q", 1, "u1 </think> b1", True, "Aq"),
]


def texts(name, rows=GROUP, **more):
    return context_texts(NAMED_CONTEXTS[name], rows, **more)


def test_sibling_is_the_first_success_that_is_not_the_row_itself():
    assert texts("sibling") == [
        "<think>\nt1 </think> a1",
        "<think>\nt2 </think> a2",  # its own success is not shown to it
        "<think>\nt1 </think> a1",
        "<think>\nu1 </think> b1",
        None,  # the group's only success
    ]


def test_sibling_without_thinking_even_where_the_template_opened_the_tag():
    assert texts("sibling-no-think")[:2] == ["a1", "a2"]
    unopened = [graded("p", 0, "t </think> a", True, opened=False), graded("p", 1, "x", False)]
    assert texts("sibling-no-think", unopened) == [None, "a"]


def test_a_solution_that_is_all_thinking_leaves_no_context():
    rows = [graded("p", 0, "x", False), graded("p", 1, "<think> never closed", True, opened=False)]
    assert texts("sibling-no-think", rows)[0] is None


def test_answers_right_and_wrong():
    assert texts("answer") == ["Ap", "Ap", "Ap", "Aq", "Aq"]
    assert texts("wrong-answer") == ["w0", "w0", "w0", "w9", "w9"]


def test_wrong_answer_from_another_problem_where_the_group_made_no_mistake():
    rows = [graded("p", 0, "x", True, "Ap"), graded("q", 0, "x", True, "Aq")]
    assert texts("wrong-answer", rows) == ["Aq", "Ap"]


def test_other_problems_solution_is_never_ones_own():
    assert texts("other-sibling") == [
        "<think>\nu1 </think> b1",
        "<think>\nu1 </think> b1",
        "<think>\nu1 </think> b1",
        "<think>\nt1 </think> a1",
        "<think>\nt1 </think> a1",
    ]
    assert texts("other-sibling", GROUP[:3]) == [None, None, None]


def test_solution_fraction_and_shuffle():
    rows = [graded("p", 0, "x", False, solution="one two three four")]
    assert texts("solution", rows) == ["one two three four"]
    assert context_texts(Context(source="solution", fraction=0.5), rows) == ["one two"]
    (shuffled,) = context_texts(NAMED_CONTEXTS["shuffled-solution"], rows, seed=3)
    assert sorted(shuffled.split()) == sorted(["one", "two", "three", "four"])
    assert context_texts(NAMED_CONTEXTS["shuffled-solution"], rows, seed=3) == [shuffled]


def test_solution_needs_solutions():
    with pytest.raises(EpistillError, match="needs worked solutions"):
        texts("solution")


def test_regenerated_and_none():
    assert texts("regenerated", regenerated={"q": "again"}) == [None, None, None, "again", "again"]
    assert texts("none") == [None] * 5


def test_feedback_depends_on_the_row_and_does_not_tell_the_answer():
    found = texts("feedback")
    assert "w0" in found[0]
    assert "wrong" in found[0]
    assert "correct" in found[1]
    assert all(
        item.problem.answer not in text for item, text in zip(GROUP[:1], found[:1], strict=True)
    )


def test_the_context_goes_into_the_last_user_turn_with_the_question_whole():
    messages = teacher_messages(problem("p"), "THE {CONTEXT}", NAMED_CONTEXTS["sibling"])
    assert messages[0] == Message("system", "s")
    assert messages[1].content.startswith("Q p\n\nSolution:\nTHE {CONTEXT}\n\n")
    assert teacher_messages(problem("p"), None, NAMED_CONTEXTS["sibling"]) == problem("p").messages


def test_braces_in_a_question_survive():
    asked = Problem("x", (Message("user", r"\frac{1}{2} {context}"),), "1", "math")
    (turn,) = teacher_messages(asked, r"\boxed{2}", NAMED_CONTEXTS["answer"])
    assert turn.content.startswith("\\frac{1}{2} {context}\n\nAnswer: \\boxed{2}\n")


def test_remove_thinking():
    assert split_thinking("<think> a </think> b").answer == "b"
    assert split_thinking("a </think> b").answer == "b"
    assert split_thinking("no tags").answer == "no tags"
