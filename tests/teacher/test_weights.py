from __future__ import annotations

import pytest
import torch

from epistill.axes import EmaWeights, FrozenWeights, LiveWeights, SnapshotWeights
from epistill.teacher.weights import make_teacher
from tests.helpers.models import make_tiny_model


def change(model, by=0.1):
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.add_(by)


def weights(model):
    return {n: p.detach().clone() for n, p in model.network.named_parameters()}


def weights_of(teacher):
    with teacher.scoring() as model:
        return weights(model)


def test_copies_come_from_memory_not_from_a_path(tiny_model):
    change(tiny_model)  # no file has these weights
    for setting in (FrozenWeights(), EmaWeights()):
        teacher = make_teacher(setting, tiny_model)
        for name, tensor in weights_of(teacher).items():
            assert torch.equal(tensor, weights(tiny_model)[name])


def test_frozen_stays_live_follows(tiny_model):
    frozen = make_teacher(FrozenWeights(), tiny_model)
    live = make_teacher(LiveWeights(), tiny_model)
    before = weights(tiny_model)
    change(tiny_model)
    for teacher in (frozen, live):
        teacher.after_batch()
    assert all(torch.equal(t, before[n]) for n, t in weights_of(frozen).items())
    with live.scoring() as model:
        assert model is tiny_model


def test_ema_closed_form(tiny_model):
    teacher = make_teacher(EmaWeights(rate=0.25), tiny_model)
    before = weights(tiny_model)
    change(tiny_model, 1.0)
    for _ in range(3):
        teacher.after_batch()
    for name, tensor in weights_of(teacher).items():
        torch.testing.assert_close(tensor, before[name] + 1 - 0.75**3)


def test_ema_of_a_bfloat16_student_does_not_stall(tiny_model):
    tiny_model.network.bfloat16()
    teacher = make_teacher(EmaWeights(rate=0.05), tiny_model)
    start = weights(tiny_model)
    change(tiny_model, 0.01)
    for _ in range(100):
        teacher.after_batch()
    name = "model.layers.0.mlp.up_proj.weight"
    gap = (weights(tiny_model)[name].float() - start[name].float()).mean()
    closed = (teacher.state()[name] - start[name].float()).mean() / gap
    assert closed == pytest.approx(1 - 0.95**100, abs=0.01)
    assert weights_of(teacher)[name].dtype == torch.bfloat16


@pytest.mark.parametrize(
    "setting", [FrozenWeights(), EmaWeights(rate=0.5), SnapshotWeights(every=2)], ids=str
)
def test_state_survives_a_restart(setting, tiny_model):
    teacher = make_teacher(setting, tiny_model)
    change(tiny_model)
    teacher.after_batch()
    state = {name: tensor.clone() for name, tensor in teacher.state().items()}
    restarted = make_teacher(setting, tiny_model)  # made from the changed student, as on resume
    restarted.load_state(state)
    for name, tensor in weights_of(restarted).items():
        torch.testing.assert_close(tensor, weights_of(teacher)[name], rtol=0, atol=0)


def test_snapshot_follows_every_so_many_steps(tiny_model):
    teacher = make_teacher(SnapshotWeights(every=2), tiny_model)
    start = weights(tiny_model)
    name = "model.norm.weight"
    seen = []
    for _ in range(4):
        change(tiny_model, 1.0)
        teacher.after_batch()
        seen.append(round((weights_of(teacher)[name] - start[name]).mean().item()))
    assert seen == [0, 2, 2, 4]


def test_a_state_of_another_model_is_refused(tiny_model):
    teacher = make_teacher(EmaWeights(), tiny_model)
    other = make_teacher(EmaWeights(rate=0.05), make_tiny_model(layers=2))
    with pytest.raises(ValueError, match="does not fit"):
        teacher.load_state(other.state())


def test_the_teacher_is_never_trained(tiny_model):
    teacher = make_teacher(FrozenWeights(), tiny_model)
    with teacher.scoring() as model:
        assert not any(p.requires_grad for p in model.network.parameters())
    assert all(p.requires_grad for p in tiny_model.network.parameters())
