"""TRL 1.16 as an oracle: equal where it agrees with the official code; each difference shown.

TRL's methods are called unbound on a stand-in for the trainer, so that its own code runs on one
identical batch. docs/methods.md lists the differences with the names of these tests.
"""

from __future__ import annotations

import contextlib
import re
from types import SimpleNamespace

import pytest
import torch

from epistill.axes import EmaWeights, FrozenWeights
from epistill.config import Lora
from epistill.methods import METHODS, method
from epistill.objective.loss import distillation_nats, self_distillation_loss
from epistill.rollouts.model import with_lora
from epistill.teacher.adapters import lora_layers, weight_delta
from epistill.teacher.weights import CopiedTeacher, make_teacher
from epistill.thinking import split_thinking
from epistill.training.step import accumulate_gradients
from epistill.training_rows import TrainingRow
from tests.helpers.models import make_tiny_model

trl = pytest.importorskip("trl")
from accelerate import Accelerator  # noqa: E402
from trl.experimental.sdft.loss_utils import (  # noqa: E402
    compute_full_logit_self_distillation_loss,
    compute_topk_self_distillation_loss,
)
from trl.experimental.sdpo import SDPOConfig  # noqa: E402
from trl.experimental.sdpo.sdpo_trainer import DistillationLogits, SDPOTrainer  # noqa: E402
from trl.experimental.sdpo.teacher_sync import (  # noqa: E402
    PEFTAdapterEMACallback,
    SyncTeacherModelCallback,
)

B, T, V = 8, 6, 30


def stand_in(logged=None, **settings):
    """What TRL's loss methods read of a trainer."""
    settings = {
        "distillation_mode": "topk_logits", "distillation_topk": 5, "distillation_alpha": 0.5,
        "distillation_add_tail": True, "distillation_is_clip": 2.0, **settings,
    }  # fmt: skip
    logged = [] if logged is None else logged
    return SimpleNamespace(
        args=SimpleNamespace(**settings),
        accelerator=SimpleNamespace(gather=lambda x: x),
        _log_self_distillation_metric=lambda mode, value: logged.append(value),
        _get_teacher_context_for_self_distillation=contextlib.nullcontext,
        _forward_logits=lambda **kw: SDPOTrainer._forward_logits(
            SimpleNamespace(model_kwarg_keys=("logits_to_keep",), temperature=1.0), **kw
        ),
    )


def batch(lengths, active, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64) * 2

    mask = (torch.arange(T) < torch.tensor(lengths)[:, None]).double()
    return SimpleNamespace(
        student=draw(B, T, V).requires_grad_(),
        teacher=draw(B, T, V),
        ids=torch.randint(0, V, (B, T), generator=generator),
        old=draw(B, T) - 2,
        mask=mask,
        loss_mask=mask * torch.tensor(active).double()[:, None],
    )


def trl_loss(given, logged=None, **settings):
    logits = DistillationLogits(
        completion_ids=given.ids, completion_mask=given.mask, loss_mask=given.loss_mask,
        student_logits=given.student, teacher_logits=given.teacher,
    )  # fmt: skip
    model = SimpleNamespace(training=True)
    return SDPOTrainer._compute_self_distillation_loss(
        stand_in(logged, **settings), model, {"old_per_token_logps": given.old}, logits
    )


def our_loss(given, **options):
    options = {"alpha": 0.5, "top_k": 5, "add_tail": True, "is_clip": 2.0, **options}
    return self_distillation_loss(
        given.student, given.teacher, given.ids, given.loss_mask, old_log_probs=given.old, **options
    )


AGREE = [
    ({}, {}),
    ({"distillation_alpha": 0.0}, {"alpha": 0.0}),
    ({"distillation_add_tail": False}, {"add_tail": False}),
    ({"distillation_mode": "full_logits"}, {"top_k": None, "add_tail": False}),
    (
        {"distillation_mode": "sampled_token", "distillation_alpha": 1.0},
        {"alpha": 1.0, "top_k": None, "add_tail": False, "sampled_token": True},
    ),
    ({"distillation_is_clip": None}, {"is_clip": None}),
]


@pytest.mark.parametrize(("theirs", "ours"), AGREE, ids=str)
def test_equal_on_a_full_batch_of_equal_lengths(theirs, ours):
    given = batch([T] * B, [1] * B)
    expected, found = trl_loss(given, **theirs), our_loss(given, **ours)
    assert found.item() == pytest.approx(expected.item(), abs=1e-6)
    gradients = [torch.autograd.grad(loss, given.student)[0] for loss in (expected, found)]
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-7, rtol=1e-5)


