"""The client of vLLM servers, against servers that fail in every way we know."""

from __future__ import annotations

import math
import time
from email.utils import formatdate

import pytest
import torch

from epistill.config import SamplingConfig
from epistill.errors import EpistillError
from epistill.rollouts.engine import PromptRequest
from epistill.rollouts.model import LanguageModel
from epistill.rollouts.scoring import score_completions
from epistill.rollouts.stored_replies import StoredReplies
from epistill.rollouts.vllm_engine import VllmEngine
from epistill.rollouts.vllm_server import ServersLost
from tests.helpers.fake_vllm import FakeVllm, impatient_with
from tests.helpers.models import make_tiny_model

MODEL = make_tiny_model()
SAMPLING = SamplingConfig(max_new_tokens=6)
FAULTS = ["429", "500", "503", "garbage", "few_choices", "few_tokens", "no_logprobs", "nan", "drop"]


class OtherEnds(LanguageModel):
    """Not what the served model ends with."""

    @property
    def eos_ids(self):
        return frozenset({0})


def requests(count=6):
    return [PromptRequest(f"p{i}", (1 + i, 2, 3), i) for i in range(count)]


def pool_of(*servers, **settings):
    urls = [server if isinstance(server, str) else server.url for server in servers]
    settings = {"sleep": lambda seconds: None, "timeout": 20.0, **settings}
    return VllmEngine(urls, "m", MODEL, **settings)


def draw(pool, count=6, samples=3, sampling=SAMPLING, **more):
    return pool.sample(requests(count), samples=samples, sampling=sampling, seed=7, **more)


@pytest.fixture(scope="module")
def expected():
    with FakeVllm(MODEL) as server:
        return draw(pool_of(server))


def test_the_contract_of_the_sampler(expected):
    assert [(r.problem_id, r.sample) for r in expected] == [
        (q.problem_id, k) for q in requests() for k in range(3)
    ]
    scores = score_completions(
        MODEL, [r.prompt_ids for r in expected], [r.completion_ids for r in expected]
    )
    for rollout, score in zip(expected, scores, strict=True):
        torch.testing.assert_close(
            torch.tensor(rollout.logprobs), score.log_probs, atol=1e-4, rtol=0
        )
        ended = rollout.completion_ids[-1] in MODEL.eos_ids
        assert rollout.stop_reason == ("eos" if ended else "length")
        assert "<|im_end|>" not in rollout.text


def test_groups_are_spread_and_come_back_in_order(expected):
    with FakeVllm(MODEL) as one, FakeVllm(MODEL) as other:
        assert draw(pool_of(one, other)) == expected
        assert len(one.bodies) + len(other.bodies) == 6
        assert min(len(one.bodies), len(other.bodies)) >= 2


def test_no_more_requests_in_flight_than_allowed():
    with FakeVllm(MODEL) as server:
        draw(pool_of(server, in_flight=2), count=12)
        assert server.most <= 2


def test_every_setting_is_sent_and_seeds_differ():
    """What is missing, vLLM takes from generation_config.json (Qwen3: temperature .6, top-k 20)."""
    with FakeVllm(MODEL) as server:
        draw(pool_of(server))
        for body in server.bodies:
            neutral = {
                "temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "n": 3,
                "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0,
                "max_tokens": 6, "stop_token_ids": sorted(MODEL.eos_ids), "return_token_ids": True,
            }  # fmt: skip
            assert neutral.items() <= body.items()
        assert len({body["seed"] for body in server.bodies}) == 6


def test_greedy_responses_are_asked_once():
    with FakeVllm(MODEL) as server:
        rollouts = draw(pool_of(server), sampling=SamplingConfig(temperature=0.0, max_new_tokens=4))
        assert {body["n"] for body in server.bodies} == {1}
        assert len(rollouts) == 18
        assert rollouts[0].completion_ids == rollouts[2].completion_ids


# ---- faults


@pytest.mark.parametrize("fault", FAULTS)
def test_one_fault_is_retried(fault, expected):
    with FakeVllm(MODEL, faults=["ok", fault, "ok", fault]) as server:
        pool = pool_of(server)
        assert draw(pool) == expected
        assert pool.client.counts["retried"] == 2
        assert len(server.bodies) == 8


