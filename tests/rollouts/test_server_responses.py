"""Rules for words on servers: what comes out is what comes out in process."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter, defaultdict

import pytest
import torch
from scipy.stats import chisquare
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from epistill.config import SamplingConfig
from epistill.errors import EpistillError
from epistill.rollouts.engine import PromptRequest
from epistill.rollouts.prompts import render_prompt
from epistill.rollouts.ruled_draws import RuledDraws
from epistill.rollouts.sampler import sample
from epistill.rollouts.server_responses import server_responses
from epistill.rollouts.stored_replies import StoredReplies
from epistill.rollouts.vllm_engine import VllmEngine
from epistill.rollouts.vllm_server import ServersLost
from epistill.tasks.star_search import star_problem
from tests.helpers.fake_vllm import FakeVllm

RULES = {  # every place of both kinds
    "force-start": {"force": ("maybe@start",)},
    "force-line": {"force": ("wait@line",)},
    "force-after": {"force": ("maybe@start", "1*hmm wait@after:dust")},
    "force-before": {"force": ("2*wait try@before:</think>",)},
    "force-before-end": {
        "force": ("1*check@before:<end>",),
        "block": ("</think>@until:answer", "check", "dust", "gold", "so"),
    },
    "block": {"block": ("so", "MAYBE")},
    "block-start": {"block": ("so@start", "maybe@start")},
    "block-line": {"block": ("so@line",)},
    "block-after": {"block": ("</think>@after:\\d",)},
    "block-until": {"block": ("</think>@until:gold",)},
    "block-end": {"block": ("<end>@until:check",)},
    "block-lexicon": {"block": ("so", "lexicon:paper-en")},
    "both": {"force": ("hmm@after:dust",), "block": ("so", "</think>@until:gold")},
}


def asked(model, count=4):
    problems = [star_problem(3 + i % 3, 2 + i % 2, 0, "ruled", i) for i in range(count)]
    return [
        PromptRequest(p.id, render_prompt(model.tokenizer, p.messages).ids, i)
        for i, p in enumerate(problems)
    ]


@pytest.fixture
def served(lab_model):
    with FakeVllm(lab_model) as server:
        yield server


def engine_on(server, model, **settings):
    settings = {"sleep": lambda seconds: None, "timeout": 60.0, **settings}
    return VllmEngine([server.url], "m", model, **settings).unscored()


def draw(engine, model, count=4, samples=2, **settings):
    sampling = SamplingConfig(**{"max_new_tokens": 60, **settings})
    return engine.sample(asked(model, count), samples=samples, sampling=sampling, seed=3)


def told(rollouts):
    return [(r.problem_id, r.sample, r.completion_ids, r.forced, r.stop_reason, r.text)
            for r in rollouts]  # fmt: skip


# ---- greedy: token by token


@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
def test_greedy_responses_are_those_in_process(served, lab_model, rules):
    settings = {"temperature": 0.0, "max_new_tokens": 40, **rules}
    greedy = SamplingConfig(**settings)
    mine = sample(lab_model, asked(lab_model), samples=2, sampling=greedy, seed=3)
    theirs = draw(engine_on(served, lab_model), lab_model, **settings)
    assert told(theirs) == told(mine)
    assert any(any(r.forced) for r in mine), "the rule did nothing"
    assert all(math.isnan(p) for r in theirs for p in r.logprobs)


def test_the_limit_is_reached_at_every_place(served, lab_model):
    """In the middle of forced words, at a refused token, at the end token too."""
    rules = {"force": ("1*hmm wait try@after:dust",), "block": ("so", "<end>@until:check")}
    for limit in range(1, 24):
        greedy = SamplingConfig(temperature=0.0, max_new_tokens=limit, **rules)
        mine = sample(lab_model, asked(lab_model, 1), samples=1, sampling=greedy, seed=3)
        settings = {"temperature": 0.0, "max_new_tokens": limit, **rules}
        theirs = draw(engine_on(served, lab_model), lab_model, 1, 1, **settings)
        assert told(theirs) == told(mine), limit


# ---- draws: exact probabilities, over all that can be drawn and all that a server can answer


WORDS = {"a": 0, "b": 1, "c": 2, "<e>": 3}
_words = Tokenizer(WordLevel(WORDS, unk_token="<e>"))
_words.pre_tokenizer = WhitespaceSplit()
TOKENIZER = PreTrainedTokenizerFast(tokenizer_object=_words, eos_token="<e>")
END, LENGTH = 3, 3
TOY = {
    "start": {"force": ("c@start",)},
    "after": {"force": ("1*c@after:b",)},
    "before": {"force": ("2*b c@before:<end>",)},
    "word": {"block": ("b@after:a",)},
    "words": {"block": ("b@after:a", "c@after:a")},
    "line": {"block": ("b@line", "c@line")},
    "until": {"block": ("<end>@until:c",)},
    "end": {"block": ("<end>",)},
    "token": {"force": ("1*b@before:c",)},
    "all": {"force": ("b@after:a",), "block": ("c@start",)},
}


class Asked(Exception):
    """What is written, the tokens that may not come next, how many may."""


def shares(written, refused):
    """(token, probability) of what may come next: a model that looks at all that is written."""
    logits = [
        math.sin(1 + 5 * i + sum((k + 2) * w for k, w in enumerate(written, 3))) for i in range(4)
    ]
    allowed = {i: math.exp(2 * x) for i, x in enumerate(logits) if i not in refused}
    return [(i, x / sum(allowed.values())) for i, x in allowed.items()]


def replies(written, refused, most):
    """Every reply of a server and its probability."""
    for token, p in shares(written, refused):
        if token == END or most == 1:
            yield (token,), p
        else:
            for rest, q in replies((*written, token), (), most - 1):
                yield (token, *rest), p * q


def explore(respond, answers):
    """Probability of every outcome; `respond` raises Asked where its answers end."""
    found, started = defaultdict(float), [((), 1.0)]
    while started:
        given, p = started.pop()
        try:
            found[respond(iter(given))] += p
        except Asked as place:
            started += [((*given, answer), p * q) for answer, q in answers(*place.args)]
    return found


def in_process(settings):
    """As `RuledDraws.settle` has a token written: the draw, and again without what is refused."""

    def respond(given):
        draws = RuledDraws(TOKENIZER, {END}, settings, 1)
        (row,) = draws.rows
        while len(row.ids) < LENGTH and END not in row.ids:
            token = draws.write(row)
            try:
                refused = next(token)
                while True:
                    for answer in given:
                        refused = token.send(answer)
                        break
                    else:
                        raise Asked(tuple(row.ids), tuple(refused))
            except StopIteration:
                pass
        return tuple(row.ids), tuple(row.decided)

    return explore(respond, shares)


def on_servers(settings):
    def respond(given):
        def request(ids, *, samples, sampling, seed, refused):
            assert samples == 1
            return ids, refused, sampling.max_new_tokens

        def run(asked):
            (one,) = asked
            for answer in given:
                return [([{"ids": answer}], None)]
            raise Asked(*one)

        drawing = {"samples": 1, "sampling": settings, "seed": 0}
        prompt = [PromptRequest("", ())]
        (((reply,), _),) = server_responses(prompt, drawing, TOKENIZER, {END}, request, run)
        return tuple(reply["ids"]), reply["forced"]

    return explore(respond, replies)


@pytest.mark.parametrize("rules", TOY.values(), ids=TOY)
def test_every_response_is_as_probable_as_in_process(rules):
    settings = SamplingConfig(max_new_tokens=LENGTH, **rules)
    mine, theirs = in_process(settings), on_servers(settings)
    assert sum(mine.values()) == pytest.approx(1)
    assert len(mine) > 4
    assert any(any(forced) for _, forced in mine)
    assert theirs == pytest.approx(mine, abs=1e-12)


# ---- draws: the whole way, seeded


def test_samples_differ_after_the_same_forced_words(served, lab_model):
    """They share their requests and nothing else: each is a draw from the model's distribution."""
    count, tokenizer = 600, lab_model.tokenizer
    request = asked(lab_model, 3)[2]
    maybe = tokenizer.convert_tokens_to_ids("maybe")
    with torch.no_grad():
        logits = lab_model.network(torch.tensor([[*request.ids, maybe]])).logits[0, -1].double()
    p = (logits / 2).softmax(-1)
    banned = int(p.argmax())
    rules = {"force": ("maybe@start",), "block": (tokenizer.decode([banned]),)}
    sampling = SamplingConfig(temperature=2.0, max_new_tokens=3, **rules)
    rollouts = engine_on(served, lab_model).sample(
        [request], samples=count, sampling=sampling, seed=3
    )
    assert {r.completion_ids[0] for r in rollouts} == {maybe}
    assert p[banned] > 0.1, "nothing to block"
    p[banned] = 0
    p /= p.sum()
    counts = Counter(r.completion_ids[1] for r in rollouts)
    assert counts[banned] == 0
    common = [i for i in range(len(p)) if p[i] * count > 5]
    found, expected = [counts[i] for i in common], [float(p[i]) * count for i in common]
    found, expected = [*found, count - sum(found)], [*expected, count - sum(expected)]
    assert len(common) > 3
    assert chisquare(found, expected).pvalue > 1e-3
    # Asked once for all, and once more for all who were refused the same.
    refused = sum(r.forced[1] for r in rollouts)
    assert [body["n"] for body in served.bodies[2:4]] == [count, refused]


