"""The step against slow references written out by hand; what it skips; what it logs."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
import torch

from epistill.config import Lora
from epistill.methods import METHODS, method
from epistill.objective import clipped_surrogate, self_distillation_loss, token_log_probs
from epistill.rollouts.model import with_lora
from epistill.teacher.weights import LiveTeacher
from epistill.training.step import accumulate_gradients
from epistill.training_rows import TrainingRow
from tests.helpers.families import tiny_model
from tests.helpers.models import make_tiny_model
from tests.helpers.plain_flash import FLASH, use_plain_flash
from tests.helpers.training_rows import COMPLETIONS, PROMPTS, logits, make_rows


@pytest.fixture
def models():
    student, teacher = make_tiny_model(0), make_tiny_model(1)
    student.network.double()
    teacher.network.double()
    return student, teacher


def gradient_of(model):
    return {n: p.grad.clone() for n, p in model.network.named_parameters() if p.grad is not None}


def run(student, teacher, rows, chosen, tokens=10_000, temperature=1.0):
    student.network.zero_grad(set_to_none=True)
    result = accumulate_gradients(
        student,
        None if teacher is None else LiveTeacher(teacher),
        rows,
        chosen,
        temperature=temperature,
        microbatch_tokens=tokens,
    )
    return result, gradient_of(student)


def reference_distillation(student, teacher, rows, temperature=1.0, **options):
    """One padded [B, T, V] batch through the public loss."""
    chosen = [row for row in rows if row.teacher_prompt_ids is not None]
    width = max(len(row.completion_ids) for row in chosen)
    mine = torch.zeros(len(chosen), width, student.network.config.vocab_size).double()
    theirs = mine.clone()
    ids = torch.zeros(len(chosen), width, dtype=torch.long)
    mask, old = torch.zeros(len(chosen), width), torch.zeros(len(chosen), width).double()
    filled = []
    for i, row in enumerate(chosen):
        n = len(row.completion_ids)
        student_row = logits(student, row.prompt_ids, row.completion_ids) / temperature
        filled.append(torch.cat([student_row, mine[i, n:]]))
        with torch.no_grad():
            theirs[i, :n] = (
                logits(teacher, row.teacher_prompt_ids, row.completion_ids) / temperature
            )
        ids[i, :n] = torch.tensor(row.completion_ids)
        mask[i, :n], old[i, :n] = 1, torch.tensor(row.old_log_probs)
    return self_distillation_loss(
        torch.stack(filled), theirs, ids, mask, old_log_probs=old, **options
    )


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_sdpo_step_equals_the_public_loss(models, temperature):
    student, teacher = models
    rows = make_rows(student)
    result, found = run(student, teacher, rows, METHODS["sdpo"], temperature=temperature)
    student.network.zero_grad(set_to_none=True)
    loss = reference_distillation(
        student, teacher, rows, temperature, alpha=0.5, top_k=100, add_tail=True, is_clip=2.0
    )
    loss.backward()
    assert result.loss == pytest.approx(loss.item(), abs=1e-6)
    for name, gradient in gradient_of(student).items():
        torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-4)


def test_grpo_step_equals_a_token_mean_over_all_rows(models):
    student, _ = models
    rows = make_rows(student, shift=0.3)
    chosen = METHODS["grpo"]
    result, found = run(student, None, rows, chosen)
    student.network.zero_grad(set_to_none=True)
    total = torch.zeros(()).double()
    for row in rows:
        new = token_log_probs(
            logits(student, row.prompt_ids, row.completion_ids), torch.tensor(row.completion_ids)
        )
        old = torch.tensor(row.old_log_probs).double()
        advantage = torch.full_like(new, row.advantage)
        total = total + clipped_surrogate(new, old, advantage, clip_low=0.2, clip_high=0.28).sum()
    loss = total / sum(len(c) for c in COMPLETIONS)
    loss.backward()
    assert result.loss == pytest.approx(loss.item(), abs=1e-6)
    assert result.policy_gradient_loss == pytest.approx(loss.item(), abs=1e-6)
    assert result.clipped_ratio_share == pytest.approx(2 / 10)  # only e^.3 > 1.28 with A > 0
    for name, gradient in gradient_of(student).items():
        torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-4)


def test_blend_is_convex_and_every_part_is_logged(models):
    student, teacher = models
    rows = make_rows(student)
    pure, _ = run(student, teacher, rows, METHODS["sdpo"])
    blended = method("sdpo", blend={"distillation": 0.3})
    result, _ = run(student, teacher, rows, blended)
    verifier, _ = run(student, None, rows, METHODS["grpo"])
    assert result.distillation_nats_per_token == pytest.approx(pure.loss, abs=1e-6)
    assert result.policy_gradient_loss == pytest.approx(verifier.loss, abs=1e-6)
    assert result.loss == pytest.approx(0.3 * pure.loss + 0.7 * verifier.loss, abs=1e-6)


@pytest.mark.parametrize("reduction", ["token_mean", "sequence_mean"])
@pytest.mark.parametrize("name", ["sdpo", "grpo", "blend"])
def test_micro_batches_do_not_change_the_step(models, name, reduction):
    student, teacher = models
    rows = make_rows(student)
    chosen = (
        method("sdpo", blend={"distillation": 0.5}, reduction=reduction)
        if name == "blend"
        else method(name, reduction=reduction)
    )
    whole, expected = run(student, teacher, rows, chosen)
    split, found = run(student, teacher, rows, chosen, tokens=1)
    assert split.loss == pytest.approx(whole.loss, abs=1e-7)
    for key, gradient in expected.items():
        torch.testing.assert_close(found[key], gradient, atol=1e-7, rtol=1e-5)


def test_sequence_mean_weighs_rows_equally(models):
    student, teacher = models
    rows = make_rows(student)
    chosen = method("sdpo", reduction="sequence_mean", token_weights=())
    result, _ = run(student, teacher, rows, chosen)
    means = [
        reference_distillation(student, teacher, [row], alpha=0.5, top_k=100, add_tail=True).item()
        for row in rows
        if row.teacher_prompt_ids is not None
    ]
    assert result.loss == pytest.approx(sum(means) / len(means), abs=1e-6)


class Counting:
    """Counts the rows that pass through a model's decoder."""

    def __init__(self, model):
        self.rows = 0
        model.decoder().register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, module, args, kwargs):
        self.rows += kwargs["input_ids"].shape[0]


