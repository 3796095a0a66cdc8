"""What is known of the rows before a step: entropies of the student as it samples."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from epistill.config import Lora
from epistill.methods import METHODS, method
from epistill.metrics.lexicon import PAPER, load_lexicon
from epistill.rollouts.model import with_lora
from epistill.teacher.weights import LiveTeacher
from epistill.training.pre_step_scores import gather_scores
from tests.helpers.models import make_tiny_model
from tests.helpers.training_rows import logits, make_rows


@pytest.fixture
def student():
    """With an adapter that drops half of its inputs in training, and that is not zero."""
    tiny = make_tiny_model()
    tiny.output_layer().weight.data *= 20  # a fresh head is all but uniform, whatever comes in
    adapted = with_lora(tiny, Lora(rank=2, dropout=0.5))
    for name, parameter in adapted.network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter.data)
    return adapted


def test_entropies_are_those_without_dropout(student):
    asking = next(one for one in METHODS.values() if one.needs.student_entropies)
    rows = [replace(row, teacher_prompt_ids=None) for row in make_rows(student)]
    expected = []
    for row in rows:
        log_p = logits(student, row.prompt_ids, row.completion_ids).detach().log_softmax(-1)
        expected.append(-(log_p.exp() * log_p).sum(-1))
    student.network.train()
    dropped = logits(student, rows[0].prompt_ids, rows[0].completion_ids).log_softmax(-1)
    assert not torch.allclose(-(dropped.exp() * dropped).sum(-1), expected[0], atol=0.01)
    teacher = LiveTeacher(student)
    found = gather_scores(
        rows, asking, student, teacher, None, temperature=1.0, microbatch_tokens=100
    )
    for one, entropies in zip(found, expected, strict=True):
        torch.testing.assert_close(one.student_entropies, entropies, atol=1e-4, rtol=1e-4)
    assert student.network.training
    recorded = replace(rows[0], entropies=(1.0, 2.0, 3.0))  # by the sampler: no other pass
    (one,) = gather_scores(
        [recorded], asking, student, teacher, None, temperature=1.0, microbatch_tokens=100
    )
    assert one.student_entropies.tolist() == [1.0, 2.0, 3.0]


def test_the_probability_of_a_marker_is_that_of_its_first_tokens():
    """Of student and teacher, each under its own prompt, over the whole vocabulary."""
    tiny = make_tiny_model()
    teacher = make_tiny_model(1)
    rows = make_rows(tiny)
    ids = tiny.tokenizer.convert_tokens_to_ids(list(load_lexicon(PAPER).words))
    weights = [{"type": "marker_probability"}, {"type": "marker_probability", "of": "teacher"}]
    found = gather_scores(
        rows, method("sdpo", token_weights=weights), tiny, LiveTeacher(teacher), None,
        temperature=1.0, microbatch_tokens=100,
    )  # fmt: skip
    for row, one in zip(rows, found, strict=True):
        mine = logits(tiny, row.prompt_ids, row.completion_ids).softmax(-1)[:, ids].sum(-1)
        torch.testing.assert_close(one.student_marker_mass, mine.detach(), atol=1e-5, rtol=1e-5)
        if row.teacher_prompt_ids is None:
            assert one.teacher_marker_mass is None
            continue
        theirs = logits(teacher, row.teacher_prompt_ids, row.completion_ids).softmax(-1)
        torch.testing.assert_close(
            one.teacher_marker_mass, theirs[:, ids].sum(-1).detach(), atol=1e-5, rtol=1e-5
        )