@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
def test_no_two_requests_have_the_same_draws(served, lab_model, rules):
    draw(engine_on(served, lab_model), lab_model, 3, 3, max_new_tokens=20, **rules)
    assert len({body["seed"] for body in served.bodies}) == len(served.bodies) >= 3


def test_a_rule_that_never_holds_changes_nothing(served, lab_model):
    engine = engine_on(served, lab_model)
    plain, bodies = draw(engine, lab_model), served.bodies[:]
    served.bodies.clear()
    ruled = draw(engine, lab_model, force=("wait@after:never written",), block=("Feedback",))
    assert [dataclasses.replace(r, forced=None) for r in ruled] == [
        dataclasses.replace(r, logprobs=s.logprobs) for r, s in zip(plain, ruled, strict=True)
    ]
    assert not any(any(r.forced) for r in ruled)
    by_text = sorted(map(json.dumps, bodies))
    assert sorted(map(json.dumps, served.bodies)) == by_text


@pytest.mark.parametrize("filters", [{"top_p": 0.9}, {"top_k": 5}])
def test_filters_are_those_of_the_server_after_its_bias(served, lab_model, filters):
    rollouts = draw(engine_on(served, lab_model), lab_model, block=("so", "maybe"), **filters)
    assert any(any(r.forced) for r in rollouts)
    assert not any({"so", "maybe"} & set(r.text.split()) for r in rollouts)
    biased = [body for body in served.bodies if "logit_bias" in body]
    assert biased
    assert all(filters.items() <= body.items() for body in served.bodies)


