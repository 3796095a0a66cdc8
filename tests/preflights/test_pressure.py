"""Closed forms: a hand-made model of two contexts, and hand-made scores."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from epistill.preflights.context_scores import ContextMeasurement, Student
from epistill.preflights.pressure import (
    fork_threshold,
    forks,
    pressure,
    reweighted,
    rows_of,
    u_by_class,
)
from epistill.preflights.richness import richness
from epistill.preflights.token_classes import MARKER, OTHER, TokenClasses
from epistill.records import Grade, GradedRollout, GradeStatus, Message, Problem, Rollout
from epistill.rollouts.engine import TokenScores

# p(y | x, c) of a model with four one-token answers; eight responses are exactly distributed.
GUIDED = {"left": np.array([4, 2, 1, 1]) / 8, "right": np.array([1, 1, 2, 4]) / 8}
BARE = (GUIDED["left"] + GUIDED["right"]) / 2  # the true mixture over the two contexts


def response(problem, sample, tokens, *, correct=False, text="x"):
    status = GradeStatus.CORRECT if correct else GradeStatus.WRONG
    return GradedRollout(
        Problem(problem, (Message("user", "q"),), "0", "exact"),
        Rollout(problem, sample, (1,), tuple(tokens), (0.0,) * len(tokens), "eos", text),
        Grade(status, "0"),
    )


def scores(log_probs, *, entropies=None, mass=None):
    zeros = [0.0] * len(log_probs)
    columns = (log_probs, entropies or zeros, mass or zeros, zeros, zeros)
    return TokenScores(*(torch.tensor(column, dtype=torch.float64) for column in columns))


def classes(kinds):
    kinds = np.array(kinds, dtype=np.int8)
    return TokenClasses(kinds, kinds == MARKER, ("x",) * len(kinds))


def student_of(rows):
    """rows: (response, kinds, bare scores)."""
    graded, kinds, bare = zip(*rows, strict=True)
    return Student((), tuple(graded), tuple(map(classes, kinds)), tuple(bare))


def guided_of(student, teacher, own=(), own_guided=(), own_bare=(), traces=(), trace_guided=()):
    return ContextMeasurement("c", tuple(teacher), tuple(own), tuple(own_guided), tuple(own_bare),
                  tuple(traces), tuple(trace_guided), 0, None)  # fmt: skip


def exact_responses(problem, distribution):
    """Eight responses whose shares are exactly the distribution's."""
    answers = [k for k, p in enumerate(distribution) for _ in range(round(8 * p))]
    return [response(problem, i, (k,), correct=k == 0) for i, k in enumerate(answers)], answers


def test_richness_in_closed_form():
    """E[u] over the teacher's responses is KL; over both contexts it is I(y; c) exactly."""
    own, guided, bare = [], [], []
    for problem, distribution in GUIDED.items():
        rows, answers = exact_responses(problem, distribution)
        own += rows
        guided += [scores([np.log(distribution[k])]) for k in answers]
        bare += [scores([np.log(BARE[k])]) for k in answers]
    plain = [r for p in GUIDED for r in exact_responses(p, BARE)[0]]
    student = student_of([(r, [OTHER], scores([0.0])) for r in plain])
    # y* = answer 0 under the left context.
    trace = next(i for i, r in enumerate(plain) if r.grade.score == 1.0)
    star = np.log(GUIDED["left"][0])
    student.bare[trace].log_probs[:] = np.log(BARE[0])
    found = richness(
        guided_of(student, [None] * len(plain), own, guided, bare, [trace], [scores([star])]),
        student,
    )
    kl = {p: float((d * np.log(d / BARE)).sum()) for p, d in GUIDED.items()}
    information = sum(kl.values()) / 2  # I(y; c): the bare model is the mixture
    entropy = {p: -(d * np.log(d)).sum() for p, d in GUIDED.items()}
    assert information == pytest.approx(-(BARE * np.log(BARE)).sum() - sum(entropy.values()) / 2)
    assert found["own_nats_per_response"].value == pytest.approx(information, abs=1e-12)
    assert found["own_nats_per_token"].value == pytest.approx(information, abs=1e-12)
    assert found["trace_nats_per_response"].value == pytest.approx(np.log(0.5 / BARE[0]))
    # acc: left .5, right .125; the bare model's expected .3125 is rounded to eighths in `plain`.
    student_score = np.mean([r.grade.score for r in plain])
    assert found["teacher_score"].value == pytest.approx(0.3125)
    assert found["accuracy_gap"].value == pytest.approx(0.3125 - student_score)


