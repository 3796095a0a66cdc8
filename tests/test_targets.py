"""Closed forms of the distillation targets, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from epistill.targets import PurifiedTarget


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def purified(base, teacher, reference, **settings):
    seen = {"start": base, "teacher": teacher, "context_alone": reference}
    return PurifiedTarget(**settings).logits(seen).softmax(-1)


def test_purified_target_by_hand():
    base, teacher, reference = (
        tensor(*p).log() for p in ((0.5, 0.3, 0.2), (0.7, 0.2, 0.1), (0.4, 0.4, 0.2))
    )
    gap = [math.log(0.7 / 0.4), math.log(0.2 / 0.4), math.log(0.1 / 0.2)]
    mean = sum(gap) / 3
    scores = [
        p * math.exp(2.0 * math.tanh((g - mean) / 2.0) / 0.5)
        for p, g in zip((0.5, 0.3, 0.2), gap, strict=True)
    ]
    found = purified(base, teacher, reference, beta=0.5, bound=2.0)
    assert found.tolist() == pytest.approx([s / sum(scores) for s in scores])


def test_purified_target_is_the_base_where_the_context_alone_says_it_all():
    base, teacher = tensor(1.0, 2.0, 3.0), tensor(0.5, -1.0, 2.0)
    found = purified(base, teacher, teacher, beta=1.0, bound=10.0)
    torch.testing.assert_close(found, base.softmax(-1))