def test_many_cuts_do_not_ask_for_the_whole_again_and_again(served, lab_model):
    """120 tokens with a forced word after each sixth: 120 * (1 + 1 + 1/2 + 1/3 ...) at most."""
    (rollout,) = draw(
        engine_on(served, lab_model), lab_model, 1, 1, max_new_tokens=120,
        force=("hmm@after:(?<!hmm)(?: (?!hmm)\\S+){5}",), block=("</think>", "<end>"),
    )  # fmt: skip
    assert len(rollout.completion_ids) == 120
    assert sum(rollout.forced) > 15
    turns = len(served.bodies)
    assert turns > 10
    whole = sum(body["max_tokens"] for body in served.bodies)
    assert whole <= sum(math.ceil(120 / max(1, turn)) for turn in range(turns))


# ---- servers that fail


def test_work_that_was_finished_is_not_asked_for_again(served, lab_model, tmp_path):
    rules = RULES["both"]
    expected, whole = draw(engine_on(served, lab_model), lab_model, **rules), len(served.bodies)
    served.bodies.clear()
    settings = {"in_flight": 1, "attempts": 1}
    path = tmp_path / "replies.jsonl"
    engine = engine_on(served, lab_model, **settings, finished_replies=StoredReplies(path))
    for done in (6, 9):  # lost in later turns, twice: by this process, then by another
        served.faults, served.always = ["ok"] * (done - len(StoredReplies(path))), "500"
        with pytest.raises(ServersLost, match="status 500"):
            draw(engine, lab_model, **rules)
        assert len(StoredReplies(path)) == done
        served.always = "ok"
    engine = engine_on(served, lab_model, **settings, finished_replies=StoredReplies(path))
    assert told(draw(engine, lab_model, **rules)) == told(expected)
    assert engine.client.counts["reused"] == 9
    assert len(served.bodies) == whole + 2


@pytest.mark.parametrize("fault", ["429", "garbage", "few_tokens", "nan", "drop"])
def test_failures_are_tried_again(lab_model, fault):
    rules = RULES["both"]
    with FakeVllm(lab_model) as server:
        expected = draw(engine_on(server, lab_model), lab_model, **rules)
    faults = ["ok"] * 5 + [fault, "ok", "ok", fault]
    with FakeVllm(lab_model, faults=faults) as server:
        engine = engine_on(server, lab_model)
        assert told(draw(engine, lab_model, **rules)) == told(expected)
        assert engine.client.counts["retried"] == 2


def test_a_server_without_logit_bias_is_one_line(served, lab_model, monkeypatch):
    answer = served.answer
    with monkeypatch.context() as patched:
        patched.setattr(served, "answer", lambda body: answer({**body, "logit_bias": None}))
        with pytest.raises(EpistillError, match="in spite of a logit_bias") as caught:
            draw(engine_on(served, lab_model), lab_model, temperature=0.0, block=("so",))
    assert "\n" not in str(caught.value)
    complete = served.complete

    def refuse(handler, body, fault):
        return complete(handler, body, "400" if "logit_bias" in body else fault)

    monkeypatch.setattr(served, "complete", refuse)
    with pytest.raises(EpistillError, match="refused /v1/completions with status 400") as caught:
        draw(engine_on(served, lab_model), lab_model, temperature=0.0, block=("so",))
    assert "\n" not in str(caught.value)


def test_log_probs_that_are_read_know_no_rules(served, lab_model):
    scored = VllmEngine([served.url], "m", lab_model)
    with pytest.raises(EpistillError, match="no log-probs of what rules decide"):
        draw(scored, lab_model, block=("so",))
    with pytest.raises(EpistillError, match="expected no stop"):
        draw(scored.unscored(), lab_model, block=("so",), stop=("gold",))
    with pytest.raises(EpistillError, match="cannot write 'Foo'"):
        draw(scored.unscored(), lab_model, force=("Foo@start",))
    assert served.bodies == []