def test_rows_without_a_context_cost_no_forward_of_either_model(models):
    student, teacher = models
    rows = make_rows(student)
    mine, theirs = Counting(student), Counting(teacher)
    result, _ = run(student, teacher, rows, METHODS["sdpo"])
    assert (mine.rows, theirs.rows) == (3, 3)
    assert result.distilled_rows == 3


def test_rows_without_an_advantage_cost_no_forward(models):
    student, _ = models
    rows = make_rows(student)
    counted = Counting(student)
    result, _ = run(student, None, rows, METHODS["grpo"])
    assert counted.rows == 3
    assert result.reinforced_rows == 3


def test_a_step_without_any_signal_has_no_gradient(models):
    student, teacher = models
    rows = [
        TrainingRow(p, c, (0.0,) * len(c), 0.0, None)
        for p, c in zip(PROMPTS, COMPLETIONS, strict=True)
    ]
    for name in ("sdpo", "grpo"):
        result, found = run(student, teacher, rows, METHODS[name])
        assert found == {}
        assert result.distillation_nats_per_token is None


def test_sft_rows_minimise_the_negative_log_likelihood(models):
    student, _ = models
    rows = [TrainingRow(p, c, None, 1.0, None) for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]
    result, _ = run(student, None, rows, METHODS["sft-unguided"])
    with torch.no_grad():
        nll = -torch.cat(
            [
                token_log_probs(
                    logits(student, r.prompt_ids, r.completion_ids), torch.tensor(r.completion_ids)
                )
                for r in rows
            ]
        ).mean()
    assert result.loss == pytest.approx(nll.item(), abs=1e-6)


