"""Token weights are tensors that are multiplied; a weight of 0 leaves the mean and the step."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from epistill.axes import Context, Method
from epistill.errors import EpistillError
from epistill.methods import METHODS, method
from epistill.shapes import ReversedRatioShape
from epistill.teacher.weights import LiveTeacher
from epistill.token_weights import PositionRise, TokenRange, TokenWeight
from epistill.training.step import accumulate_gradients
from epistill.training.token_coefficients import plan_coefficients
from epistill.training_rows import PreStepScores, Progress, ScoredRow, TrainingRow
from tests.helpers.models import make_tiny_model


class SkipMarkers(TokenWeight):
    """0 at epistemic markers: an outsider's weight with a hole in the middle."""

    type: Literal["test_skip_markers"] = "test_skip_markers"

    def weights(self, row, kept):
        return (~row.markers).float()


def row(markers=(False, True, False), advantage=0.0, **settings):
    ids = tuple(range(20, 20 + len(markers)))
    return TrainingRow(
        (5, 6), ids, (-0.5,) * len(ids), advantage, (5, 6, 7), markers=markers, **settings
    )


def test_a_weight_of_zero_leaves_the_mean_and_an_empty_row_the_step():
    chosen = method("sdpo", token_weights=[{"type": "test_skip_markers"}])
    rows = [row((False, True, False, False)), row((True, True))]
    first, second = plan_coefficients(rows, [PreStepScores()] * 2, chosen, Progress())
    assert first.distillation.tolist() == pytest.approx([1 / 3, 0, 1 / 3, 1 / 3])
    assert second.distillation is None
    assert not second.active


@pytest.mark.parametrize("reduction", ["token_mean", "sequence_mean"])
def test_a_row_without_a_token_left_costs_no_forward_pass(reduction):
    student, teacher = make_tiny_model(0), make_tiny_model(1)
    chosen = method("sdpo", token_weights=[{"type": "test_skip_markers"}], reduction=reduction)
    rows = [row(), row((True, True)), row((False, False))]
    seen = {"student": 0, "teacher": 0}
    for name, model in (("student", student), ("teacher", teacher)):
        model.decoder().register_forward_pre_hook(
            lambda m, a, k, n=name: seen.update({n: seen[n] + k["input_ids"].shape[0]}),
            with_kwargs=True,
        )
    options = {"temperature": 1.0, "microbatch_tokens": 999}
    result = accumulate_gradients(student, LiveTeacher(teacher), rows, chosen, **options)
    assert seen == {"student": 2, "teacher": 1 + 2}  # the prompt that both share, and two responses
    assert result.distilled_rows == 2
    without = accumulate_gradients(
        student, LiveTeacher(teacher), [rows[0], rows[2]], chosen, **options
    )
    assert result.loss == pytest.approx(without.loss, abs=1e-7)


def test_two_weights_of_one_kind_compose():
    rows = [row((False, False))]
    scores = [PreStepScores(torch.tensor([-0.1, -0.1]), torch.tensor([0.0, 1.0]))]

    def weights(*betas):
        chosen = method(
            "sdpo", token_weights=[{"type": "teacher_confidence", "beta": b} for b in betas]
        )
        return plan_coefficients(rows, scores, chosen, Progress())[0].distillation

    torch.testing.assert_close(weights(1.0, 2.0), weights(3.0))
    assert weights(1.0, 2.0).tolist() == pytest.approx([0.953, 0.047], abs=1e-3)
    chosen = method("sdpo", token_weights=[{"type": "token_range", "skip_first": 1},
                                           {"type": "token_range", "up_to": 2}])  # fmt: skip
    (found,) = plan_coefficients([row()], [PreStepScores()], chosen, Progress())
    assert found.distillation.tolist() == [0.0, 1.0, 0.0]


def test_the_order_of_weights_does_not_matter():
    weights = [{"type": "position_rise"}, {"type": "token_range", "skip_first": 2, "up_to": 5}]
    found = [
        plan_coefficients(
            [row((False,) * 7)], [PreStepScores()], method("sdpo", token_weights=order), Progress()
        )[0].distillation
        for order in (weights, weights[::-1])
    ]
    torch.testing.assert_close(*found)
    place = (torch.arange(3) + 0.5) / 3
    expected = (0.25 + 0.75 * torch.sigmoid((place - 0.3) / 0.1)) / 3
    torch.testing.assert_close(found[0][2:5], expected)


def test_position_weights():
    weights = PositionRise(floor=0.25, midpoint=0.30, width=0.10).weights(
        ScoredRow(row((False,) * 10), PreStepScores()), torch.ones(10, dtype=torch.bool)
    )
    assert weights[0].item() == pytest.approx(0.25 + 0.75 / (1 + math.exp(2.5)))
    assert weights[-1].item() == pytest.approx(0.25 + 0.75 / (1 + math.exp(-6.5)))
    assert (weights.diff() > 0).all()


@given(st.lists(st.floats(0, 5), min_size=1, max_size=9))
def test_confidence_weights_have_mean_one_and_fall_with_entropy(entropies):
    chosen = method("sdpo", token_weights=[{"type": "teacher_confidence", "beta": 1.0}])
    heights = torch.tensor(entropies, dtype=torch.float64)
    scores = [PreStepScores(torch.zeros(len(entropies)), heights)]
    rows = [row((False,) * len(entropies))]
    (found,) = plan_coefficients(rows, scores, chosen, Progress())
    weights = found.distillation * len(entropies)
    assert weights.mean().item() == pytest.approx(1.0)
    order = sorted(range(len(entropies)), key=lambda i: entropies[i])
    assert all(weights[a] >= weights[b] - 1e-12 for a, b in pairwise(order))


