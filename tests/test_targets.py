"""Closed forms of the distillation targets, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from epistill.objective import distillation_nats, entropy
from epistill.targets import (
    ContrastTarget,
    Divergence,
    EntropyGated,
    GeometricTarget,
    PurifiedTarget,
)


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


def test_geometric_target_is_the_normalised_product_of_powers():
    base, teacher = tensor(0.5, 0.3, 0.2), tensor(0.7, 0.2, 0.1)
    seen = {"start": base.log() + 3, "teacher": teacher.log() - 1, "student": tensor(0, 0, 0)}
    product = base**0.25 * teacher**0.75
    found = GeometricTarget(share=0.75).logits(seen).softmax(-1)
    torch.testing.assert_close(found, product / product.sum())
    assert GeometricTarget(share=0.75).views == ("start",)
    alone = GeometricTarget(share=0.0, reference="student")
    assert alone.views == ()
    torch.testing.assert_close(alone.logits(seen).softmax(-1), tensor(1, 1, 1) / 3)


def test_geometric_target_mixes_only_at_forks_where_asked():
    base = torch.stack([tensor(0.34, 0.33, 0.33), tensor(0.98, 0.01, 0.01)]).log()
    teacher = torch.stack([tensor(0.1, 0.8, 0.1)] * 2).log()
    found = GeometricTarget(share=0.0, above_nats=0.5).logits({"start": base, "teacher": teacher})
    torch.testing.assert_close(found, torch.stack([base[0], teacher[1]]))


def test_contrast_target_takes_out_what_both_contexts_say():
    base = tensor(1.0, 2.0, 3.0).log_softmax(-1)
    teacher = tensor(0.0, 4.0, 1.0)
    same = {"start": base, "teacher": teacher, "wrong_sibling": teacher}
    torch.testing.assert_close(ContrastTarget().logits(same), base)
    right, wrong = (tensor(*p).log() for p in ((0.7, 0.2, 0.1), (0.4, 0.4, 0.2)))
    found = ContrastTarget(strength=2.0, bound=3.0).logits(
        {"start": base, "teacher": right, "wrong_sibling": wrong}
    )
    expected = [
        b + 2.0 * 3.0 * math.tanh(math.log(r / w) / 3.0)
        for b, r, w in zip(base.tolist(), (0.7, 0.2, 0.1), (0.4, 0.4, 0.2), strict=True)
    ]
    assert found.tolist() == pytest.approx(expected)
    excluded = {**same, "teacher": tensor(0.0, -50.0, -90.0), "wrong_sibling": tensor(0, -90, -50)}
    torch.testing.assert_close(ContrastTarget().logits(excluded), base)


def test_entropy_gated_support_against_its_equations():
    torch.manual_seed(0)
    student = torch.randn(40, 30, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(40, 30, dtype=torch.float64) * torch.linspace(0.1, 6, 40)[:, None]
    ids = torch.randint(0, 30, (40,))
    found = EntropyGated(above_nats=1.5, k=4).nats(
        student, teacher, ids, alpha=1.0, entry_clip=None
    )
    (gradient,) = torch.autograd.grad(found.sum(), student)
    s, t = student.log_softmax(-1), teacher.log_softmax(-1)
    total, unsure = 0, 0
    for i in range(40):
        y = ids[i]
        u = (t[i, y] - s[i, y]).detach()
        total = total - u * s[i, y]  # equations 7 and 8 where the ratio is 1
        if -(t[i].exp() * t[i]).sum() > 1.5:
            unsure += 1
            top = t[i].argsort(descending=True)[:4]
            q = t[i, top].exp() / t[i, top].exp().sum()
            total = total + (q * (q.log() - s[i, top])).sum()
    assert 5 < unsure < 35
    (expected,) = torch.autograd.grad(total, student)
    torch.testing.assert_close(gradient, expected)
    assert entropy(t).max() > 1.5
    never = EntropyGated(above_nats=9.0).nats(student, teacher, ids, alpha=1.0, entry_clip=None)
    plain = distillation_nats(student, teacher, ids, alpha=1.0, sampled_token=True)
    torch.testing.assert_close(never, plain)
    with pytest.raises(ValueError, match="reverse KL only"):
        Divergence(alpha=0.5, support=EntropyGated())