@pytest.mark.parametrize("tempered", [True, False])
@pytest.mark.parametrize("cap", [None, 0.05])
def test_a_capped_divergence_from_a_teacher_that_is_not_tempered(models, tempered, cap):
    """Reverse KL written out with probabilities; temperature .5 divides the student's logits only.

    A position above the cap adds the cap, and no gradient.
    """
    student, teacher = models
    rows, heat = make_rows(student), 0.5
    settings = {"type": "full"}, {"alpha": 1.0, "tempered": tempered, "cap_nats": cap}
    chosen = method("sdpo", divergence={"support": settings[0], **settings[1]}, token_weights=())
    result, found = run(student, teacher, rows, chosen, temperature=heat)
    student.network.zero_grad(set_to_none=True)
    total, tokens, above = torch.zeros(()).double(), 0, 0
    for row in rows:
        if row.teacher_prompt_ids is None:
            continue
        s = (logits(student, row.prompt_ids, row.completion_ids) / heat).softmax(-1)
        with torch.no_grad():
            t = logits(teacher, row.teacher_prompt_ids, row.completion_ids)
            t = (t / heat if tempered else t).softmax(-1)
        for position in (s * (s / t).log()).sum(-1):
            over = cap is not None and position.item() > cap
            total, tokens, above = total + (cap if over else position), tokens + 1, above + over
    (total / tokens).backward()
    assert (0 < above < tokens) == (cap is not None)
    assert result.loss == pytest.approx(total.item() / tokens, abs=1e-6)
    for name, gradient in gradient_of(student).items():
        torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-4)


def test_token_range_limits_distillation(models):
    student, teacher = models
    rows = make_rows(student)[:1]
    chosen = method("sdpo", token_weights=({"type": "token_range", "skip_first": 1, "up_to": 2},))
    result, _ = run(student, teacher, rows, chosen)
    row = rows[0]
    with torch.no_grad():
        mine = logits(student, row.prompt_ids, row.completion_ids)[1:2]
        theirs = logits(teacher, row.teacher_prompt_ids, row.completion_ids)[1:2]
    expected = self_distillation_loss(
        mine[None], theirs[None], torch.tensor([[21]]), torch.ones(1, 1),
        alpha=0.5, top_k=100, add_tail=True,
    )  # fmt: skip
    assert result.loss == pytest.approx(expected.item(), abs=1e-6)


def test_padding_share_counts_only_padding(models):
    student, teacher = models
    result, _ = run(student, teacher, make_rows(student), METHODS["sdpo"], tokens=1)
    assert result.padding_share == pytest.approx(0.0)


@pytest.mark.parametrize("attention", ["sdpa", "eager", FLASH])
@pytest.mark.parametrize("trains", ["weights", "adapter", "adapter, checkpointing"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma3_text", "mistral", "olmo2"])
def test_a_step_of_packed_rows_is_that_of_padded_rows(
    family, trains, attention, lab_model, monkeypatch
):
    """Loss, gradients and every number, with windows shorter than rows and with shared prompts."""
    use_plain_flash(monkeypatch)
    student = tiny_model(family, lab_model.tokenizer, attn_implementation=attention)
    if trains != "weights":
        student = with_lora(student, Lora(rank=2))
        for name, weight in student.network.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, 0, 0.1)
    student.network.double().train()
    if "checkpointing" in trains:
        student.network.gradient_checkpointing_enable({"use_reentrant": False})
    teacher = tiny_model(family, lab_model.tokenizer, attn_implementation=attention)
    teacher.network.double()
    rows = make_rows(student)
    rows = [*rows, replace(rows[0], completion_ids=tuple(range(20, 36)), old_log_probs=None)]
    chosen = method("sdpo", blend={"distillation": 0.5})
    read = []
    student.decoder().register_forward_pre_hook(
        lambda module, args, given: read.append(given["input_ids"].shape), with_kwargs=True
    )
    found = {}
    for student.packs in (False, True):
        teacher.packs = student.packs
        read.clear()
        found[student.packs] = *run(student, teacher, rows, chosen, tokens=24), list(read)
    (padded, expected, _), (packed, gradients, shapes) = found[False], found[True]
    in_float32 = attention == "eager" or family == "gemma3_text"  # transformers' sums, of any type
    near = {"rel": 1e-5 if in_float32 else 1e-9, "abs": 1e-12}
    numbers, others = ({n: v for n, v in asdict(one).items() if v} for one in (padded, packed))
    assert numbers.pop("padding_share") > 0
    assert others == pytest.approx(numbers, **near)  # and no padding_share
    assert [height for height, _ in shapes] == [1] * len(shapes)
    assert sum(width for _, width in shapes) == packed.student_tokens
    assert max(width for _, width in shapes) <= 24
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        gap = (gradient - expected[name]).norm() / expected[name].norm().clamp(min=1e-6)
        assert gap < near["rel"], name