@pytest.mark.parametrize("correct", [True, False])
@pytest.mark.parametrize("advantage", [0.7, -0.4])
def test_rlrt_against_its_formula_written_out(correct, advantage):
    """A [(1-l) + l clip(exp(sign(A)(log S - log T)), 1-e, 1+e)] where right, else A."""
    log_t = torch.tensor([-0.1, -3.0, -0.6])
    scored = ScoredRow(
        row(advantage=advantage, correct=correct), PreStepScores(log_t, torch.zeros(3))
    )
    for strength, clip in ((1.0, 1.0), (0.3, 0.2)):
        found = ReversedRatioShape(strength=strength, clip=clip).advantages(scored, Progress())
        for got, t in zip(found.tolist(), log_t.tolist(), strict=True):
            sign = 1 if advantage > 0 else -1
            ratio = torch.tensor(sign * (-0.5 - t)).exp().item()
            shaped = (1 - strength) + strength * min(max(ratio, 1 - clip), 1 + clip)
            assert got == pytest.approx(advantage * (shaped if correct else 1.0), rel=1e-5)
    assert METHODS["rlrt"].needs.verdicts


def test_a_choice_is_accepted_as_an_instance_too():
    chosen = Method(
        name="x", context=Context(source="answer"), token_weights=(SkipMarkers(), TokenRange())
    )
    assert Method.model_validate(chosen.model_dump()) == chosen


def weighted(choice, **scores):
    """Distillation weights of a right and of a wrong response of three tokens."""
    scored = {name: torch.tensor(values) for name, values in scores.items()}
    rows = [replace(row((False,) * 3), correct=correct) for correct in (True, False)]
    found = plan_coefficients(
        rows, [PreStepScores(**scored)] * 2, method("sdpo", token_weights=[choice]), Progress()
    )
    return [None if one.distillation is None else one.distillation.tolist() for one in found]


def test_only_right_or_only_wrong_rows_are_distilled():
    third = pytest.approx([1 / 3] * 3)
    assert weighted({"type": "only_rows", "that_are": "right"}) == [third, None]
    assert weighted({"type": "only_rows"}) == [None, third]


def test_weights_by_the_probability_of_a_marker():
    expected = pytest.approx([(1 - p) ** 2 / 6 for p in (0.0, 0.5, 0.9)])
    mass = [0.0, 0.5, 0.9]
    choice = {"type": "marker_probability", "power": 2.0}
    assert weighted(choice, student_marker_mass=mass) == [expected] * 2
    choice |= {"of": "teacher"}
    assert weighted(choice, teacher_marker_mass=mass) == [expected] * 2


def test_weights_by_entropy_and_by_certainty_that_only_the_teacher_has():
    entropies = [0.0, 1.0, 2.0]
    (first, _) = weighted({"type": "student_entropy", "beta": -1.0}, student_entropies=entropies)
    raw = [math.exp(h) for h in entropies]
    assert first == pytest.approx([r / sum(raw) / 2 for r in raw])
    teacher = {"teacher_log_probs": [0.0] * 3, "teacher_entropies": [0.0, 0.25, 9.0]}
    (first, _) = weighted(
        {"type": "certainty_gap", "beta": 2.0}, student_entropies=entropies, **teacher
    )
    assert first == pytest.approx([1 / 6, math.exp(-1.5) / 6, 1 / 6])


def test_a_weight_counts_in_its_steps_only():
    chosen = method(
        "sdpo",
        token_weights=[
            {"type": "only_rows", "until_step": 3},
            {"type": "token_range", "skip_first": 1, "from_step": 2},
        ],
    )
    kinds = [[weight.type for weight in chosen.at_step(step).token_weights] for step in range(4)]
    both = ["only_rows", "token_range"]
    assert kinds == [both[:1], both[:1], both, both[1:]]
    assert chosen.at_step(0).needs == chosen.needs


@pytest.mark.parametrize("stop", [2, 5])
@pytest.mark.parametrize(
    ("kind", "first", "last"),
    [("only_rows", "from_step", "until_step"), ("token_range", "skip_first", "up_to")],
)
def test_a_weight_that_could_never_count_is_refused(kind, first, last, stop):
    with pytest.raises(EpistillError, match=f"{first} is 5 and {last} is {stop}, so no") as said:
        method("sdpo", token_weights=[{"type": kind, first: 5, last: stop}])
    assert "\n" not in str(said.value)
    assert method("sdpo", token_weights=[{"type": kind, first: 5, last: 6}])


def test_a_step_leaves_out_a_weight_whose_time_has_not_come():
    student, teacher = make_tiny_model(0), LiveTeacher(make_tiny_model(1))
    settings = {"temperature": 1.0, "microbatch_tokens": 64}
    late = method("sdpo", token_weights=[{"type": "token_range", "skip_first": 2, "from_step": 5}])
    found = [
        accumulate_gradients(student, teacher, [row()], chosen, progress=Progress(step), **settings)
        for chosen, step in ((late, 4), (late, 5), (method("sdpo", token_weights=()), 5))
    ]
    assert found[0].loss == found[2].loss != found[1].loss
