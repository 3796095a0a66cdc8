from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epistill.errors import EpistillError
from epistill.tasks.star_search import make_star, star_problem
from epistill.tasks.star_traces import DEFAULT_DIALS, searching_trace, trace_for

sizes = st.sampled_from([(2, 1), (3, 2), (5, 3), (4, 4), (6, 3), (6, 4)])


def walk(prompt):
    """Follow every start to its end, from the prompt's text alone."""
    edges_text, _, starts = prompt.removeprefix("edges ").partition(" from ")
    following = dict(edge.split(" ") for edge in edges_text.split(" , "))
    ends = {}
    for start in starts.split():
        node = start
        while node in following:
            node = following[node]
        ends[start] = node
    return ends


@given(sizes, st.integers(0, 10**6))
def test_exactly_one_start_leads_to_gold_and_it_is_the_answer(size, index):
    problem = star_problem(*size, 0, "test", index)
    ends = walk(problem.messages[0].content)
    assert len(ends) == size[0]
    assert [start for start, end in ends.items() if end == "gold"] == [problem.answer]
    assert set(ends.values()) <= {"gold", "dust"}


def test_the_same_values_give_the_same_problem_and_others_another():
    assert star_problem(5, 3, 0, "train", 7) == star_problem(5, 3, 0, "train", 7)
    texts = {
        star_problem(5, 3, seed, split, index).messages[0].content
        for seed in (0, 1)
        for split in ("train", "test")
        for index in range(50)
    }
    assert len(texts) == 200  # with seed + index, neighbouring seeds would share all but one


def test_answers_are_not_given_away_by_position():
    places = [
        list(walk(p.messages[0].content)).index(p.answer)
        for p in (star_problem(5, 3, 0, "bias", i) for i in range(1000))
    ]
    counts = [places.count(i) for i in range(5)]
    assert min(counts) > 150


@given(sizes, st.integers(0, 10**6))
def test_a_solution_solves(size, index):
    problem = star_problem(*size, 0, "test", index)
    assert problem.solution is not None
    assert problem.solution.startswith("<think> ")
    assert problem.solution.endswith(f"</think> answer {problem.answer}")


@pytest.mark.parametrize(("arms", "depth"), [(1, 3), (5, 0), (7, 4)])
def test_impossible_worlds_are_refused(arms, depth):
    with pytest.raises(EpistillError, match="expected arms >= 2"):
        make_star(arms, depth, "x")


def share_that_commits(dials):
    stars = [make_star(5, 3, "dials", i) for i in range(400)]
    traces = [searching_trace(s, random.Random(i), dials) for i, s in enumerate(stars)]
    return sum(t.split()[-1] != s.answer for t, s in zip(traces, stars, strict=True)) / 400


def test_function_of_doubt_is_what_the_dial_says():
    assert share_that_commits(replace(DEFAULT_DIALS, commit=0.0)) == 0.0
    assert share_that_commits(replace(DEFAULT_DIALS, commit=1.0)) > 0.4


@given(
    st.sampled_from(["none", "answer", "solution", "regenerated", "other"]), st.integers(0, 10**6)
)
def test_every_trace_is_made_of_true_look_ups(kind, index):
    """Whatever a trace says about an edge is in the prompt: the world never teaches a lie."""
    star = make_star(5, 3, "truth", index)
    trace = trace_for(kind, star, random.Random(index), DEFAULT_DIALS)
    edges = dict(
        edge.split(" ")
        for edge in star.prompt.removeprefix("edges ").partition(" from ")[0].split(" , ")
    )
    for here, following in zip(trace.words, trace.words[1:], strict=False):
        if here in edges and (following in edges or following in ("gold", "dust")):
            assert edges[here] == following
    assert len(trace.words) == len(trace.learned)
    assert trace.words[-3:-1] == ["</think>", "answer"]


@given(st.integers(0, 10**6))
def test_guided_traces_always_end_right_and_recover_as_dialled(index):
    star = make_star(5, 3, "guided", index)
    for recovery in (0.0, 1.0):
        dials = replace(DEFAULT_DIALS, recovery=recovery, foreign_prefix=1.0)
        trace = trace_for("solution", star, random.Random(index), dials)
        assert trace.words[-1] == star.answer
