"""Scores of long prompts from a server's prefix cache: equal to the plain ones, or asked again."""

from __future__ import annotations

import json

import pytest
import torch

from epistill.rollouts.scoring import score_completions
from epistill.rollouts.vllm_engine import VllmEngine
from epistill.rollouts.vllm_prefix import LONG_PROMPT, prefix_request
from epistill.rollouts.vllm_server import UnusableReply
from tests.helpers.fake_vllm import GENERATE, FakeVllm
from tests.helpers.models import make_tiny_model

MODEL = make_tiny_model()
LENGTHS = (LONG_PROMPT + 5, LONG_PROMPT + 16, LONG_PROMPT - 1)  # the second fills blocks of 16
EACH = 4


def rows(lengths=LENGTHS, tokens=20):
    """Prompts, EACH rows of each, and completions."""
    draw = torch.Generator().manual_seed(0)
    ids = [torch.randint(MODEL.vocabulary, (n,), generator=draw).tolist() for n in lengths]
    prompts = [tuple(prompt) for prompt in ids for _ in range(EACH)]
    said = torch.randint(MODEL.vocabulary, (len(prompts), tokens), generator=draw).tolist()
    return prompts, list(map(tuple, said))


def engine_on(*servers, **settings):
    urls = [server.url for server in servers]
    return VllmEngine(urls, "m", MODEL, sleep=lambda seconds: None, timeout=20.0, **settings)


def same(found, prompts, completions, within=1e-5):
    expected = score_completions(MODEL, prompts, completions)
    return all(
        (one.log_probs - mine.log_probs).abs().max() < within
        for one, mine in zip(found, expected, strict=True)
    )


@pytest.mark.parametrize("cut", [False, True])
def test_scores_from_the_cache_are_the_plain_ones(cut):
    prompts, completions = rows()
    with FakeVllm(MODEL, cache=16, cut=cut) as server, FakeVllm(MODEL) as other:
        engine = engine_on(server, top_k=3)
        found = engine.score(prompts, completions, mass_of=[5, 6])
        assert same(found, prompts, completions)
        plain = engine_on(other, top_k=3).score(prompts, completions, mass_of=[5, 6])
        for one, two in zip(found, plain, strict=True):
            torch.testing.assert_close(one.mass, two.mass, atol=1e-6, rtol=0)
            torch.testing.assert_close(one.entropies, two.entropies, atol=1e-5, rtol=0)
        # Of the prompt that fills its blocks the first reply alone will do; the short one is plain.
        assert engine.client.counts["answered"] == EACH + 1
        assert engine.client.counts["given_up"] == EACH - 1
        assert server.paths.count(GENERATE) == 1 + 2 * EACH
        assert server.paths.count("/v1/completions") == EACH - 1 + EACH
        assert other.paths.count(GENERATE) == 0


@pytest.mark.parametrize("cut", [False, True])
def test_a_completion_in_the_cache_is_scored_again(cut):
    prompts, completions = rows(LENGTHS[:1])
    with FakeVllm(MODEL, cache=16, cut=cut) as server:
        assert same(engine_on(server).score(prompts, completions), prompts, completions)
        engine = engine_on(server)  # knows nothing of the first one's replies
        assert same(engine.score(prompts, completions), prompts, completions)
        assert engine.client.counts["given_up"] == EACH
        twins = [(*completions[0][:16], n, n) for n in range(EACH)]
        assert same(engine.score(prompts, twins), prompts, twins)


@pytest.mark.parametrize("fault", ["400", "500", "garbage"])
def test_whatever_goes_wrong_there_the_plain_way_is_left(fault):
    prompts, completions = rows(LENGTHS[:1])
    with FakeVllm(MODEL, cache=16, faults=["ok", "ok", fault]) as server:
        engine = engine_on(server)
        assert same(engine.score(prompts, completions), prompts, completions)
        assert server.paths.count(GENERATE) == 1 + EACH
        assert server.paths.count("/v1/completions") == 1
        counts = engine.client.counts
        assert (counts["answered"], counts["given_up"], counts["retried"]) == (EACH - 1, 1, 0)


@pytest.mark.parametrize("told", [{"details": False}, {"faults": ["403"]}])
def test_a_server_that_does_not_say_how_much_it_held_is_asked_there_once(told):
    prompts, completions = rows(LENGTHS[:1])
    with FakeVllm(MODEL, cache=16, **told) as server:
        engine = engine_on(server)
        for _ in range(2):
            assert same(engine.score(prompts, completions), prompts, completions)
        assert server.paths.count(GENERATE) == 1


def test_a_server_without_the_path_is_asked_for_it_once():
    prompts, completions = rows(LENGTHS[:1])
    with FakeVllm(MODEL) as server, FakeVllm(MODEL, cache=16) as other:
        engine = engine_on(server, other)
        for _ in range(2):
            assert same(engine.score(prompts, completions), prompts, completions)
        assert server.paths.count("/openapi.json") == 1
        assert GENERATE not in server.paths + other.paths


def test_rows_of_one_prompt_go_to_one_server():
    prompts, completions = rows([LONG_PROMPT + 5 + n for n in range(6)])
    with FakeVllm(MODEL, cache=16) as one, FakeVllm(MODEL, cache=16) as two:
        engine = engine_on(one, two)
        assert same(engine.score(prompts, completions), prompts, completions)
        assert engine.client.counts["given_up"] == 0
        homes = [{tuple(b["token_ids"])[:LONG_PROMPT] for b in s.bodies[1:]} for s in (one, two)]
        assert not homes[0] & homes[1]
        assert len(homes[0] | homes[1]) == 6


def test_a_server_that_is_gone_is_replaced():
    prompts, completions = rows([LONG_PROMPT + 5 + n for n in range(6)])
    with (
        FakeVllm(MODEL, cache=16, faults=["ok", "ok", "die"]) as one,
        FakeVllm(MODEL, cache=16) as two,
    ):
        engine = engine_on(one, two, attempts=2)
        assert same(engine.score(prompts, completions), prompts, completions)


def test_only_a_reply_whose_scores_were_all_computed_counts():
    ids, start = (1, 2, 3, 4, 5, 6), 4
    read = prefix_request("m", ids, start, top_k=0, vocabulary=9, salt="s").read

    def reply(cached, entries, tokens=6):
        told = None if cached is None else {"cached_tokens": cached}
        usage = {"prompt_tokens": tokens, "prompt_tokens_details": told}
        return json.dumps({"prompt_logprobs": entries, "usage": usage}).encode()

    whole = [None, *({str(i): {"logprob": -float(i), "rank": 1}} for i in ids[1:])]
    for cached, entries in [(0, whole), (3, whole), (3, [None, *whole[4:]])]:
        assert read(reply(cached, entries))["log_probs"] == [-5.0, -6.0]
    for cached in (4, 5, 6):  # all there, but nobody wrote the first
        with pytest.raises(UnusableReply, match="from the cache where 4"):
            read(reply(cached, whole))
    for cached, entries, tokens in [(3, whole[1:], 6), (3, [*whole, None], 6), (3, whole, 7)]:
        with pytest.raises(UnusableReply, match="scored positions for 6 tokens"):
            read(reply(cached, entries, tokens))
    with pytest.raises(UnusableReply, match="without the log-prob of its token"):
        read(reply(3, [None, whole[5], whole[4]]))
    with pytest.raises(UnusableReply, match="unusable reply"):
        read(reply(-1, whole))
    with pytest.raises(UnusableReply, match="does not say how much"):
        read(reply(None, whole))
