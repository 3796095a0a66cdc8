"""The loss in TRL's own trainers, on a random model: equal to epistill's step, gradient included."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from epistill.axes import LiveWeights
from epistill.errors import EpistillError
from epistill.methods import method
from epistill.teacher.weights import make_teacher
from epistill.training.step import accumulate_gradients
from epistill.training_rows import TrainingRow
from tests.helpers.models import make_tiny_model
from tests.helpers.trl_steps import SDPO, one_step, rows_of
from tests.helpers.two_processes import on_two

pytest.importorskip("trl")
from trl.experimental.sdft import SDFTConfig, SDFTTrainer
from trl.experimental.sdpo import SDPOConfig, SDPOTrainer

AS_SDPO = {"token_weights": (), "divergence": {"support": {"k": 20}}}
HEAD = "model.embed_tokens.weight"


def our_step(rows, model, name, **changes):
    chosen = method(name, teacher=LiveWeights(), **changes)
    teacher = make_teacher(LiveWeights(), model)
    return accumulate_gradients(model, teacher, rows, chosen, temperature=1.0, microbatch_tokens=10_000)  # fmt: skip


def assert_same_gradients(model, gradients):
    for name, parameter in model.network.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("clip", [None, 2.0])
def test_a_step_of_trls_sdpo_has_epistills_loss_and_gradient(tmp_path, clip):
    """Two micro-batches, unequal lengths, a group without a context."""
    trainer, gradients, model = one_step(SDPOTrainer, SDPOConfig, tmp_path, **SDPO, distillation_is_clip=clip)  # fmt: skip
    masks = [batch["self_distillation_mask"].sum().item() for batch in trainer._buffered_inputs]
    assert min(masks) == 0 < max(masks)
    result = our_step(rows_of(trainer), model, "sdpo", **AS_SDPO)
    assert_same_gradients(model, gradients)
    logged = trainer.state.log_history[0]["self_distillation/distillation_loss"]
    assert logged == pytest.approx(result.loss, rel=1e-4)


def test_trls_own_loss_is_another_one_there(tmp_path):
    """So that the test above cannot pass because the two agree on its batch anyway."""
    _, theirs, _ = one_step(SDPOTrainer, SDPOConfig, tmp_path, ours=False, **SDPO)
    _, ours, _ = one_step(SDPOTrainer, SDPOConfig, tmp_path, **SDPO)
    assert not torch.allclose(ours[HEAD], theirs[HEAD], atol=1e-6, rtol=1e-2)


def test_a_step_of_trls_sdft_too(tmp_path):
    settings = {"distillation_mode": "full_logits", "distillation_alpha": 0.0, "num_loss_tokens_to_skip": 3}  # fmt: skip
    trainer, gradients, model = one_step(SDFTTrainer, SDFTConfig, tmp_path, **settings)
    result = our_step(rows_of(trainer), model, "sdft")
    assert_same_gradients(model, gradients)
    logged = trainer.state.log_history[0]["self_distillation/distillation_loss"]
    assert logged == pytest.approx(result.loss, rel=1e-4)


def test_two_processes_take_one_step(tmp_path):
    """One of them has nothing to distil; the gradient is that of all their rows together."""
    on_two("trl_step", tmp_path)
    found = [load_file(tmp_path / f"gradients-{rank}.safetensors") for rank in (0, 1)]
    rows = [row for rank in (0, 1) for row in json.loads((tmp_path / f"rows-{rank}.json").read_text())]  # fmt: skip
    rows = [TrainingRow(**{n: tuple(v) if isinstance(v, list) else v for n, v in row.items()}) for row in rows]  # fmt: skip
    assert len(rows) == 16
    assert 0 < sum(row.teacher_prompt_ids is not None for row in rows) < 8
    model = make_tiny_model()
    our_step(rows, model, "sdpo", **AS_SDPO)
    for gradients in found:
        assert_same_gradients(model, gradients)


def test_a_step_that_spans_several_draws_is_refused(tmp_path):
    with pytest.raises(EpistillError, match="steps_per_generation is 1"):
        one_step(SDPOTrainer, SDPOConfig, tmp_path, steps_per_generation=1)