@pytest.mark.parametrize("fault", ["500", "few_tokens", "drop"])
def test_a_server_that_keeps_failing_leaves_its_work_to_the_others(fault, expected):
    with FakeVllm(MODEL, always=fault) as bad, FakeVllm(MODEL) as good:
        pool = pool_of(bad, good)
        assert draw(pool) == expected
        assert len(good.bodies) == 6
        lost = {server.url: server.lost for server in pool.client.servers}
        # One that answers badly may be good for another request; one that is silent is not asked.
        assert (lost[bad.url] is not None) == (fault == "drop")


def test_a_server_that_dies_in_the_middle(expected):
    with FakeVllm(MODEL, faults=["ok", "die"]) as dying, FakeVllm(MODEL) as other:
        answer, until = other.complete, time.monotonic() + 60

        def after_the_second_of_the_other(*asked):  # else a quick one might do all the work
            while len(dying.bodies) < 2 and time.monotonic() < until:
                time.sleep(0.01)
            return answer(*asked)

        other.complete = after_the_second_of_the_other
        pool = pool_of(dying, other, in_flight=1)
        assert draw(pool) == expected
        assert [server.lost is None for server in pool.client.servers] == [False, True]


def test_a_slow_server_is_left(expected, monkeypatch):
    with FakeVllm(MODEL, always="slow") as slow, FakeVllm(MODEL) as good:
        impatient_with(slow, monkeypatch)
        pool = pool_of(slow, good, attempts=2)
        assert draw(pool) == expected
        assert "no reply within" in pool.client.servers[0].lost


def test_pauses_grow_and_retry_after_is_honoured(expected):
    pauses = []
    with FakeVllm(MODEL, faults=["500", "500", "429"], retry_after="7") as server:
        pool = pool_of(server, sleep=pauses.append, in_flight=1)
        assert draw(pool) == expected
    assert pauses == [0.5, 1.0, 7.0]


def test_retry_after_may_be_a_date_and_is_bounded(expected):
    pauses = []
    date = formatdate(time.time() + 3600, usegmt=True)
    with FakeVllm(MODEL, faults=["429"], retry_after=date) as server:
        assert draw(pool_of(server, sleep=pauses.append)) == expected
    assert pauses == [60.0]


def test_one_clear_error_and_finished_work_is_reused(expected):
    with FakeVllm(MODEL, faults=["ok"] * 4, always="500") as server:
        pool = pool_of(server, in_flight=1, attempts=2)
        with pytest.raises(ServersLost, match=rf"{server.url}: status 500: fault 500") as caught:
            draw(pool)
        assert "\n" not in str(caught.value)
        assert len(server.bodies) == 6  # 4 answered, 1 tried twice, the last never begun
        server.always = "ok"
        assert draw(pool) == expected
        assert len(server.bodies) == 8
        assert pool.client.counts["reused"] == 4
        draw(pool)  # and forgotten once it has been handed over
        assert len(server.bodies) == 14


def test_finished_work_outlives_the_process(tmp_path, expected):
    path = tmp_path / "replies.jsonl"
    with FakeVllm(MODEL, faults=["ok"] * 4, always="500") as server:
        with pytest.raises(ServersLost):
            draw(pool_of(server, in_flight=1, attempts=1, finished_replies=StoredReplies(path)))
        with path.open("a") as out:
            out.write('["torn')  # killed while writing
        server.always = "ok"
        assert len(StoredReplies(path)) == 4
        assert draw(pool_of(server, finished_replies=StoredReplies(path))) == expected
        assert len(server.bodies) == 5 + 2
    assert draw(pool_of("http://127.0.0.1:9", finished_replies=StoredReplies(path))) == expected


def test_no_server_at_all_is_one_line():
    pool = pool_of("http://127.0.0.1:9", "http://127.0.0.1:19", attempts=2)
    with pytest.raises(
        ServersLost, match="expected at least one; start the servers again"
    ) as caught:
        draw(pool)
    assert str(caught.value).count("no connection") == 2


def test_a_lost_server_that_is_back_is_used_again(expected):
    with FakeVllm(MODEL) as server:
        pool = pool_of(server, attempts=1)
        port = server.http.server_address[1]
    with pytest.raises(ServersLost):
        draw(pool)
    with FakeVllm(MODEL, port=port):
        assert draw(pool) == expected


def test_a_refused_request_is_not_repeated():
    with FakeVllm(MODEL, always="400") as server:
        with pytest.raises(
            EpistillError, match="refused /v1/completions with status 400: fault 400"
        ):
            draw(pool_of(server, in_flight=1))
        assert len(server.bodies) == 1


