"""Replies that are no answers: one line each, bounded in bytes and seconds; others go on."""

from __future__ import annotations

import gzip
import json
import time

import pytest

from epistill.config import SamplingConfig
from epistill.errors import EpistillError
from epistill.rollouts.engine import PromptRequest
from epistill.rollouts.vllm_api import ServedModels, WeightInfo, read_reply, sample_request
from epistill.rollouts.vllm_engine import VllmEngine
from epistill.rollouts.vllm_server import Refused, ServersLost, UnusableReply, server_words
from tests.helpers.fake_vllm import FakeVllm, impatient_with, nobody_answers
from tests.helpers.models import make_tiny_model

MODEL = make_tiny_model()
SAMPLING = SamplingConfig(max_new_tokens=3)
REQUEST = PromptRequest("p", (1, 2, 3))
END = min(MODEL.eos_ids)
DEEP = b"[" * 100_000


def engine_on(*servers, **settings):
    settings = {"attempts": 1, "timeout": 20.0, "sleep": lambda seconds: None, **settings}
    return VllmEngine([server.url for server in servers], "m", MODEL, top_k=1, **settings)


def draw(engine, samples=1):
    return engine.sample([REQUEST], samples=samples, sampling=SAMPLING, seed=0)


def response(**changed):
    """A good response, spoiled."""
    return {
        "index": 0,
        "token_ids": [5, END],
        "prompt_token_ids": [1, 2, 3],
        "finish_reason": "stop",
        "logprobs": {"token_logprobs": [-1.0, -1.0]},
        **changed,
    }


def body(*choices):
    return json.dumps({"choices": list(choices)}).encode()


def scored(first):
    """Positions of one scored token after one prompt token."""
    return body({"index": 0, "prompt_logprobs": [None, first]})


ANY = {
    "empty": b"",
    "page": b"<html>busy</html>",
    "deep": DEEP,
    "deep_inside": b'{"choices":' + DEEP,
    "half": b'{"choices": [',
    "not_utf8": b'{"choices": "\xff"}',
    "list": b"[1]",
    "number": b'{"choices": 5}',
    "nan": b'{"choices": NaN}',
    "long_number": b'{"choices": ' + b"9" * 10_000 + b"}",
    "no_choice": body(),
    "two_choices": body(response(), response(index=1)),
}
SAMPLED = {
    "index": response(index="a"),
    "no_tokens": response(token_ids=[], logprobs={"token_logprobs": []}),
    "words": response(token_ids=["a", "b"]),
    "fractions": response(token_ids=[5.5, END]),
    "truths": response(token_ids=[True, END]),
    "outside": response(token_ids=[MODEL.vocabulary, END]),
    "negative": response(token_ids=[-1, END]),
    "far_outside": response(token_ids=[10**30, END]),
    "nan_log_prob": response(logprobs={"token_logprobs": [float("nan"), -1.0]}),
    "infinite_log_prob": response(logprobs={"token_logprobs": [float("inf"), -1.0]}),
    "positive_log_prob": response(logprobs={"token_logprobs": [0.5, -1.0]}),
    "log_prob_in_words": response(logprobs={"token_logprobs": ["-1", "-1"]}),
    "no_log_probs": response(logprobs=None),
    "log_probs_in_a_list": response(logprobs=[-1.0, -1.0]),
    "too_few_log_probs": response(logprobs={"token_logprobs": [-1.0]}),
    "prompt_is_a_number": response(prompt_token_ids=5),
    "no_reason": response(finish_reason=None),
    "other_reason": response(finish_reason="abort"),
    "cut_early": response(finish_reason="length"),
    "too_long": response(token_ids=[5] * 4, logprobs={"token_logprobs": [-1.0] * 4}),
}
SCORED = {
    "a_number": body({"prompt_logprobs": 5}),
    "short": body({"prompt_logprobs": [None]}),
    "no_token": scored({"6": {"logprob": -1.0, "rank": 1}}),
    "outside": scored({"5": {"logprob": -1.0, "rank": 1}, "99999": {"logprob": -2.0, "rank": 2}}),
    "words": scored({"five": {"logprob": -1.0, "rank": 1}}),
    "nan_log_prob": scored({"5": {"logprob": float("nan"), "rank": 1}}),
    "rank": scored({"5": {"logprob": -1.0, "rank": "1"}}),
    "top_missing": scored({"5": {"logprob": -1.0, "rank": 7}}),
}
REPLIES = ANY | {name: body(choice) for name, choice in SAMPLED.items()}


def refuses(call, kind=ServersLost):
    with pytest.raises(kind) as caught:
        call()
    told = str(caught.value)
    assert "\n" not in told
    assert told.isprintable()
    assert len(told) < 700
    return told


@pytest.mark.parametrize("name", REPLIES)
def test_what_is_no_response_is_one_line(name):
    with FakeVllm(MODEL) as bad, FakeVllm(MODEL) as good:
        bad.complete = lambda *request: (200, REPLIES[name])
        assert f"({bad.url}: " in refuses(lambda: draw(engine_on(bad)))
        both = engine_on(bad, good)
        assert draw(both) == draw(engine_on(good))
        assert both.client.counts["moved"] == 1


@pytest.mark.parametrize("name", [*SCORED, *ANY])
def test_what_is_no_score_is_one_line(name):
    with FakeVllm(MODEL) as bad:
        bad.complete = lambda *request: (200, (ANY | SCORED)[name])
        refuses(lambda: engine_on(bad).score([(1,)], [(5,)]))