def two_rows():
    bare = [
        scores([-1, -2, -1, -1], entropies=[0.1, 2, 0.1, 1], mass=[0.0, 0.5, 0.1, 0.2]),
        scores([-1, -1, -1, -3], entropies=[0.1, 0.1, 3, 0.1], mass=[0.0, 0.0, 0.4, 0.0]),
    ]
    teacher = [
        scores([-1, -4, -1, -1], entropies=[0.1, 0.2, 0.1, 2], mass=[0.0, 0.1, 0.0, 0.1]),
        scores([0, -1, -1, -2], entropies=[0.1, 0.1, 0.1, 0.1], mass=[0.0, 0.1, 0.0, 0.0]),
    ]
    graded = [
        response("p", 0, (1, 2, 3, 4), text="x wait x x"),
        response("p", 1, (1, 2, 3, 4), correct=True),
    ]
    student = student_of(
        zip(graded, [[OTHER, MARKER, OTHER, OTHER], [OTHER] * 4], bare, strict=True)
    )
    return student, rows_of(guided_of(student, teacher), student)


def test_pressure_splits_into_written_and_elsewhere():
    _, rows = two_rows()
    found = pressure(rows)
    assert found["student_mass_per_1k_tokens"].value == pytest.approx(1000 * 1.2 / 8)
    assert found["change_per_1k_tokens"].value == pytest.approx(1000 * (0.3 - 1.2) / 8)
    assert found["change_written_per_1k_tokens"].value == pytest.approx(1000 * -0.4 / 8)
    assert found["change_elsewhere_per_1k_tokens"].value == pytest.approx(1000 * -0.5 / 8)
    assert found["mass_change_share"].value == pytest.approx(-0.75)
    assert found["kl_nats_per_token"].value == pytest.approx(-(-2 + 1 + 1) / 8)
    assert found["bound_per_1k_tokens"] == 0.0


def test_u_by_class_and_quarter():
    _, rows = two_rows()
    found = u_by_class(rows)
    assert found["marker"]["all"].value == -2
    assert found["marker"]["q2"].value == -2
    assert found["marker"]["q1"] is None  # no marker there: absent, not 0
    assert found["control"]["all"] is None
    assert found["other"]["q1"].value == pytest.approx(0.5)
    assert found["any"]["all"].value == pytest.approx(0.0)


def test_forks_use_one_threshold_of_the_student():
    student, rows = two_rows()
    threshold = fork_threshold(student, 0.7)
    assert 0.1 < threshold < 1.0
    found = forks(rows, threshold)
    assert found["student_share"].value == pytest.approx(3 / 8)
    assert found["teacher_share"].value == pytest.approx(1 / 8)
    assert found["change"].value == pytest.approx(-2 / 8)


def test_reweighting_is_softmax_of_total_u():
    _, rows = two_rows()
    weight = np.exp(2) / (np.exp(2) + np.exp(-2))  # of the correct response
    found = reweighted(rows)
    assert found["gain_score"].value == pytest.approx(weight - 0.5)
    assert found["gain_length_tokens"].value == pytest.approx(0.0)
    assert found["gain_markers_per_response"].value == pytest.approx((1 - weight) - 0.5)
    assert found["effective_share"].value == pytest.approx(1 / (weight**2 + (1 - weight) ** 2) / 2)


def test_a_context_that_no_row_has_gives_none_everywhere():
    assert set(reweighted([]).values()) == {None}
    assert pressure([])["change_per_1k_tokens"] is None
    assert pressure([])["bound_per_1k_tokens"] is None
    assert forks([], 1.0)["change"] is None
    assert u_by_class([])["marker"]["all"] is None
