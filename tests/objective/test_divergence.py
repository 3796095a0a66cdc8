"""Closed forms, finite differences and properties of the divergences, in float64."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from epistill.objective import (
    aligned_log_probs,
    distillation_nats,
    divergence,
    entropy,
    self_distillation_loss,
    token_log_probs,
)

S = torch.tensor([0.6, 0.3, 0.1]).double()
T = torch.tensor([0.2, 0.3, 0.5]).double()
OPTIONS = [
    {"alpha": alpha, **support}
    for alpha in (0.0, 0.3, 0.5, 1.0)
    for support in (
        {},
        {"top_k": 3, "add_tail": True},
        {"top_k": 3},
        {"top_k": 3, "add_tail": True, "chosen_by": "teacher"},
    )
]


def logits(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double() * 2


@pytest.mark.parametrize(
    ("alpha", "nats"), [(0, 0.585), (0.01, 0.0058), (0.5, 0.125), (0.99, 0.0049), (1, 0.498)]
)
def test_values_at_and_near_the_ends_where_the_definition_jumps(alpha, nats):
    found = divergence(S.log(), T.log(), alpha=alpha).item()
    assert found == pytest.approx(nats, abs=6e-4 if alpha in (0, 0.5, 1) else 6e-5)


def numpy_divergence(s, t, alpha):
    """Written independently: sums over Python floats, no logarithm trick."""

    def kl(p, q):
        return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)

    if alpha == 0:
        return kl(t, s)
    if alpha == 1:
        return kl(s, t)
    m = [(1 - alpha) * a + alpha * b for a, b in zip(s, t, strict=True)]
    return (1 - alpha) * kl(s, m) + alpha * kl(t, m)


@pytest.mark.parametrize("alpha", [0.0, 0.2, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_equal_to_plain_python(alpha, seed):
    a, b = logits(seed, 7), logits(seed + 100, 7)
    s, t = a.softmax(-1).tolist(), b.softmax(-1).tolist()
    found = distillation_nats(a, b, torch.tensor(0), alpha=alpha).item()
    assert found == pytest.approx(numpy_divergence(s, t, alpha), abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_tail_bucket_is_the_left_over_mass(seed):
    a, b = logits(seed, 9), logits(seed + 50, 9)
    s, t = a.softmax(-1).numpy(), b.softmax(-1).numpy()
    kept = np.argsort(-s)[:4]
    s_bins = [*s[kept], 1 - s[kept].sum()]
    t_bins = [*t[kept], 1 - t[kept].sum()]
    found = distillation_nats(a, b, torch.tensor(0), alpha=0.5, top_k=4, add_tail=True).item()
    assert found == pytest.approx(numpy_divergence(s_bins, t_bins, 0.5), abs=1e-10)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_gradcheck(options):
    student = logits(1, 2, 3, 6).requires_grad_()
    teacher, ids = logits(2, 2, 3, 6), torch.zeros(2, 3, dtype=torch.long)
    assert torch.autograd.gradcheck(
        lambda x: distillation_nats(x, teacher, ids, **options), (student,)
    )


def test_gradcheck_with_entry_clip():
    student = logits(1, 4, 6).requires_grad_()
    teacher, ids = logits(2, 4, 6), torch.zeros(4, dtype=torch.long)
    assert torch.autograd.gradcheck(
        lambda x: distillation_nats(x, teacher, ids, alpha=0.0, entry_clip=0.05), (student,)
    )


def test_sampled_token_gradient_is_that_of_reverse_kl_in_expectation():
    student, teacher = logits(1, 5).requires_grad_(), logits(2, 5)
    probabilities = student.detach().softmax(-1)
    expected = sum(
        probabilities[token]
        * torch.autograd.grad(
            distillation_nats(student, teacher, torch.tensor(token), alpha=1.0, sampled_token=True),
            student,
        )[0]
        for token in range(5)
    )
    exact = torch.autograd.grad(
        distillation_nats(student, teacher, torch.tensor(0), alpha=1.0), student
    )[0]
    torch.testing.assert_close(expected, exact, atol=1e-12, rtol=0)


floats = st.floats(-8, 8)
rows = st.integers(2, 7).flatmap(
    lambda n: st.tuples(*(st.lists(floats, min_size=n, max_size=n) for _ in range(2)))
)
alphas = st.sampled_from([0.0, 0.1, 0.5, 0.8, 1.0])


def nats(student, teacher, **options):
    ids = torch.zeros(student.shape[:-1], dtype=torch.long)
    return distillation_nats(student, teacher, ids, **options)


@given(rows, alphas)
def test_never_negative_and_zero_for_equals(pair, alpha):
    a, b = (torch.tensor(row, dtype=torch.float64) for row in pair)
    assert nats(a, b, alpha=alpha) >= -1e-12
    assert nats(a, a, alpha=alpha).abs() < 1e-12


@given(rows)
def test_jsd_is_symmetric_at_one_half_and_at_most_ln_2(pair):
    a, b = (torch.tensor(row, dtype=torch.float64) for row in pair)
    forth, back = nats(a, b, alpha=0.5), nats(b, a, alpha=0.5)
    torch.testing.assert_close(forth, back, atol=1e-12, rtol=1e-10)
    assert forth <= math.log(2) + 1e-12


@given(rows, alphas, st.integers(-30, 30), st.integers(1, 3))
def test_logits_may_be_shifted(pair, alpha, shift, k):
    # On a grid of 2^-10 the shift is exact: which tokens are the top k is not continuous, and a
    # difference of 1e-38 that a shift rounds away would rightly choose others.
    a, b = ((torch.tensor(row, dtype=torch.float64) * 1024).round() / 1024 for row in pair)
    for options in ({}, {"top_k": k, "add_tail": True}):
        torch.testing.assert_close(
            nats(a + shift, b - shift, alpha=alpha, **options),
            nats(a, b, alpha=alpha, **options),
            atol=1e-8,
            rtol=1e-6,
        )


@given(rows, alphas)
def test_top_k_with_tail_is_a_lower_bound_that_grows_with_k(pair, alpha):
    a, b = (torch.tensor(row, dtype=torch.float64) for row in pair)
    values = [nats(a, b, alpha=alpha, top_k=k, add_tail=True).item() for k in range(1, len(a) + 1)]
    # A tail is taken for at least 1e-7, as the official loss does: what is smaller bounds nothing. And
    # being 1 minus a sum near 1, its logarithm is known to a few eps / 1e-7.
    assume(min(float(row.softmax(0).min()) for row in (a, b)) > 1e-7)
    for smaller, larger in itertools.pairwise(values):
        assert smaller <= larger + 1e-8
    assert values[-1] == pytest.approx(nats(a, b, alpha=alpha).item(), abs=1e-12)


@given(rows, alphas)
def test_top_k_beyond_the_vocabulary_is_the_whole_vocabulary(pair, alpha):
    a, b = (torch.tensor(row, dtype=torch.float64) for row in pair)
    for add_tail in (True, False):
        assert nats(a, b, alpha=alpha, top_k=1000, add_tail=add_tail) == nats(a, b, alpha=alpha)


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.permutations(range(4)))
def test_permuting_the_batch_changes_nothing(seed, order):
    a, b = logits(seed, 4, 3, 5), logits(seed + 1, 4, 3, 5)
    ids = torch.zeros(4, 3, dtype=torch.long)
    mask = (torch.arange(12).view(4, 3) % 3 > 0).double()
    order = torch.tensor(order)
    whole = self_distillation_loss(a, b, ids, mask, alpha=0.5)
    permuted = self_distillation_loss(a[order], b[order], ids[order], mask[order], alpha=0.5)
    torch.testing.assert_close(whole, permuted, atol=1e-12, rtol=0)


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.integers(1, 4))
def test_padding_changes_neither_value_nor_gradient(seed, extra):
    a, b = logits(seed, 2, 3, 5).requires_grad_(), logits(seed + 1, 2, 3, 5)
    ids, mask = torch.zeros(2, 3, dtype=torch.long), torch.ones(2, 3)
    plain = self_distillation_loss(a, b, ids, mask, alpha=0.3)
    padded = self_distillation_loss(
        torch.cat([a, logits(7, 2, extra, 5)], 1),
        torch.cat([b, torch.full((2, extra, 5), torch.nan).double()], 1),
        torch.zeros(2, 3 + extra, dtype=torch.long),
        torch.cat([mask, torch.zeros(2, extra)], 1),
        alpha=0.3,
    )
    torch.testing.assert_close(plain, padded, atol=1e-12, rtol=0)
    (gradient,) = torch.autograd.grad(plain, a)
    (gradient_padded,) = torch.autograd.grad(padded, a)
    torch.testing.assert_close(gradient, gradient_padded, atol=1e-12, rtol=0)


def test_masked_tokens_have_no_gradient():
    a, b = logits(3, 2, 3, 5).requires_grad_(), logits(4, 2, 3, 5)
    mask = torch.tensor([[1, 0, 1], [0, 0, 1]])
    loss = self_distillation_loss(a, b, torch.zeros(2, 3, dtype=torch.long), mask, alpha=0.5)
    (gradient,) = torch.autograd.grad(loss, a)
    assert (gradient[mask == 0] == 0).all()
    assert (gradient[mask == 1] != 0).any()


def test_rows_without_context_do_not_dilute_the_loss():
    a, b = logits(3, 4, 3, 5), logits(4, 4, 3, 5)
    ids, mask = torch.zeros(4, 3, dtype=torch.long), torch.ones(4, 3)
    mask[1:] = 0
    some = self_distillation_loss(a, b, ids, mask, alpha=0.5)
    alone = self_distillation_loss(a[:1], b[:1], ids[:1], mask[:1], alpha=0.5)
    torch.testing.assert_close(some, alone)


def test_the_teacher_gets_no_gradient():
    a, b = logits(3, 2, 5).requires_grad_(), logits(4, 2, 5).requires_grad_()
    distillation_nats(a, b, torch.zeros(2, dtype=torch.long), alpha=0.5).sum().backward()
    assert a.grad is not None
    assert b.grad is None


def test_half_precision_is_computed_in_float32_and_never_clearly_negative():
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(512, 100, generator=generator).bfloat16()
    b = (a + 1e-3 * torch.randn(512, 100, generator=generator)).bfloat16()
    found = nats(a, b, alpha=0.5)
    assert found.dtype == torch.float32
    assert found.min() > -1e-6


def test_a_teacher_that_forbids_tokens_gives_finite_gradients():
    a, b = logits(3, 2, 5).requires_grad_(), logits(4, 2, 5)
    b[:, 0] = -torch.inf
    for alpha in (0.0, 0.5):
        (gradient,) = torch.autograd.grad(nats(a, b, alpha=alpha).sum(), a)
        assert gradient.isfinite().all()


def test_entropy_under_autocast_is_the_entropy_without_it():
    """Runs in bfloat16 draw their responses under autocast: the entropies are still float32's."""
    log_probs = torch.randn(3, 50, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    with torch.autocast("cpu", torch.bfloat16):
        under = entropy(log_probs)
    torch.testing.assert_close(under, entropy(log_probs), rtol=0, atol=0)


def test_entropy_and_token_log_probs():
    assert entropy(torch.tensor([0.5, 0.5, 0.0]).log()).item() == pytest.approx(math.log(2))
    found = token_log_probs(S.log().unsqueeze(0) + 3.0, torch.tensor([1]))
    assert found.item() == pytest.approx(math.log(0.3))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"alpha": 1.5}, "alpha is 1.5"),
        ({"alpha": 0.5, "sampled_token": True}, "reverse KL only"),
        ({"alpha": 1.0, "sampled_token": True, "top_k": 3}, "drop top_k"),
        ({"alpha": 0.5, "top_k": 0}, "positive integer"),
        ({"alpha": 0.5, "is_clip": 2.0}, "needs old_log_probs"),
    ],
)
def test_contradictions_are_refused(options, words):
    a = logits(1, 1, 2, 4)
    with pytest.raises(ValueError, match=words):
        self_distillation_loss(
            a, a, torch.zeros(1, 2, dtype=torch.long), torch.ones(1, 2), **options
        )


