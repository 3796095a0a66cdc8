"""What vLLM servers are asked and what they may answer: bodies and replies. No torch.

Readers turn a reply into plain lists (so that they can be kept as JSON), or raise. Every sampling
setting is sent, also those that are off: what is missing, a server fills from the model's
generation_config.json. A short or strange reply must never pass: types are strict, and so are
counts, token ids and log-probs.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    FailFast,
    Field,
    ValidationError,
)

from epistill.config import SamplingConfig
from epistill.errors import EpistillError
from epistill.rollouts.vllm_client import Client
from epistill.rollouts.vllm_server import (
    COMPLETIONS,
    Refused,
    Server,
    ServerRequest,
    UnusableReply,
    shown_reply,
)

NEUTRAL = {
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "skip_special_tokens": False,
}
PROBED = 5  # likely tokens looked at to tell one log-prob mode from the other
# The server writes -9999 where a log-prob is minus infinity.
LEAST_LOG_PROB = -9999.0
SLOWEST_TOKENS_PER_SECOND = 5.0  # that a server with many requests writes of one response
# A reply has one entry (a token with its log-prob, rank and spelling) per token that was asked for.
BYTES_PER_ENTRY, BYTES_BESIDE = 1024, 2**20


def _log_prob(value: float) -> float:
    if math.isnan(value) or value > 1e-3:
        raise ValueError(f"a log-prob of {value!r}")
    return max(value, LEAST_LOG_PROB)


def _in_vocabulary(token: int, info: Any) -> int:
    if not 0 <= token < (info.context or {})["vocabulary"]:
        raise ValueError(f"token {token} is outside the vocabulary")
    return token


LogProb = Annotated[float, AfterValidator(_log_prob)]
Token = Annotated[int, AfterValidator(_in_vocabulary)]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)


class _LogProbs(_Part):
    token_logprobs: Annotated[list[LogProb], FailFast()]


class _TopLogProbs(_Part):
    top_logprobs: Annotated[list[dict[str, LogProb]], FailFast(), Field(min_length=1)]


class _Sample(_Part):
    index: int = 0
    token_ids: Annotated[list[Token], FailFast(), Field(min_length=1)]
    prompt_token_ids: list[Token] | None = None
    finish_reason: Literal["stop", "length"]
    logprobs: _LogProbs


class _Listed(_Part):
    logprob: LogProb
    rank: int


class _Scored(_Part):
    prompt_logprobs: Annotated[list[dict[Token, _Listed] | None], FailFast()]


class _First(_Part):
    logprobs: _TopLogProbs


Kind = TypeVar("Kind")
Reply = TypeVar("Reply", bound=BaseModel)


class _Choices(_Part, Generic[Kind]):
    choices: Annotated[list[Kind], FailFast()]


class _ServedModel(_Part):
    id: str
    max_model_len: int | None = None


class ServedModels(_Part):
    """Reply of `GET /v1/models`."""

    data: Annotated[list[_ServedModel], FailFast()]


class WeightInfo(_Part):
    """Reply of `GET /weight_info`."""

    weight_version: str


def read_reply(kind: type[Reply], content: bytes, vocabulary: int = 0) -> Reply:
    """A reply of that kind.

    Raises:
        UnusableReply: It is another; says what was found where.
    """
    try:
        return kind.model_validate_json(content, context={"vocabulary": vocabulary})
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        told = f"{place}: {first['msg']}" if place else first["msg"]
        raise UnusableReply(f"an unusable reply ({shown_reply(told)})") from error


def _read_choices(kind: type[Kind], content: bytes, count: int, vocabulary: int = 0) -> list[Kind]:
    choices = read_reply(_Choices[kind], content, vocabulary).choices
    if len(choices) != count:
        raise UnusableReply(f"{len(choices)} responses where {count} were asked")
    return choices


def _most_bytes(entries: int) -> int:
    return BYTES_BESIDE + BYTES_PER_ENTRY * entries


def check_sampling(sampling: SamplingConfig, scored: bool) -> None:
    """Refuse what servers cannot do (`EpistillError`): less where log-probs are to be read."""
    if sampling.stop:
        raise EpistillError(
            f"stop={list(sampling.stop)}: a vLLM server's reply must end with an end token, or it "
            "may be of another model; expected no stop, or the in-process engine"
        )
    if scored and (sampling.top_p < 1.0 or sampling.top_k is not None):
        raise EpistillError(
            f"top_p={sampling.top_p:g}, top_k={sampling.top_k}: a vLLM server gives log-probs "
            "after these filters; expected top_p=1 and no top_k, or the in-process engine"
        )
    if scored and sampling.has_rules:
        raise EpistillError(
            f"force={list(sampling.force)}, block={list(sampling.block)}: a vLLM server gives no "
            "log-probs of what rules decide; expected neither, responses whose log-probs nobody "
            "reads (`VllmEngine.unscored`), or the in-process engine"
        )


def sample_request(
    model: str,
    prompt: Sequence[int],
    *,
    samples: int,
    sampling: SamplingConfig,
    seed: int,
    ends: Collection[int],
    vocabulary: int,
    refused: Sequence[int] = (),
) -> ServerRequest:
    """Sample `samples` responses to one prompt; of each are read ids, logprobs and stop.

    At temperature t `refused` tokens are exp(100 / t) times less likely, the most that the API
    takes; a reply that begins with one is not taken. Of `sampling` the rules are left aside: they
    are applied in `server_responses`.
    """
    limit = sampling.max_new_tokens
    body = _body(model, prompt, limit, sampling.temperature)
    body |= {"n": samples, "seed": seed, "logprobs": 0, "stop_token_ids": sorted(ends)}
    if sampling.top_p < 1.0 or sampling.top_k is not None:
        body |= {"top_p": sampling.top_p, "top_k": sampling.top_k or -1}
    if refused:
        body["logit_bias"] = {str(token): -100.0 for token in refused}

    def read(content: bytes) -> list[dict[str, Any]]:
        choices = _read_choices(_Sample, content, samples, vocabulary)
        choices = sorted(choices, key=lambda choice: choice.index)
        for choice in choices:
            if choice.token_ids[0] in refused:
                raise Refused(
                    f"the vLLM server wrote token {choice.token_ids[0]} in spite of a logit_bias "
                    "of -100; expected it to apply that, or the in-process engine"
                )
        return [_read_sample(choice, prompt, limit, ends) for choice in choices]

    most_bytes = _most_bytes(samples * (limit + len(prompt)))
    return ServerRequest(body, read, most_bytes, limit / SLOWEST_TOKENS_PER_SECOND)


def _read_sample(
    choice: _Sample, prompt: Sequence[int], limit: int, ends: Collection[int]
) -> dict[str, Any]:
    """A response of as many log-probs as tokens, that ended as responses of this model do."""
    ids, logprobs, stop = choice.token_ids, choice.logprobs.token_logprobs, choice.finish_reason
    if choice.prompt_token_ids is not None and choice.prompt_token_ids != list(prompt):
        raise Refused(
            "the vLLM server read other prompt tokens than were sent; expected it to serve the "
            "model whose tokenizer made them"
        )
    if len(logprobs) != len(ids):
        raise UnusableReply(f"a reply of {len(ids)} tokens with {len(logprobs)} log-probs")
    if stop == "length" and len(ids) < limit:
        raise UnusableReply(f"a reply cut at {len(ids)} of {limit} tokens")
    if len(ids) > limit:
        raise UnusableReply(f"a reply of {len(ids)} tokens where at most {limit} were asked")
    if stop == "stop" and ids[-1] not in ends:
        raise Refused(
            f"the vLLM server ended a response at token {ids[-1]}, which is no end token of "
            "this model; expected it to serve the same model"
        )
    return {"ids": ids, "logprobs": logprobs, "stop": "eos" if stop == "stop" else "length"}


def score_request(
    model: str, ids: Sequence[int], start: int, *, top_k: int, vocabulary: int
) -> ServerRequest:
    """Score the tokens from `start` on, at least 1 (nothing predicts the first token).

    Of T tokens are read log_probs [T] and the most likely tokens of each position, most likely
    first: top_ids [T][k], top_log_probs [T][k].
    """
    body = {**_body(model, ids, 1, 0.0), "prompt_logprobs": top_k}

    def read(content: bytes) -> dict[str, Any]:
        (scored,) = _read_choices(_Scored, content, 1, vocabulary)
        positions = scored.prompt_logprobs
        if len(positions) != len(ids):
            raise UnusableReply(f"{len(positions)} scored positions for {len(ids)} tokens")
        return _found(positions[start:], ids, start, top_k)

    return ServerRequest(body, read, score_bytes(len(ids), top_k))


def score_bytes(tokens: int, top_k: int) -> int:
    """Longest reply with scores."""
    return _most_bytes(tokens * (top_k + 2))


def read_scores(
    content: bytes, ids: Sequence[int], start: int, *, top_k: int, vocabulary: int
) -> dict[str, Any]:
    """What `score_request` reads, from the entries of the tokens from `start` on alone."""
    return _found(read_reply(_Scored, content, vocabulary).prompt_logprobs, ids, start, top_k)


def _found(
    entries: Sequence[dict[int, _Listed] | None], ids: Sequence[int], start: int, top_k: int
) -> dict[str, Any]:
    found: dict[str, list[Any]] = {"log_probs": [], "top_ids": [], "top_log_probs": []}
    for place, entry in zip(range(start, len(ids)), entries, strict=True):
        listed = entry or {}
        if ids[place] not in listed:
            raise UnusableReply(f"position {place} came without the log-prob of its token")
        ranked = sorted((one.rank, token, one.logprob) for token, one in listed.items())
        top = [(token, nats) for rank, token, nats in ranked if rank <= top_k][:top_k]
        if len(top) < top_k:
            raise UnusableReply(f"position {place} came with {len(top)} of {top_k} likely tokens")
        found["log_probs"].append(listed[ids[place]].logprob)
        found["top_ids"].append([token for token, _ in top])
        found["top_log_probs"].append([nats for _, nats in top])
    return found


def check_temperature(
    client: Client, server: Server, model: str, prompt: Sequence[int], temperature: float
) -> None:
    """See from replies that log-probs are those at the sampling temperature.

    At temperature t the gap between two tokens' log-probs is that at temperature 1, over t. A
    server without `--logprobs-mode processed_logprobs` gives the same gap at both.

    Raises:
        Refused: They are not.
    """

    def spread(at: float) -> float:
        body = _body(model, prompt, 1, at)
        body |= {"seed": 0, "logprobs": PROBED, "return_tokens_as_token_ids": True}
        (first,) = _read_choices(_First, client.call(server, COMPLETIONS, body), 1)
        top = sorted(first.logprobs.top_logprobs[0].values())[-PROBED:]
        if len(top) < 2:
            raise UnusableReply("a reply without its likely tokens")
        return top[-1] - top[0]

    plain, tempered = spread(1.0), spread(temperature)
    if abs(tempered - plain / temperature) > abs(tempered - plain):
        raise Refused(
            f"vLLM server {server.url} gives log-probs before temperature; expected it to be "
            "started with --logprobs-mode processed_logprobs"
        )
    server.tempered = True


def _body(model: str, ids: Sequence[int], limit: int, temperature: float) -> dict[str, Any]:
    what = {"model": model, "prompt": list(ids), "return_token_ids": True}
    return {**what, **NEUTRAL, "max_tokens": limit, "temperature": temperature}
