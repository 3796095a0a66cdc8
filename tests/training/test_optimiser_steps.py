"""What counts rollout batches and what counts optimiser steps; at which temperature losses are."""

from __future__ import annotations

import pytest
import torch

from epistill.config import RunConfig
from epistill.methods import method
from epistill.rollouts.load_model import load_model
from epistill.store import RunStore
from epistill.studies.run_arm import run
from epistill.tasks.coverage import make_curriculum
from epistill.tasks.grading import Grader
from epistill.training.batches import on_policy_batch
from epistill.training.optimiser_steps import gradients_of_step, optimiser_steps
from epistill.training.train_state import make_train_state
from epistill.training_rows import TrainingRow
from epistill.world import World
from tests.helpers.models import make_tiny_model
from tests.helpers.plain_flash import FLASH, use_plain_flash
from tests.helpers.training_rows import COMPLETIONS, PROMPTS, logits


def configuration(name, temperature=1.0, settings=(), **changes):
    return RunConfig.model_validate(
        {
            "model": "lab",
            "task": {"type": "star_search", "arms": 3, "depth": 2},
            "method": method(name, **changes),
            "sampling": {"max_new_tokens": 24, "temperature": temperature},
            "steps": 2, "problems_per_step": 2, "samples_per_problem": 4,
            "updates_per_batch": 2, "learning_rate": 1e-3, **dict(settings),
        }
    )  # fmt: skip


def weights(model):
    return {n: p.detach().clone() for n, p in model.network.named_parameters()}


@pytest.mark.parametrize(
    ("teacher", "rates"),
    [({"type": "ema", "rate": 0.25}, (0.25, 0.25)), ({"type": "snapshot", "every": 2}, (0.0, 1.0))],
)
def test_a_teacher_moves_once_per_batch_of_two_optimiser_steps(teacher, rates, tmp_path):
    config = configuration("sdpo", teacher=teacher, context={"source": "solution"})
    student = load_model("lab")
    state = make_train_state(config, student, World())
    curriculum = make_curriculum(config.task, config.coverage, config.seed)
    expected = weights(student)
    with Grader() as grader:
        for step, rate in enumerate(rates):
            batch = on_policy_batch(student, state.teacher, config, curriculum, grader, step)
            optimiser_steps(config, RunStore(tmp_path), state, batch, step, World())
            moved = weights(student)
            expected = {n: (1 - rate) * p + rate * moved[n] for n, p in expected.items()}
    assert state.teacher is not None
    with state.teacher.scoring() as model:
        for name, found in weights(model).items():
            torch.testing.assert_close(found, expected[name], atol=1e-6, rtol=1e-5)
    taken = {int(one["step"]) for one in state.optimizer.state.values()}
    assert taken == {4}  # two of each batch


@pytest.mark.parametrize(("name", "heat"), [("sft-unguided", 1.0), ("grpo", 0.5)])
def test_a_likelihood_is_at_temperature_one_and_a_ratio_at_the_samplings(name, heat):
    """Of rows that nobody's policy sampled, both losses are -A log p: at which temperature?"""
    student = make_tiny_model(0)
    config = configuration(name, temperature=0.5)
    rows = [TrainingRow(p, c, None, 1.0, None) for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]
    state = make_train_state(config, student, World())
    found = gradients_of_step(config, state, rows, None, 0)
    nll = []
    for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True):
        with torch.no_grad():
            probabilities = (logits(student, prompt, completion).double() / heat).softmax(-1)
        nll += [-probabilities[i, token].log() for i, token in enumerate(completion)]
    assert found.loss == pytest.approx(float(torch.stack(nll).mean()), abs=1e-5)


@pytest.mark.parametrize("trained", [{"precision": "bf16"}, {"dtype": "bfloat16", "lora": {}}])
def test_a_run_with_attention_of_variable_lengths_pads_nothing(trained, tmp_path, monkeypatch):
    use_plain_flash(monkeypatch)
    settings = {**trained, "attention": FLASH, "activation_checkpointing": True}
    teacher = {"type": "ema", "rate": 0.25}
    run(configuration("sdpo", teacher=teacher, settings=settings), tmp_path)
    rows = RunStore(tmp_path).metrics()
    assert [row["padding_share"] for row in rows] == [0, 0]
    assert all(row["gradient_norm"] > 0 for row in rows)