def test_what_the_spoiled_replies_were_made_from_is_right():
    with FakeVllm(MODEL) as server:
        server.complete = lambda *request: (200, body(response()))
        assert draw(engine_on(server))[0].completion_ids == (5, END)
        server.complete = lambda *request: (200, scored({"5": {"logprob": -1.0, "rank": 1}}))
        assert engine_on(server).score([(1,)], [(5,)])[0].log_probs.tolist() == [-1.0]


def test_minus_infinity_is_the_least_log_prob():
    spoiled = response(logprobs={"token_logprobs": [float("-inf"), -1.0]})
    with FakeVllm(MODEL) as server:
        server.complete = lambda *request: (200, body(spoiled))
        assert draw(engine_on(server))[0].logprobs == (-9999.0, -1.0)


@pytest.mark.parametrize(
    ("spoiled", "told"),
    [
        ({"token_ids": [5, 6]}, "expected it to serve the same model"),
        ({"prompt_token_ids": [1, 2, 4]}, "expected it to serve the model whose tokenizer"),
    ],
)
def test_another_model_is_refused(spoiled, told):
    with FakeVllm(MODEL) as server:
        server.complete = lambda *request: (200, body(response(**spoiled)))
        assert told in refuses(lambda: draw(engine_on(server)), Refused)


# ---- whole exchanges


def dripping(handler):
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(b" ")
        time.sleep(0.05)


def endless(handler):
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(b" " * 2**16)
        handler.server.sent += 2**16


def endless_head(handler):
    handler.send_response(200)
    while True:
        handler.wfile.write(b"X-More: " + b"x" * 2**10 + b"\r\n")


def no_http(handler):
    handler.wfile.write(DEEP + b"\r\n\r\n")


def answer(status, place=None):
    """No body; a Location on the other server ("elsewhere"), or any other."""

    def act(handler):
        handler.send_response(status)
        if place is not None:
            handler.send_header("Location", place.replace("elsewhere", handler.server.elsewhere))
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return act


def packed(handler):
    content = gzip.compress(b" " * 2**22)
    handler.send_response(200)
    handler.send_header("Content-Encoding", "gzip")
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content)


def cut_short(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", "100")
    handler.end_headers()
    handler.wfile.write(b"{")
    handler.close_connection = True


EXCHANGES = [
    (dripping, "no reply within"),
    (endless, "a reply of more than"),
    (endless_head, "no connection"),
    (no_http, "no connection"),
    *(
        (answer(status, place), f"status {status}: a redirect, which is not followed")
        for status in (301, 302, 303, 307, 308)
        for place in ("elsewhere/v1/completions", "file:///etc/passwd", "/v1/completions")
    ),
    (answer(999), "status 999: no reason given"),
    (packed, "a compressed reply"),
    (cut_short, "no connection"),
]


@pytest.mark.parametrize(("act", "told"), EXCHANGES)
def test_an_exchange_ends_and_the_other_server_goes_on(act, told, monkeypatch):
    def complete(handler, *request):
        try:
            act(handler)
        except OSError:
            handler.close_connection = True  # the client gave up
        return 0, None

    with FakeVllm(MODEL) as bad, FakeVllm(MODEL) as good:
        bad.complete, bad.http.elsewhere, bad.http.sent = complete, good.url, 0
        if act is dripping:  # the others end by themselves
            impatient_with(bad, monkeypatch)
        assert told in refuses(lambda: draw(engine_on(bad)))
        assert bad.http.sent < 2**26  # what the kernel's buffers take is sent too
        assert not good.paths  # nobody was sent there, nor the key
        assert draw(engine_on(bad, good)) == draw(engine_on(good))


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
@pytest.mark.parametrize("words", [DEEP, b'{"error": 5}', b"\x1b[2J\r\n\xff" * 999, b""])
def test_a_refusal_is_one_line_and_the_other_server_goes_on(status, words):
    with FakeVllm(MODEL) as bad, FakeVllm(MODEL) as good:
        bad.complete = lambda *request: (status, words)
        assert f"with status {status}: " in refuses(lambda: draw(engine_on(bad)), Refused)
        assert draw(engine_on(bad, good)) == draw(engine_on(good))


@pytest.mark.parametrize("depth", [300, 900, 5_000, 100_000])
def test_words_of_any_depth_are_shown(depth):
    nested = b"[" * depth + b"]" * depth
    assert len(server_words(b'{"error": {"message": ' + nested + b"}}")) == 300


@pytest.mark.parametrize("kind", [ServedModels, WeightInfo])
@pytest.mark.parametrize("name", ANY)
def test_what_a_server_says_of_itself_is_checked(kind, name):
    refuses(lambda: read_reply(kind, ANY[name]), UnusableReply)


def test_a_version_that_no_push_gave_is_shown_on_one_line(tmp_path):
    with FakeVllm(make_tiny_model(0)) as server:
        engine = engine_on(server, weights_folder=tmp_path)
        engine.push_weights(MODEL, 1)
        server.version = "\x1b]0;\n" * 500
        refuses(lambda: draw(engine), EpistillError)


@pytest.mark.parametrize(("tokens", "seconds"), [(3, 20.0), (20_480, 4096.0)])
def test_a_reply_of_many_tokens_has_the_time_that_they_take(tokens, seconds, monkeypatch):
    limits = nobody_answers(monkeypatch)
    how = {"samples": 8, "sampling": SamplingConfig(max_new_tokens=tokens), "seed": 0}
    asked = sample_request("m", (1, 2, 3), ends={END}, vocabulary=60, **how)
    with (
        FakeVllm(MODEL) as server,
        pytest.raises(ServersLost, match=f"no reply within {seconds:g}"),
    ):
        engine_on(server).client.run([asked], {})
    assert limits == [seconds]
