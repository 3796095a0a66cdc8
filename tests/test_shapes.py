"""Closed forms of the advantage shapes, by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from epistill.errors import EpistillError
from epistill.shapes import (
    AscentShape,
    ContrastShape,
    EntropyDirectedShape,
    InputContrastShape,
    RatioShape,
    RelaxedShape,
    ReversedRatioShape,
)
from epistill.training_rows import PreStepScores, Progress, ScoredRow, TrainingRow


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def row(advantage, u, **scores):
    """A response of which the student was certain: the teacher's log-probs are u."""
    made = TrainingRow((1,), (2,) * len(u), (0.0,) * len(u), advantage, (3,), correct=True)
    return ScoredRow(made, PreStepScores(teacher_log_probs=u, **scores))


def shaped(shape, advantage, u, **scores):
    return shape.advantages(row(advantage, u, **scores), Progress())


def test_ratio_advantage():
    u = tensor(0.0, 0.1, 1.0, -1.0)
    shape = RatioShape(strength=0.5, low=0.8, high=1.2)
    up = shaped(shape, 2.0, u)
    assert up.tolist() == pytest.approx([2.0, 1 + math.exp(0.1), 1 + 1.2, 1 + 0.8])
    down = shaped(shape, -2.0, u)
    assert down.tolist() == pytest.approx([-2.0, -1 - math.exp(-0.1), -1 - 0.8, -1 - 1.2])
    assert shaped(RatioShape(strength=0.0), 2.0, u).tolist() == [2.0] * 4
    reversed_ = shaped(ReversedRatioShape(strength=0.5, clip=0.2), 2.0, -u)
    torch.testing.assert_close(reversed_, up)


@given(st.floats(-3, 3), st.lists(st.floats(-20, 20), min_size=1, max_size=6))
def test_ratio_advantage_never_changes_the_sign(advantage, u):
    found = shaped(RatioShape(strength=0.5, low=0.8, high=1.2), advantage, tensor(*u))
    assert (found.sign() == math.copysign(1, advantage) * (advantage != 0)).all()


def test_ascent_advantage():
    found = shaped(AscentShape(strength=0.5), 1.0, tensor(0.0, 2.0, -50.0))
    expected = [1.0, 1 - 0.25 * (math.log1p(math.exp(2.0)) - math.log(2)), 1 + 0.25 * math.log(2)]
    assert found.tolist() == pytest.approx(expected)


def test_what_is_contrasted_is_a_log_of_a_mean():
    """With so wide a tanh and so high a bound, what is added to A is the contrast itself."""
    linear = ContrastShape(tau=1e6, beta=1e6, strength=1.0, bound=100.0, gate=0.0)
    negatives = torch.stack([tensor(0.3, 0.2), tensor(0.1, 0.6)]).log()
    found = shaped(linear, 10.0, tensor(0.6, 0.2).log(), negatives=negatives) - 10.0
    assert found.tolist() == pytest.approx([math.log(0.6 / 0.2), math.log(0.2 / 0.4)])


def test_contrast_advantage_keeps_the_sign_and_gates():
    contrast = {"u": tensor(1.0, -1.0, 1e-6), "negatives": torch.zeros(1, 3).double()}
    shape = ContrastShape(tau=0.02, strength=0.5, bound=2.0, gate=0.02)
    up = shaped(shape, 0.3, **contrast)
    assert up.tolist() == pytest.approx([0.8, 0.0, 0.3])  # 0.3 - 0.5 would change sign
    assert shape.apart(row(0.3, **contrast), Progress()).tolist() == [True, True, False]
    down = shaped(shape, -0.3, **contrast)
    assert down.tolist() == pytest.approx([0.0, -0.8, -0.3])
    none = shaped(shape, 0.0, **contrast)
    assert none.tolist() == [0.0, 0.0, 0.0]


def test_entropy_directed_advantage_repels_where_the_student_is_unsure():
    entropies, u = tensor(0.0, 0.0, 0.0, 0.0, 4.0), tensor(1.0, 1.0, 1.0, 1.0, 1.0)
    shape = EntropyDirectedShape(beta=1.0, quantile=0.8)
    found = shaped(shape, 0.5, u, student_entropies=entropies)
    threshold = torch.quantile(entropies, 0.8).item()
    spread = (4 * 0.8 + 3.2) / 5
    direction = [math.tanh((threshold - h) / spread) for h in (0.0, 4.0)]
    assert found[0].item() == pytest.approx(0.5 + direction[0] * 0.5, abs=1e-6)  # sigmoid(0) = 1/2
    assert found[4].item() == pytest.approx(0.5 + direction[1] * 0.5, abs=1e-6)
    assert found[4] < 0.5 < found[0]


def test_input_contrast_advantage():
    elsewhere = torch.stack([tensor(0.2), tensor(0.4)])
    shape = InputContrastShape(strength=0.5, verifier=0.25)
    found = shaped(shape, 2.0, tensor(1.0), negatives=elsewhere)
    assert found.item() == pytest.approx(0.5 + 1.0 - 0.15)


def test_relaxed_advantage_by_hand():
    """The floor is log(.1)/.9; before the switch what lies below leaves, after it sure tokens do."""
    shape, floor = RelaxedShape(mix=0.1, top=0.5, switch=3), math.log(0.1) / 0.9
    u, entropies = tensor(0.5, -1.0, -9.0, floor), tensor(0.1, 0.2, 0.3, 0.4)
    one = row(0.7, u, student_entropies=entropies)
    memory: dict[str, float] = {}
    shape.remember(memory, [one.scores, PreStepScores(student_entropies=tensor(9.0))])
    early, late = Progress(step=2, memory=memory), Progress(step=3, memory=memory)
    assert shape.apart(one, early).tolist() == [True, True, False, True]
    assert shape.advantages(one, early).tolist() == pytest.approx([0.5, -1.0, 0.0, floor])
    assert shape.apart(one, late).tolist() == [False, False, True, True]
    assert shape.advantages(one, late).tolist() == pytest.approx([0.0, 0.0, floor, floor])


def test_what_a_method_reads_and_does_not_ask_for_is_named():
    with pytest.raises(EpistillError, match=r"read teacher_entropies .* expected its `needs`"):
        _ = row(1.0, tensor(0.0)).teacher_entropies
