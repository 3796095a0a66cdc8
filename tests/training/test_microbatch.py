"""The micro-batch that follows from memory: activations per token, free memory, one number a run."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from epistill.config import Lora, RunConfig
from epistill.errors import EpistillError
from epistill.inputs import load_run_config
from epistill.rollouts.model import with_lora
from epistill.studies import run_arm
from epistill.studies.hardware import Architecture
from epistill.training import microbatch
from epistill.training.microbatch import activation_bytes_per_token, fitting_microbatch_tokens
from epistill.world import World
from tests.helpers.models import make_tiny_model


def settings(**changes) -> RunConfig:
    named = {"model": "lab", "task": "star-search", "method": "grpo"}
    return load_run_config(None, {**named, "sampling": {"max_new_tokens": 64}, **changes})


@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_are_those_of_the_plans_formula(lab_model, checkpointing):
    config = lab_model.network.config
    names = Architecture.model_fields.keys() & set(dir(config))
    shape = Architecture(**{name: getattr(config, name) for name in names}, source="its config")
    found = activation_bytes_per_token(lab_model, checkpointing=checkpointing)
    expected = shape.activation_bytes(1, 4, checkpointing=checkpointing)
    assert expected <= found < 1.3 * expected  # the last norm and the rotary tables are not in it


def test_it_is_the_largest_power_of_two_whose_activations_fit(lab_model, monkeypatch):
    per_token = activation_bytes_per_token(lab_model)
    state = 3 * 4 * sum(p.numel() for p in lab_model.network.parameters())

    def fitting(tokens: float) -> int:
        monkeypatch.setattr(
            microbatch, "free_bytes", lambda device: int(state + 2 * tokens * per_token) + 1
        )
        return fitting_microbatch_tokens(settings(), lab_model, World())

    wanted = (0, 600, 1023, 1024, 5000, 1e9)
    assert [fitting(tokens) for tokens in wanted] == [512, 512, 512, 1024, 4096, 16_384]


def test_an_adapters_state_is_small_and_its_base_is_no_activation(lab_model):
    adapted = with_lora(make_tiny_model(), Lora(rank=2))
    frozen = sum(p.numel() * 4 for p in adapted.network.parameters() if not p.requires_grad)
    state = microbatch._state_bytes(settings(lora_rank=2), adapted, World())
    trained = sum(p.numel() * 4 for p in adapted.network.parameters() if p.requires_grad)
    assert (state, trained < frozen) == (3 * trained, True)
    on_gpu = settings(lora_rank=2).model_copy(update={"device": "cuda"})  # the weights are not yet
    assert microbatch._state_bytes(on_gpu, adapted, World()) == 4 * trained + frozen


def test_the_probe_lets_the_weights_go():
    """What it kept stayed for the whole run, beside the sharded copy or the teacher's."""
    model = make_tiny_model()
    weights = [weakref.ref(parameter) for parameter in model.network.parameters()]
    assert activation_bytes_per_token(model) > 0
    del model
    gc.collect()
    assert [weight() for weight in weights] == [None] * len(weights)


def test_a_container_has_less_than_its_machine(tmp_path, monkeypatch):
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:  4096 kB\n", encoding="ascii")
    monkeypatch.setattr(microbatch, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(microbatch, "CGROUP", tmp_path)
    monkeypatch.setattr(microbatch.os, "cpu_count", lambda: 1)
    free = microbatch.free_bytes(torch.device("cpu"))
    assert free == 4096 * 1024
    for name, text in (
        ("max", "2000000\n"),
        ("current", "900000\n"),
        ("stat", "inactive_file 5\n"),
    ):
        (tmp_path / f"memory.{name}").write_text(text, encoding="ascii")
    assert microbatch.free_bytes(torch.device("cpu")) == 1_100_005
    (tmp_path / "memory.max").write_text("max\n", encoding="ascii")
    assert microbatch.free_bytes(torch.device("cpu")) == free


def test_what_was_found_once_stays(tmp_path, monkeypatch):
    """A resumed run takes the number of its beginning, whatever is free now; another is refused."""
    found = iter((2048, 512))
    monkeypatch.setattr(run_arm, "fitting_microbatch_tokens", lambda *_: next(found))
    used = []
    monkeypatch.setattr(run_arm, "train_student", lambda config, *_, **__: used.append(config))
    monkeypatch.setattr(run_arm, "_finish", lambda *_, **__: None)  # as if it was killed
    for _ in range(2):
        store = run_arm.run(settings(), tmp_path)
        (tmp_path / "metrics.jsonl").write_text("", encoding="utf-8")
    assert [config.microbatch_tokens for config in used] == [2048, 2048]
    assert store.config["microbatch_tokens"] == 2048
    with pytest.raises(EpistillError, match="differs in microbatch_tokens"):
        run_arm.run(settings(microbatch_tokens=999), tmp_path)
