"""The official loss, reproduced: values and gradients computed with the authors' code in float64."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from epistill.objective import self_distillation_loss

CASES = json.loads((Path(__file__).parents[1] / "data" / "sdpo_loss_golden.json").read_text())


@pytest.mark.parametrize("case", CASES, ids=[str(case["seed"]) for case in CASES])
def test_loss_and_gradient_equal_the_official_code(case):
    def tensor(name):
        return torch.tensor(case[name], dtype=torch.float64)

    student = tensor("student_logits").requires_grad_()
    loss = self_distillation_loss(
        student,
        tensor("teacher_logits"),
        torch.tensor(case["token_ids"]),
        tensor("response_mask") * tensor("distill_mask")[:, None],
        alpha=case["alpha"],
        top_k=case["top_k"],
        add_tail=case["add_tail"],
        sampled_token=case["sampled_token"],
        is_clip=case["is_clip"],
        old_log_probs=tensor("old_log_probs"),
    )
    (gradient,) = torch.autograd.grad(loss, student)
    assert abs(loss.item() - case["loss"]) < 1e-10
    assert (gradient - tensor("grad_student_logits")).abs().max() < 1e-10


def test_the_golden_cases_cover_every_option():
    assert {case["alpha"] for case in CASES} == {0.0, 0.3, 0.5, 1.0}
    assert {(case["top_k"], case["add_tail"]) for case in CASES} == {
        (None, False),
        (4, True),
        (4, False),
    }
    assert {case["is_clip"] for case in CASES} == {None, 2.0}
    assert {case["sampled_token"] for case in CASES} == {True, False}
