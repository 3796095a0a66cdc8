"""Against a real vLLM server: both engines agree, weights arrive, a killed server is survived.

`.ci/vllm`, or EPISTILL_TEST_VLLM=FOLDER pytest -m vllm, where scripts/setup_vllm.sh FOLDER made it.
One server for all of it.
"""

from __future__ import annotations

import threading
import time
from statistics import fmean

import pytest
import torch
from scipy.stats import chisquare

from epistill.config import RunConfig, SamplingConfig
from epistill.errors import EpistillError
from epistill.methods import method
from epistill.rollouts.engine import PromptRequest
from epistill.rollouts.load_model import lab_directory, load_model
from epistill.rollouts.prompts import render_prompt
from epistill.rollouts.sampler import sample
from epistill.rollouts.scoring import score_completions
from epistill.rollouts.vllm_engine import VllmEngine
from epistill.store import RunStore
from epistill.studies.run_arm import run
from epistill.tasks.star_search import star_problem
from epistill.training import optimiser_steps
from tests.helpers.fake_vllm import FakeVllm
from tests.helpers.served import serving, stop, widen_heads, with_misleading_defaults

pytestmark = pytest.mark.vllm
RULES = {
    "force": {"force": ("maybe@start", "1*hmm wait@after:dust", "2*wait try@before:</think>")},
    "block": {"block": ("so", "lexicon:paper-en", "</think>@until:gold", "<end>@until:check")},
}
AGREE = 1e-3  # nats per token, from the issue


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The lab model in a shape vLLM serves on a CPU."""
    return widen_heads(lab_directory(), tmp_path_factory.mktemp("wide"))


@pytest.fixture(scope="module")
def server(folder, tmp_path_factory):
    served = widen_heads(lab_directory(), tmp_path_factory.mktemp("served"))
    with_misleading_defaults(served)
    log = tmp_path_factory.mktemp("log") / "server.log"
    with serving(served, log) as started:
        yield started


@pytest.fixture(scope="module")
def wide(folder):
    return load_model(str(folder))


def pool_on(urls, model, **settings):
    return VllmEngine(urls, "m", model, **settings)


def asked(model, count=8):
    problems = [star_problem(3 + i % 3, 2 + i % 2, 0, "server", i) for i in range(count)]
    return [
        PromptRequest(p.id, render_prompt(model.tokenizer, p.messages).ids, i)
        for i, p in enumerate(problems)
    ]


def largest_gap(model, rollouts, temperature=1.0):
    scores = score_completions(
        model,
        [r.prompt_ids for r in rollouts],
        [r.completion_ids for r in rollouts],
        temperature=temperature,
    )
    return max(
        (torch.tensor(r.logprobs) - s.log_probs).abs().max().item()
        for r, s in zip(rollouts, scores, strict=True)
    )


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_log_probs_of_both_engines_agree(server, lab_model, temperature):
    pool = pool_on([server[0]], lab_model)
    sampling = SamplingConfig(max_new_tokens=48, temperature=temperature)
    rollouts = pool.sample(asked(lab_model), samples=4, sampling=sampling, seed=0)
    assert len(rollouts) == 32
    assert {r.stop_reason for r in rollouts} >= {"eos"}
    assert len({r.completion_ids for r in rollouts}) > 16
    assert largest_gap(lab_model, rollouts, temperature) < AGREE
    again = pool.sample(asked(lab_model), samples=4, sampling=sampling, seed=0)
    assert [r.completion_ids for r in again] == [r.completion_ids for r in rollouts]


def test_greedy_responses_agree(server, lab_model):
    sampling = SamplingConfig(max_new_tokens=48, temperature=0.0)
    theirs = pool_on([server[0]], lab_model).sample(
        asked(lab_model), samples=2, sampling=sampling, seed=0
    )
    mine = sample(lab_model, asked(lab_model), samples=2, sampling=sampling, seed=0)
    assert [(r.text, r.stop_reason) for r in theirs] == [(r.text, r.stop_reason) for r in mine]


@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
def test_rules_for_words_agree(server, lab_model, rules):
    """Greedy token by token; drawn ones keep the rule, and repeat."""
    pool = pool_on([server[0]], lab_model).unscored()
    sampling = SamplingConfig(max_new_tokens=60, temperature=0.0, **rules)
    theirs = pool.sample(asked(lab_model, 4), samples=2, sampling=sampling, seed=0)
    mine = sample(lab_model, asked(lab_model, 4), samples=2, sampling=sampling, seed=0)
    assert [(r.completion_ids, r.forced, r.stop_reason) for r in theirs] == [
        (r.completion_ids, r.forced, r.stop_reason) for r in mine
    ]
    assert any(any(r.forced) for r in mine)


def test_blocked_words_are_not_drawn(server, lab_model):
    pool = pool_on([server[0]], lab_model).unscored()
    drawing = {"max_new_tokens": 60, "top_p": 0.9, "temperature": 1.2}
    sampling = SamplingConfig(**drawing, block=("so", "lexicon:paper-en", "</think>@until:gold"))
    rollouts = pool.sample(asked(lab_model, 4), samples=4, sampling=sampling, seed=0)
    assert sum(sum(r.forced) for r in rollouts) > 16
    for rollout in rollouts:
        assert not {"so", "maybe", "wait", "hmm"} & set(rollout.text.split())
        assert "gold" in rollout.text.partition("</think>")[0] or "</think>" not in rollout.text
    again = pool.sample(asked(lab_model, 4), samples=4, sampling=sampling, seed=0)
    assert [r.completion_ids for r in again] == [r.completion_ids for r in rollouts]


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_draws_follow_the_distribution_at_the_temperature(server, lab_model, temperature):
    request = asked(lab_model, 1)[0]
    sampling = SamplingConfig(max_new_tokens=2, temperature=temperature)
    rollouts = pool_on([server[0]], lab_model).sample(
        [PromptRequest("p", request.ids, draw) for draw in range(16)],
        samples=128,
        sampling=sampling,
        seed=0,
    )
    prefix = (*request.ids, max(rollouts, key=lambda r: r.logprobs[0]).completion_ids[0])
    drawn = [
        r.completion_ids[1] for r in rollouts if (*r.prompt_ids, r.completion_ids[0]) == prefix
    ]
    assert len(drawn) > 500
    with torch.no_grad():
        logits = lab_model.network(torch.tensor([prefix])).logits[0, -1].double()
    p = (logits / temperature).softmax(-1)
    common = (p * len(drawn) > 5).nonzero().squeeze(1).tolist()
    assert len(common) >= 2
    counts = [drawn.count(i) for i in common]
    rest = 1 - p[common].sum().item()
    expected = [p[i].item() * len(drawn) for i in common]
    if rest * len(drawn) > 1:
        counts.append(len(drawn) - sum(counts))
        expected.append(rest * len(drawn))
    scale = sum(counts) / sum(expected)
    assert chisquare(counts, [e * scale for e in expected]).pvalue > 1e-3


def test_scores_agree_and_the_truncated_list_bounds_the_mass(server, lab_model):
    rollouts = sample(
        lab_model, asked(lab_model), samples=2, sampling=SamplingConfig(max_new_tokens=40), seed=3
    )
    prompts, completions = (
        [getattr(r, n) for r in rollouts] for n in ("prompt_ids", "completion_ids")
    )
    some = torch.arange(0, 73, 4)
    pool = pool_on([server[0]], lab_model, top_k=20)
    found = pool.score(prompts, completions, mass_of=some.tolist())
    expected = score_completions(lab_model, prompts, completions)
    for rollout, score, mine in zip(rollouts, found, expected, strict=True):
        assert (score.log_probs - mine.log_probs).abs().max() < AGREE
        ids = torch.tensor([[*rollout.prompt_ids, *rollout.completion_ids]])
        with torch.no_grad():
            full = lab_model.network(ids).logits[0, len(rollout.prompt_ids) - 1 : -1].softmax(-1)
        truth = full[:, some].sum(1)
        assert (truth >= score.mass - AGREE).all()
        assert (truth <= score.mass + score.mass_slack + AGREE).all()


def test_scores_of_a_long_prompt_come_from_the_cache(server, lab_model):
    """Computed, read, read with another completion, and not where the completion is in the cache."""
    draw = torch.Generator().manual_seed(0)
    prompt = tuple(torch.randint(lab_model.vocabulary, (300,), generator=draw).tolist())
    # A block is 128 tokens on a CPU, so that the cache holds 256 of the prompt, or 384 with these.
    said = torch.randint(lab_model.vocabulary, (6, 150), generator=draw).tolist()
    said = [tuple(row) for row in said]

    def scored(completions, prompt=prompt):
        pool = pool_on([server[0]], lab_model, top_k=20)
        prompts = [prompt] * len(completions)
        found = pool.score(prompts, completions, mass_of=[5])
        expected = score_completions(lab_model, prompts, completions)
        for one, mine in zip(found, expected, strict=True):
            assert (one.log_probs - mine.log_probs).abs().max() < AGREE
            assert (one.entropies <= mine.entropies + AGREE).all()
            assert (mine.entropies <= one.entropies + one.entropy_slack + AGREE).all()
        return pool.client.counts["answered"], pool.client.counts["given_up"]

    # A reply whose unwritten memory is no number is not sent: such a row is scored plainly.
    assert scored(said[:3])[0] >= 1
    fresh = [said[3:], [row[::-1] for row in said[:3]], [row[::-1] for row in said[3:]]]
    assert sum(scored(rows)[0] for rows in fresh) >= 2  # the prompt was there before
    assert scored(said[:3]) == (0, 3)  # and so were these completions
    twin = said[0][1:]
    assert scored([twin, *((*twin[:100], *row[:50]) for row in said[:2])])[1] >= 2
    # A prompt of whole blocks: what predicts its first response token is not computed again.
    assert scored(said[:3], prompt=prompt[:256])[1] >= 2
    # What the server sampled is in its cache too, and is not read.
    drawn = pool_on([server[0]], lab_model).sample(
        [PromptRequest("p", prompt[1:], 0)],
        samples=4,
        sampling=SamplingConfig(max_new_tokens=200),
        seed=0,
    )
    assert scored([r.completion_ids for r in drawn], prompt=prompt[1:])[0] >= 1
    assert server[1].poll() is None


def test_pushed_weights_answer(server, folder, wide, tmp_path):
    """Every kind of weight is moved, the tied head too: a reload that forgets one is seen."""
    pool = pool_on([server[0]], wide, weights_folder=tmp_path)
    sampling = SamplingConfig(max_new_tokens=30)
    before = pool.score([(1, 2)], [(3, 4, 5)])[0].log_probs
    student = load_model(str(folder))
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in student.network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter) * (parameter != 0))
    assert max(pool.push_weights(student, 3).values()) < AGREE
    after = pool.score([(1, 2)], [(3, 4, 5)])[0].log_probs
    assert (after - before).abs().max() > 0.05
    rollouts = pool.sample(asked(wide), samples=2, sampling=sampling, seed=0)
    assert {r.policy_version for r in rollouts} == {3}
    assert largest_gap(student, rollouts) < AGREE
    assert max(pool.push_weights(wide, 4).values()) < AGREE
    assert (pool.score([(1, 2)], [(3, 4, 5)])[0].log_probs - before).abs().max() < 1e-5


def settings(folder, urls, name, steps=2, changed=(), **rollouts):
    return RunConfig.model_validate(
        {
            "model": str(folder),
            "task": {"type": "star_search", "arms": 3, "depth": 2},
            "method": method(name, **dict(changed)).model_dump(),
            "sampling": {"max_new_tokens": 24},
            "steps": steps,
            "problems_per_step": 4,
            "samples_per_problem": 4,
            "learning_rate": 3e-3,
            "warmup_steps": 0,
            "rollouts": {"engine": "vllm", "urls": urls, "model": "m", "attempts": 2, **rollouts},
        }
    )


@pytest.mark.parametrize("name", ["grpo", "sdpo"])
def test_training_steps_through_the_server(server, folder, name, tmp_path):
    run(settings(folder, [server[0]], name, steps=3), tmp_path)
    rows = RunStore(tmp_path).metrics()
    assert len(rows) == 3
    for row in rows:
        assert row["engine_gap_max_nats"] < AGREE
        assert (row["policy_lag_steps"], row["importance_capped_share"]) == (0, 0.0)
        assert row["push_gap_nats_per_token"] < AGREE


@pytest.mark.parametrize("name", ["rlrt", "rlcsd"])
def test_the_server_scores_the_teacher_of_every_step_as_the_trainer_does(
    server, folder, name, tmp_path, monkeypatch
):
    live, gaps, inner = {"teacher": {"type": "live"}}, [], optimiser_steps.gather_scores

    def both(*arguments, teacher_engine, **how):
        found = inner(*arguments, teacher_engine=teacher_engine, **how)
        for mine, theirs in zip(inner(*arguments, **how), found, strict=True):
            for key in ("teacher_log_probs", "negatives"):
                one, two = getattr(mine, key), getattr(theirs, key)
                assert (one is None) == (two is None)
                gaps.extend([] if one is None else (one - two).abs().flatten().tolist())
        return found

    monkeypatch.setattr(optimiser_steps, "gather_scores", both)
    run(settings(folder, [server[0]], name, 3, live, teacher_scores="servers"), tmp_path)
    print(f"{name}: {len(gaps)} scores, largest gap {max(gaps):.2g}, mean {fmean(gaps):.2g} nats")
    assert max(gaps) < AGREE
    rows = RunStore(tmp_path).metrics()
    assert len(rows) == 3
    for row in rows:
        assert row["rows_with_context"] == 0 or row["teacher_log_ratio_nats_per_token"] is not None


def test_a_server_killed_in_the_middle(server, folder, wide, tmp_path):
    """Last: it ends the server. Its requests go to another; then it was the only one."""
    url, process = server

    def kill_while_it_works(other_bodies):
        while not other_bodies:
            time.sleep(0.001)
        stop(process)

    with FakeVllm(load_model(str(folder))) as other:
        pool = pool_on([url, other.url], wide, attempts=2, weights_folder=tmp_path / "weights")
        assert len(pool.push_weights(wide, 0)) == 2
        other.bodies.clear()  # the probe's
        threading.Thread(target=kill_while_it_works, args=(other.bodies,)).start()
        rollouts = pool.sample(
            asked(wide, 64), samples=8, sampling=SamplingConfig(max_new_tokens=64), seed=0
        )
        assert [(r.problem_id, r.sample) for r in rollouts] == [
            (request.problem_id, k) for request in asked(wide, 64) for k in range(8)
        ]
        assert pool.client.servers[0].lost is not None
        assert pool.client.counts["moved"] > 0
        assert largest_gap(wide, rollouts) < AGREE
    with pytest.raises(EpistillError, match="stopped after 0 steps, with a checkpoint"):
        run(settings(folder, [url], "grpo"), tmp_path / "run")
    assert (tmp_path / "run" / "checkpoints" / "step-000000").is_dir()
