"""A pool in front: counts are checked, kept work is kept when it dies in the middle."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from epistill.config import SamplingConfig, StarSearchTask
from epistill.errors import EpistillError
from epistill.preflights.preflight_config import PreflightConfig
from epistill.preflights.preflight_run import run_preflight
from epistill.preflights.scoring_engine import InProcess
from epistill.preflights.served_scores import Served
from epistill.rollouts.align import align
from epistill.rollouts.sampler import sample


class FakePool:
    """Answers from the lab model as a server would: the top k, nothing else."""

    def __init__(self, model, survives=10**9, lost=0):
        self.model, self.calls, self.survives, self.lost = model, 0, survives, lost

    def _count(self):
        self.calls += 1
        if self.calls > self.survives:
            raise EpistillError("the server at http://x died; start it again")

    def sample(self, requests, **settings):
        self._count()
        found = sample(self.model, requests, **settings)
        return found[: len(found) - self.lost]

    @torch.no_grad()
    def score(self, prompts, completions, *, top_k):
        self._count()
        rows = []
        for prompt, tokens in zip(prompts, completions, strict=True):
            batch = align([prompt], [tokens], pad_id=0, device=self.model.device)
            full = self.model.head().logits(batch.hidden(self.model)).log_softmax(-1)
            top = full.topk(top_k, dim=-1)
            own = full.gather(1, torch.tensor(tokens).unsqueeze(1)).squeeze(1)
            rows.append(
                SimpleNamespace(log_probs=own, top_ids=top.indices, top_log_probs=top.values)
            )
        return rows


def served(model, **settings):
    pool = FakePool(model, **settings)
    engine = Served(
        pool,
        tokenizer=model.tokenizer,
        eos_ids=model.eos_ids,
        vocabulary=len(model.tokenizer),
        max_positions=model.max_positions,
        top_k=20,
        identity={"engine": "http://x", "model": "lab"},
    )
    return engine, pool


@pytest.fixture(scope="module")
def small():
    return PreflightConfig(
        model="lab",
        task=StarSearchTask(arms=3, depth=2, split="preflight-test"),
        contexts=("sibling", "answer"),
        problems=3,
        samples=4,
        sampling=SamplingConfig(max_new_tokens=32),
    )


def test_top_k_agrees_with_the_full_vocabulary_within_its_own_bound(lab_model, small, tmp_path):
    exact = run_preflight(small, InProcess(lab_model), tmp_path / "a")
    found = run_preflight(small, served(lab_model)[0], tmp_path / "b")
    for name, context in found["contexts"].items():
        ours, full = context["pressure"], exact["contexts"][name]["pressure"]
        gap = abs(ours["change_per_1k_tokens"]["value"] - full["change_per_1k_tokens"]["value"])
        assert gap <= ours["bound_per_1k_tokens"] + 1e-3
        assert 0 < ours["bound_per_1k_tokens"] < 5
        assert full["bound_per_1k_tokens"] == 0
        for part, key in (("pressure", "kl_nats_per_token"), ("richness", "own_nats_per_token")):
            assert context[part][key]["value"] == pytest.approx(
                exact["contexts"][name][part][key]["value"], abs=1e-4
            )
        assert context["entropy_slack_nats"] < 0.05
    assert found["control"]["holds"]


def test_a_server_that_dies_leaves_its_work(lab_model, small, tmp_path):
    whole, pool = served(lab_model)
    run_preflight(small, whole, tmp_path / "whole")
    dying, _ = served(lab_model, survives=7)
    with pytest.raises(EpistillError, match="died; start it again"):
        run_preflight(small, dying, tmp_path / "part")
    rest, again = served(lab_model)
    run_preflight(small, rest, tmp_path / "part")
    assert again.calls == pool.calls - 7


def test_fewer_responses_than_asked_is_one_clear_error(lab_model, small, tmp_path):
    with pytest.raises(EpistillError, match="the server gave 11 responses; expected 12"):
        run_preflight(small, served(lab_model, lost=1)[0], tmp_path)