def test_another_model_is_refused():
    with FakeVllm(MODEL) as server:
        other = OtherEnds(MODEL.network, MODEL.tokenizer, "m")
        pool = VllmEngine([server.url], "m", other)
        with pytest.raises(EpistillError, match="no end token of this model"):
            draw(pool, count=8, samples=8, sampling=SamplingConfig(max_new_tokens=40))
    with pytest.raises(EpistillError, match="one or more different addresses"):
        pool_of("http://a", "http://a")


def test_log_probs_before_temperature_are_refused():
    warm = SamplingConfig(max_new_tokens=4, temperature=0.6)
    with (
        FakeVllm(MODEL, raw=True) as server,
        pytest.raises(EpistillError, match="processed_logprobs"),
    ):
        draw(pool_of(server), sampling=warm)
    with FakeVllm(MODEL) as server:
        pool = pool_of(server)
        draw(pool, sampling=warm)
        assert len(server.bodies) == 6 + 2
        draw(pool, sampling=warm)  # seen once is enough
        assert len(server.bodies) == 12 + 2


@pytest.mark.parametrize("filters", [{"top_p": 0.9}, {"top_k": 5}])
def test_filters_are_refused(filters):
    with pytest.raises(EpistillError, match="gives log-probs after these filters"):
        draw(pool_of("http://127.0.0.1:9"), sampling=SamplingConfig(**filters))


# ---- scores


def test_scores_equal_the_models_own(expected):
    prompts = [r.prompt_ids for r in expected]
    completions = [r.completion_ids for r in expected]
    some = torch.arange(0, MODEL.vocabulary, 3)
    with FakeVllm(MODEL, faults=["nan", "few_tokens", "no_logprobs", "garbage"]) as server:
        found = pool_of(server, top_k=5).score(prompts, completions, mass_of=some.tolist())
    for rollout, score in zip(expected, found, strict=True):
        ids = torch.tensor([[*rollout.prompt_ids, *rollout.completion_ids]])
        with torch.no_grad():
            full = MODEL.network(ids).logits[0, len(rollout.prompt_ids) - 1 : -1].log_softmax(-1)
        chosen = full.gather(1, torch.tensor(rollout.completion_ids).unsqueeze(1)).squeeze(1)
        torch.testing.assert_close(score.log_probs.float(), chosen, atol=1e-5, rtol=0)
        # The bound of a truncated list, for a set of tokens of which some are not in it.
        top, truth = full.topk(5), full[:, some].exp().sum(1)
        listed = (top.values.exp() * torch.isin(top.indices, some)).sum(1)
        assert (score.mass >= listed - 1e-6).all()
        assert (truth >= score.mass - 1e-6).all()
        assert (truth <= score.mass + score.mass_slack + 1e-6).all()
        assert (score.mass_slack <= 1 - top.values.exp().sum(1) + 1e-6).all()


def test_scores_without_top_k_and_of_nothing():
    with FakeVllm(MODEL) as server:
        (one,) = pool_of(server).score([(1, 2)], [(3, 4, 5)], mass_of=[6])
        # Nothing is listed: any mass and any entropy may be.
        assert (one.mass.tolist(), one.mass_slack.tolist()) == ([0.0] * 3, [1.0] * 3)
        assert one.entropies.tolist() == [0.0] * 3
        assert one.entropy_slack.tolist() == pytest.approx([math.log(MODEL.vocabulary)] * 3)
        assert pool_of(server).score([], []) == []
        with pytest.raises(EpistillError, match="at least one token"):
            pool_of(server).score([()], [(1,)])


# ---- weights


def test_pushed_weights_answer_and_stamp(tmp_path):
    served, student = make_tiny_model(0), make_tiny_model(1)
    with FakeVllm(served) as one, FakeVllm(make_tiny_model(0)) as other:
        pool = pool_of(one, other, weights_folder=tmp_path / "weights")
        before = draw(pool, policy_version=3)
        assert {r.policy_version for r in before} == {3}
        gaps = pool.push_weights(student, 8)
        assert len(gaps) == 2
        assert max(gaps.values()) < 1e-5
        after = draw(pool, policy_version=9)  # nine is wished for, eight is what they have
        assert {r.policy_version for r in after} == {8}
        scores = score_completions(
            student, [r.prompt_ids for r in after], [r.completion_ids for r in after]
        )
        for rollout, score in zip(after, scores, strict=True):
            torch.testing.assert_close(
                torch.tensor(rollout.logprobs), score.log_probs, atol=1e-4, rtol=0
            )
        assert [p.name for p in sorted((tmp_path / "weights").iterdir())] == [
            "config.json", "model.safetensors",
        ]  # fmt: skip
        pool.push_weights(student, 10)
        assert {r.policy_version for r in draw(pool)} == {10}


