"""Scores of several completions of one long prompt, which a vLLM server computes once.

`/v1/completions` leaves the prefix cache aside where prompt log-probs are asked for. vLLM 0.32's
`/inference/v1/generate` may be told to read it, but of the tokens that it found there it has no
log-probs: entries left out, or memory that nobody wrote. So a reply counts only if it says that
the cache held less than the prompt; all others are asked for again in the plain way. Among those
are replies that the server itself cannot write (status 400), because that memory is no number.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, FailFast, Field

from epistill.rollouts.engine import Ids
from epistill.rollouts.vllm_api import NEUTRAL, read_reply, read_scores, score_bytes, score_request
from epistill.rollouts.vllm_client import Client
from epistill.rollouts.vllm_server import Refused, Server, ServerRequest, UnusableReply

GENERATE = "/inference/v1/generate"
# Tokens from which a prompt is scored in two turns. The cache holds whole blocks: 16 tokens on a
# GPU, 128 on a CPU.
LONG_PROMPT = 256


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)


class _Details(_Part):
    cached_tokens: Annotated[int, Field(ge=0)]


class _Usage(_Part):
    prompt_tokens: int
    prompt_tokens_details: _Details | None = None


class _Generated(_Part):
    prompt_logprobs: Annotated[list[Any], FailFast()]  # what nobody wrote is of no type
    usage: _Usage


class _Listing(_Part):
    paths: Mapping[str, Any]


def prefix_request(
    model: str, ids: Ids, start: int, *, top_k: int, vocabulary: int, salt: str
) -> ServerRequest:
    """`score_request` from the prefix cache, optional.

    Args:
        model, ids, start, top_k, vocabulary: Its own.
        salt: Cache entries of another salt are not read: what a server sampled is in its cache,
            completion and all.
    """
    sampling = {**NEUTRAL, "max_tokens": 1, "temperature": 0.0, "prompt_logprobs": top_k}
    # Without detokenize=False vLLM 0.32 spells memory that nobody wrote, and ends.
    sampling |= {"skip_reading_prefix_cache": False, "detokenize": False}
    body = {"model": model, "token_ids": list(ids), "cache_salt": salt, "sampling_params": sampling}

    def read(content: bytes) -> dict[str, Any]:
        reply = read_reply(_Generated, content)
        entries, usage = reply.prompt_logprobs, reply.usage
        if usage.prompt_tokens_details is None:
            raise UnusableReply("a reply that does not say how much the cache held")
        cached = usage.prompt_tokens_details.cached_tokens
        # The entry of the first scored token is made at the last one of the prompt.
        if cached >= start:
            raise UnusableReply(f"{cached} tokens from the cache where {start} are not scored")
        # One model runner leaves the cached tokens' entries unwritten, the other leaves them out.
        left_out = len(ids) - len(entries)
        if left_out not in (0, cached) or usage.prompt_tokens != len(ids):
            raise UnusableReply(f"{len(entries)} scored positions for {len(ids)} tokens")
        scored = json.dumps({"prompt_logprobs": entries[start - left_out :]}).encode()
        return read_scores(scored, ids, start, top_k=top_k, vocabulary=vocabulary)

    return ServerRequest(
        body,
        read,
        score_bytes(len(ids), top_k),
        path=GENERATE,
        optional=True,
        near=hash(ids[:start]),
    )


def offers_prefix(client: Client, server: Server, probe: ServerRequest) -> bool:
    """Whether it lists the path and says how much its cache held; asked once.

    Args:
        client, server: Whom to ask.
        probe: A `prefix_request` shorter than any block of a cache, so that it cannot harm.
    """
    if server.by_prefix is None:
        server.by_prefix = False
        with suppress(Refused, UnusableReply):
            listing = read_reply(_Listing, client.call(server, "/openapi.json"))
            if GENERATE in listing.paths:
                probe.read(client.call(server, GENERATE, probe.body))
                server.by_prefix = True
    return server.by_prefix


def run_scores(
    client: Client,
    run: Callable[[Sequence[ServerRequest]], list[tuple[Any, Any]]],
    prompts: Sequence[Ids],
    completions: Sequence[Ids],
    *,
    salt: str,
    **settings: Any,
) -> list[Any]:
    """Replies to score requests; those for a long prompt of several go through the cache.

    Args:
        client: Talks to the servers.
        run: Carries requests out.
        prompts, completions: [N].
        salt: `prefix_request`'s.
        **settings: `score_request`'s model, top_k and vocabulary.

    Raises:
        ServersLost: No server could answer.
        Refused: Every server refused a plain request.
    """
    rows = [((*p, *c), len(p)) for p, c in zip(prompts, completions, strict=True)]
    replies: list[Any] = [None] * len(rows)
    groups: dict[Ids, list[int]] = {}
    for i, prompt in enumerate(prompts):
        groups.setdefault(tuple(prompt), []).append(i)
    shared = [group for ids, group in groups.items() if len(group) > 1 and len(ids) >= LONG_PROMPT]

    def keep(chosen: Sequence[int], requests: Sequence[ServerRequest]) -> None:
        for i, (reply, _) in zip(chosen, run(requests), strict=True):
            replies[i] = reply

    def in_turns(group: Sequence[int]) -> None:
        """The first one fills the cache, the others read it."""
        for turn in (group[:1], group[1:]):
            keep(turn, [ask(ids=rows[i][0], start=rows[i][1]) for i in turn])

    ask = partial(prefix_request, salt=salt, **settings)
    probe = ask(ids=(0, 0), start=1)
    if shared and all(offers_prefix(client, server, probe) for server in client.alive):
        # Few prompts at a time: a server's cache need not hold them all.
        at_once = client.in_flight * len(client.alive) // max(map(len, shared))
        with ThreadPoolExecutor(max(1, at_once)) as threads:
            list(threads.map(in_turns, shared))
    rest = [i for i, reply in enumerate(replies) if reply is None]
    keep(rest, [score_request(ids=rows[i][0], start=rows[i][1], **settings) for i in rest])
    return replies