def test_a_whole_step_equals_trl_on_such_a_batch():
    """Forward passes included: the same networks, prompts and completions through both."""
    student, teacher = make_tiny_model(0), make_tiny_model(1)
    student.network.double()
    teacher.network.double()
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(5, 60, (B, 7), generator=generator)
    reprompts = torch.randint(5, 60, (B, 11), generator=generator)
    ids = torch.randint(5, 60, (B, T), generator=generator)
    ones = {n: torch.ones_like(x) for n, x in (("p", prompts), ("r", reprompts), ("c", ids))}
    inputs = {
        "prompt_ids": prompts, "prompt_mask": ones["p"], "completion_ids": ids,
        "completion_mask": ones["c"],
        "teacher_input_ids": torch.cat([reprompts, ids], 1),
        "teacher_attention_mask": torch.cat([ones["r"], ones["c"]], 1),
    }  # fmt: skip
    trainer = stand_in(distillation_topk=20, distillation_is_clip=None)
    logits = SDPOTrainer._compute_teacher_student_logits(
        trainer, student.network, teacher.network, inputs
    )
    expected = SDPOTrainer._compute_self_distillation_loss(
        trainer, SimpleNamespace(training=True), inputs, logits
    )
    expected.backward()
    theirs = {n: p.grad.clone() for n, p in student.network.named_parameters()}
    student.network.zero_grad(set_to_none=True)
    rows = [
        TrainingRow(tuple(p), tuple(c), (0.0,) * T, 0.0, tuple(r))
        for p, c, r in zip(prompts.tolist(), ids.tolist(), reprompts.tolist(), strict=True)
    ]
    chosen = method("sdpo", token_weights=(), divergence={"support": {"k": 20}})
    result = accumulate_gradients(
        student, CopiedTeacher(teacher), rows, chosen, temperature=1.0, microbatch_tokens=10_000
    )
    assert result.loss == pytest.approx(expected.item(), abs=1e-6)
    for name, parameter in student.network.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs[name], atol=1e-6, rtol=1e-4)


# ---- where TRL differs from the official code, or from what it says


def test_trl_dilutes_the_loss_with_rows_that_have_no_context():
    given = batch([T] * B, [1, 1] + [0] * (B - 2))
    ours, theirs = our_loss(given), trl_loss(given)
    assert theirs.item() == pytest.approx(ours.item() * 2 / B)


def test_trl_means_over_sequences_and_logs_another_number():
    logged = []
    given = batch([1, 2, 3, 4, 5, 6, 6, 6], [1] * B)
    theirs = trl_loss(given, logged)
    assert abs(theirs.item() - our_loss(given).item()) > 1e-3
    assert logged[0] == pytest.approx(our_loss(given).item(), abs=1e-6)
    assert logged[0] != pytest.approx(theirs.item(), abs=1e-3)


def test_trl_runs_its_teacher_on_rows_without_context(tiny_model):
    seen = []
    network = tiny_model.network
    network.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    ids = torch.randint(5, 60, (B, 4))
    inputs = {
        "prompt_ids": ids, "prompt_mask": torch.ones_like(ids), "completion_ids": ids,
        "completion_mask": torch.ones_like(ids), "teacher_input_ids": ids.repeat(1, 2),
        "teacher_attention_mask": torch.ones(B, 8, dtype=torch.long),
        "self_distillation_mask": torch.zeros(B),
    }  # fmt: skip
    SDPOTrainer._compute_teacher_student_logits(stand_in(), network, network, inputs)
    assert seen == [B, B]
    rows = [TrainingRow(tuple(r), tuple(r), (0.0,) * 4, 0.0, None) for r in ids.tolist()]
    seen.clear()
    accumulate_gradients(
        tiny_model, CopiedTeacher(tiny_model), rows, METHODS["sdpo"],
        temperature=1.0, microbatch_tokens=999,
    )  # fmt: skip
    assert seen == []


def test_trl_keeps_the_thinking_where_the_template_opened_the_tag():
    text = "first I try 13, hmm </think> answer 18"
    theirs = re.sub(r"<think>.*?</think>", "", text, flags=re.DOTALL).strip()  # its line 283
    assert "hmm" in theirs
    assert split_thinking(text).answer == "answer 18"


