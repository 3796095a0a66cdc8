"""In process against top k: the bounds hold, and are tight where they can be."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from epistill.config import SamplingConfig
from epistill.errors import EpistillError
from epistill.rollouts.align import align
from epistill.rollouts.engine import PromptRequest
from epistill.rollouts.in_process_engine import InProcessEngine, weights_fingerprint
from epistill.rollouts.prompts import render_prompt
from epistill.rollouts.sampler import sample
from epistill.rollouts.top_k_scores import top_k_scores
from epistill.tasks.star_search import star_problem


@pytest.fixture(scope="module")
def rollouts(lab_model):
    problems = [star_problem(5, 3, 0, "engine", i) for i in range(6)]
    requests = [
        PromptRequest(p.id, render_prompt(lab_model.tokenizer, p.messages).ids, i)
        for i, p in enumerate(problems)
    ]
    return sample(
        lab_model, requests, samples=2, sampling=SamplingConfig(max_new_tokens=48), seed=0
    )


@torch.no_grad()
def full_log_probs(model, rollout):
    batch = align(model, [rollout.prompt_ids], [rollout.completion_ids])
    return model.head().logits(batch.hidden(model)).double().log_softmax(-1)


MASS_OF = tuple(range(30, 60))


@pytest.mark.parametrize("k", [1, 3, 20, 70])
def test_top_k_bounds_hold_against_the_full_vocabulary(lab_model, rollouts, k):
    engine = InProcessEngine(lab_model)
    exact = engine.score(
        [r.prompt_ids for r in rollouts], [r.completion_ids for r in rollouts], mass_of=MASS_OF
    )
    slack = []
    for rollout, row in zip(rollouts, exact, strict=True):
        full = full_log_probs(lab_model, rollout)
        top = full.topk(k, dim=-1)
        own = full.gather(1, torch.tensor(rollout.completion_ids).unsqueeze(1)).squeeze(1)
        found = top_k_scores(
            rollout.completion_ids,
            own.numpy(),
            top.indices.numpy(),
            top.values.numpy(),
            mass_of=MASS_OF,
            vocabulary=full.shape[1],
        )
        close = 1e-5
        np.testing.assert_allclose(found.log_probs, row.log_probs, atol=1e-4)
        assert (found.mass <= row.mass + close).all()
        assert (row.mass <= found.mass + found.mass_slack + close).all()
        assert (found.entropies <= row.entropies + close).all()
        assert (row.entropies <= found.entropies + found.entropy_slack + close).all()
        slack.append(found.mass_slack.mean())
        assert (row.mass_slack == 0).all()
    assert np.mean(slack) < {1: 1.0, 3: 0.2, 20: 0.01, 70: 1e-6}[k]


def test_the_bound_is_reached(lab_model):
    """Uniform over four tokens, top 2 listed: the other two may be asked for, or not."""
    quarter = np.log(np.full((1, 2), 0.25))
    for wanted, truth in (((2, 3), 0.5), ((2,), 0.25), ((0, 2), 0.5)):
        found = top_k_scores(
            [1], np.log([0.25]), np.array([[0, 1]]), quarter, mass_of=wanted, vocabulary=4
        )
        assert found.mass[0] + found.mass_slack[0] == pytest.approx(truth)
    found = top_k_scores(
        [2], np.log([0.25]), np.array([[0, 1]]), quarter, mass_of=(2,), vocabulary=4
    )
    assert (found.mass[0], found.mass_slack[0]) == pytest.approx((0.25, 0.0))  # its own token
    assert found.entropies[0] + found.entropy_slack[0] == pytest.approx(np.log(4))


def test_scores_that_do_not_fit_are_refused():
    with pytest.raises(EpistillError, match="3 completion tokens but scores of 2"):
        top_k_scores([1, 2, 3], np.zeros(2), np.zeros((3, 1), dtype=np.int64), np.zeros((3, 1)),
                     mass_of=(), vocabulary=4)  # fmt: skip


def test_the_fingerprint_knows_a_changed_model(tiny_model):
    before = weights_fingerprint(tiny_model)
    assert weights_fingerprint(tiny_model) == before
    weight = next(iter(tiny_model.network.parameters()))
    with torch.no_grad():
        weight[0, 0] += 1e-3
    assert weights_fingerprint(tiny_model) != before


def test_no_two_scores_share_their_arrays(lab_model, rollouts):
    (row,) = InProcessEngine(lab_model).score(
        [rollouts[0].prompt_ids], [rollouts[0].completion_ids], mass_of=MASS_OF
    )
    lengths = {len(getattr(row, field.name)) for field in dataclasses.fields(row)}
    assert lengths == {len(rollouts[0].completion_ids)}
