"""Teachers of a LoRA student: one base, exact deltas."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors import safe_open

from epistill.axes import EmaWeights, FrozenWeights
from epistill.config import Lora, RunConfig, SamplingConfig, StarSearchTask
from epistill.methods import method
from epistill.rollouts.load_model import load_model
from epistill.rollouts.model import with_lora
from epistill.store import RunStore
from epistill.studies.run_arm import run
from epistill.teacher.adapters import EmaDeltaTeacher, lora_layers, weight_delta
from epistill.teacher.weights import make_teacher

IDS = torch.arange(5, 25).unsqueeze(0)


@pytest.fixture
def student(tiny_model):
    torch.manual_seed(0)
    return with_lora(tiny_model, Lora(rank=2, alpha=4.0))


def logits(model):
    with torch.no_grad():
        return model.network(IDS).logits


def stir(model, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in lora_layers(model).values():
            for factor in (*layer.lora_A.values(), *layer.lora_B.values()):
                factor.weight.add_(0.3 * torch.randn(factor.weight.shape, generator=generator))


def test_frozen_is_the_same_network_with_the_adapter_off(student):
    start = logits(student)
    teacher = make_teacher(FrozenWeights(), student)
    stir(student, 1)
    moved = logits(student)
    assert not torch.allclose(moved, start, atol=1e-2)
    with teacher.scoring() as model:
        assert model.network is student.network  # no second copy
        torch.testing.assert_close(logits(model), start)
    torch.testing.assert_close(logits(student), moved)
    assert teacher.state() == {}


def test_an_adapter_that_already_moved_is_refused(student):
    stir(student, 1)
    with pytest.raises(ValueError, match="merge it into the base first"):
        make_teacher(FrozenWeights(), student)


def reference_average(student, rate, steps):
    """Dense weights averaged one by one, and a network that holds them."""
    merged = [copy.deepcopy(student.network).merge_and_unload()]
    average = {n: p.detach().clone() for n, p in merged[0].named_parameters()}
    for step in range(steps):
        stir(student, step)
        now = copy.deepcopy(student.network).merge_and_unload()
        for name, parameter in now.named_parameters():
            average[name].lerp_(parameter.detach(), rate)
    network = copy.deepcopy(merged[0])
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(average[name])
        return network(IDS).logits


def test_ema_averages_the_delta_exactly(student):
    twin = copy.deepcopy(student)
    expected = reference_average(twin, 0.2, 4)
    teacher = make_teacher(EmaWeights(rate=0.2), student)
    assert isinstance(teacher, EmaDeltaTeacher)
    for step in range(4):
        stir(student, step)
        teacher.after_batch()
    with teacher.scoring() as model:
        torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=1e-5)


def test_averaging_the_factors_would_be_another_teacher(student):
    """What TRL 1.16 does: after two steps its delta is a small part of the true average."""
    name, layer = next(iter(lora_layers(student).items()))
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    mean_a, mean_b = a.detach().clone(), b.detach().clone()
    teacher = make_teacher(EmaWeights(rate=0.05), student)
    for _ in range(2):
        with torch.no_grad():
            b.add_(0.1)
        teacher.after_batch()
        mean_a.lerp_(a.detach(), 0.05)
        mean_b.lerp_(b.detach(), 0.05)
    factors = layer.scaling["default"] * (mean_b @ mean_a)
    exact = teacher.state()[f"{name}.delta"]
    torch.testing.assert_close(factors, exact)  # A has not moved: here they agree
    stir(student, 3)
    teacher.after_batch()
    mean_a.lerp_(a.detach(), 0.05)
    mean_b.lerp_(b.detach(), 0.05)
    factors = layer.scaling["default"] * (mean_b @ mean_a)
    exact = teacher.state()[f"{name}.delta"]
    assert (factors - exact).norm() > 0.1 * exact.norm()


def test_state_survives_a_restart(student):
    teacher = make_teacher(EmaWeights(rate=0.5), student)
    stir(student, 1)
    teacher.after_batch()
    state = {name: tensor.clone() for name, tensor in teacher.state().items()}
    again = make_teacher(EmaWeights(rate=0.5), student)
    again.load_state(state)
    with teacher.scoring() as model:
        expected = logits(model)
    with again.scoring() as model:
        torch.testing.assert_close(logits(model), expected)
    with pytest.raises(ValueError, match="does not fit"):
        again.load_state({})


@pytest.mark.parametrize("teacher", [{"type": "frozen"}, {"type": "ema", "rate": 0.1}], ids=str)
def test_a_lora_run_trains_the_adapter_alone_and_its_model_loads_again(teacher, tmp_path):
    config = RunConfig(
        model="lab",
        task=StarSearchTask(arms=4, depth=2),
        method=method("sdpo", teacher=teacher),
        sampling=SamplingConfig(max_new_tokens=30),
        steps=3,
        problems_per_step=4,
        samples_per_problem=4,
        learning_rate=1e-3,
        checkpoint_every=2,
        lora=Lora(rank=4, alpha=8.0),
    )
    run(config, tmp_path)
    rows = RunStore(tmp_path).metrics()
    assert all(row["gradient_norm"] > 0 for row in rows)
    kept: list[str] = []
    for shard in (tmp_path / "checkpoints" / "step-000002").glob("*.safetensors"):
        with safe_open(shard, "pt") as tensors:
            kept += [name for name in tensors.keys() if name.startswith("student/")]  # noqa: SIM118
    assert kept
    assert all("lora_" in name for name in kept)
    loaded = load_model(str(tmp_path / "model"))
    base = load_model("lab")
    with torch.no_grad():
        ids = torch.arange(20).unsqueeze(0)
        gap = (loaded.network(ids).logits - base.network(ids).logits).abs().max()
    assert 0 < gap < 10
    assert any(weight_delta(layer).any() for layer in lora_layers(loaded).values())