def test_trl_crashes_where_top_k_exceeds_the_vocabulary():
    given = batch([T] * B, [1] * B)
    with pytest.raises(RuntimeError, match="out of range"):
        compute_topk_self_distillation_loss(
            given.student, given.teacher,
            distillation_topk=V + 1, distillation_alpha=0.5, distillation_add_tail=True,
        )  # fmt: skip
    full = our_loss(given, top_k=None, add_tail=False)
    assert our_loss(given, top_k=V + 1).item() == pytest.approx(full.item())


def test_trl_has_negative_divergences_in_bfloat16():
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(256, 1000, generator=generator)
    teacher = (student + 0.01 * torch.randn(256, 1000, generator=generator)).bfloat16()
    student = student.bfloat16()
    theirs = compute_full_logit_self_distillation_loss(student, teacher, distillation_alpha=0.5)
    ours = distillation_nats(student, teacher, torch.zeros(256, dtype=torch.long), alpha=0.5)
    assert (theirs < 0).float().mean() > 0.5
    assert ours.min() > -1e-6


def test_trl_ema_stalls_in_bfloat16(tiny_model):
    Accelerator(cpu=True)  # its callback asks the global state
    tiny_model.network.bfloat16()
    ours, theirs = (
        make_teacher(EmaWeights(rate=0.05), tiny_model),
        make_tiny_model().network.bfloat16(),
    )
    callback = SyncTeacherModelCallback(theirs)
    name = "model.norm.weight"
    start = theirs.get_parameter(name).detach().float().clone()
    with torch.no_grad():
        for parameter in tiny_model.network.parameters():
            parameter.add_(0.05)
    gap = (tiny_model.network.get_parameter(name).float() - start).mean()
    args = SimpleNamespace(teacher_sync_steps=1, teacher_update_rate=0.05)
    for step in range(100):
        state = SimpleNamespace(global_step=step)
        callback.on_step_end(args, state, None, model=tiny_model.network)
        ours.after_batch()
    closed = (theirs.get_parameter(name).float() - start).mean() / gap
    assert closed < 0.5
    assert (ours.state()[name] - start).mean() / gap > 0.98


def test_trl_builds_its_teacher_from_the_path_not_from_memory(lab_model):
    import copy

    student = copy.deepcopy(lab_model)
    with torch.no_grad():
        for parameter in student.network.parameters():
            parameter.mul_(1.1)
    trainer = SimpleNamespace(
        args=SimpleNamespace(
            teacher_model_kind="base", model_init_kwargs=None, trust_remote_code=False,
            distributed_state=SimpleNamespace(distributed_type="NO"),
        ),
        model=student.network, is_deepspeed_enabled=False, is_fsdp_enabled=False,
        accelerator=SimpleNamespace(prepare_model=lambda model, **_: model),
        _use_peft_ema_teacher_adapter=lambda: False,
    )  # fmt: skip
    SDPOTrainer._setup_teacher_model(trainer)
    ids = torch.arange(12).unsqueeze(0)
    with torch.no_grad(), make_teacher(FrozenWeights(), student).scoring() as ours:
        at_start = student.network(ids).logits
        assert (trainer.teacher_model(ids).logits - at_start).abs().max() > 0.1
        assert torch.equal(ours.network(ids).logits, at_start)


def test_trl_averages_the_factors_of_a_lora(tiny_model):
    """The delta of its teacher after five steps, beside the true average of the deltas."""
    torch.manual_seed(0)
    student = with_lora(tiny_model, Lora(rank=2, alpha=4.0, targets=("up_proj",)))
    ours = make_teacher(EmaWeights(rate=0.05), student)
    callback = PEFTAdapterEMACallback(student.network, update_rate=0.05)
    ((name, layer),) = lora_layers(student).items()
    start = weight_delta(layer).detach().clone()
    for step in range(5):
        with torch.no_grad():
            layer.lora_B["default"].weight.add_(0.1)
        ours.after_batch()
        callback.on_step_end(None, SimpleNamespace(global_step=step), None)
    theirs = layer.get_delta_weight("teacher")
    exact = ours.state()[f"{name}.delta"]
    assert not start.any()
    assert theirs.norm() < 0.5 * exact.norm()


@pytest.mark.parametrize("setting", [{"teacher_model_kind": "trust-region"}, {"beta": 0.3}])
def test_trl_accepts_settings_that_do_nothing(setting, tmp_path):
    config = SDPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, **setting)
    assert all(getattr(config, name) == value for name, value in setting.items())
    from epistill.errors import EpistillError

    ours = {"teacher": {"type": "trust-region"}} if "teacher_model_kind" in setting else setting
    with pytest.raises(EpistillError):
        method("sdpo", **ours)