def test_a_reload_that_does_nothing_is_seen(tmp_path):
    student = make_tiny_model(0)
    with FakeVllm(make_tiny_model(0)) as server:
        server.deaf = True
        pool = pool_of(server, weights_folder=tmp_path, attempts=1)
        pool.push_weights(student, 0)  # the same weights: nothing to see
        with torch.no_grad():
            for parameter in student.network.parameters():
                parameter.add_(0.003 * torch.randn_like(parameter))
        with pytest.raises(ServersLost, match="changed nothing"):
            pool.push_weights(student, 1)
    with FakeVllm(make_tiny_model(0)) as server:
        server.deaf = True
        pool = pool_of(server, weights_folder=tmp_path, attempts=1)
        with torch.no_grad():
            for parameter in student.network.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        with pytest.raises(ServersLost, match="differ from the trainer's by"):
            pool.push_weights(student, 1)


def test_a_restarted_server_waits_for_the_next_push(tmp_path):
    student = make_tiny_model(1)
    with FakeVllm(make_tiny_model(0)) as one, FakeVllm(make_tiny_model(0)) as other:
        pool = pool_of(one, other, weights_folder=tmp_path)
        pool.push_weights(student, 1)
        known = draw(pool)
        one.version = "default"  # it came back with the weights it was started with
        one.model.network.load_state_dict(make_tiny_model(0).network.state_dict())
        assert draw(pool) == known
        assert pool.client.servers[0].lost == "its weights have version default, expected 1"
        asked = len(one.bodies)
        assert draw(pool) == known
        assert len(one.bodies) == asked
        assert len(pool.push_weights(student, 2)) == 2
        draw(pool)
        assert len(one.bodies) > asked + 1


def test_a_server_lost_in_a_push(tmp_path):
    student = make_tiny_model(1)
    with FakeVllm(make_tiny_model(0)) as one, FakeVllm(make_tiny_model(0)) as other:
        pool = pool_of(one, other, weights_folder=tmp_path, attempts=2)
        one.stop()
        assert pool.push_weights(student, 1).keys() == {other.url}
        other.stop()
        with pytest.raises(ServersLost, match="no connection"):
            pool.push_weights(student, 2)


def test_pushing_needs_a_place_and_a_development_server(tmp_path):
    student = make_tiny_model(0)
    with FakeVllm(make_tiny_model(0)) as server:
        with pytest.raises(EpistillError, match="no weights_folder"):
            pool_of(server).push_weights(student, 0)
        server.control = lambda path, body: (404, {"error": {"message": "Not Found"}})
        with pytest.raises(EpistillError, match="VLLM_SERVER_DEV_MODE=1"):
            pool_of(server, weights_folder=tmp_path).push_weights(student, 0)


def test_adapters_are_merged_and_tied_heads_named(tmp_path):
    from safetensors.torch import load_file

    from epistill.config import Lora
    from epistill.rollouts.model import with_lora

    adapted = with_lora(make_tiny_model(0), Lora(rank=4, alpha=8.0))
    with torch.no_grad():
        for name, parameter in adapted.network.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    plain = make_tiny_model(0)
    with FakeVllm(make_tiny_model(0)) as server:
        pool = pool_of(server, weights_folder=tmp_path)
        assert max(pool.push_weights(adapted, 1).values()) < 1e-5
        written = load_file(tmp_path / "model.safetensors")
        assert written.keys() == plain.network.state_dict().keys()
        assert "lm_head.weight" in written  # vLLM on CPU would keep the old head otherwise
        rollouts = draw(pool)
    scores = score_completions(
        adapted, [r.prompt_ids for r in rollouts], [r.completion_ids for r in rollouts]
    )
    for rollout, score in zip(rollouts, scores, strict=True):
        torch.testing.assert_close(
            torch.tensor(rollout.logprobs), score.log_probs, atol=1e-4, rtol=0
        )