def test_an_empty_mask_is_an_error_not_a_zero():
    a = logits(1, 1, 2, 4)
    with pytest.raises(ValueError, match="keeps no token"):
        self_distillation_loss(
            a, a, torch.zeros(1, 2, dtype=torch.long), torch.zeros(1, 2), alpha=0.5
        )


def test_renormalised_support_sums_to_one():
    for options in ({"top_k": 2}, {"top_k": 2, "add_tail": True}, {}):
        for side in aligned_log_probs(logits(1, 3, 6), logits(2, 3, 6), **options):
            torch.testing.assert_close(side.exp().sum(-1), torch.ones(3).double())


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("whose", [0, 1])
def test_a_logit_that_is_no_number_is_never_hidden(alpha, whose):
    given = [torch.randn(2, 5, dtype=torch.float64) for _ in range(2)]
    given[whose][0, 3] = math.nan
    found = nats(*given, alpha=alpha)
    assert found[0].isnan()
    assert found[1].isfinite()


@pytest.mark.parametrize("top_k", [None, 3])
def test_a_nan_under_the_mask_reaches_neither_value_nor_gradient(top_k):
    student, teacher = (logits(seed, 2, 3, 5) for seed in (1, 2))
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    ids = torch.zeros(2, 3, dtype=torch.long)
    expected = self_distillation_loss(student, teacher, ids, mask, alpha=0.0, top_k=top_k)
    spoiled = [
        torch.where(mask.unsqueeze(-1) > 0, x.detach(), math.nan) for x in (student, teacher)
    ]
    spoiled[0].requires_grad_()
    found = self_distillation_loss(*spoiled, ids, mask, alpha=0.0, top_k=top_k)
    found.backward()
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)
    assert spoiled[0].grad.isfinite().all()


def test_forward_kl_has_no_cap():
    student, teacher = torch.tensor([0.0, -200.0]), torch.tensor([0.0, 0.0])
    expected = 100 - math.log(2)  # .5 (log .5 - 0) + .5 (log .5 + 200)
    assert nats(student, teacher, alpha=0.0).item() == pytest.approx(expected, rel=1e-6)


def test_shapes_are_checked_in_the_test_run():
    with pytest.raises(TypeError, match="whilst typechecking parameter"):
        distillation_nats(logits(1, 3, 5), logits(2, 3, 4), torch.zeros(3, dtype=int), alpha=0.5)
