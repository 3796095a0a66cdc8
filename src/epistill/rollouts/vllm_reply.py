"""Reading the replies of a vLLM server: strict, because a short reply must never pass. No torch.

Enters: the JSON of `/v1/completions`. Leaves: plain lists (so that they can be kept as JSON), or
`UnusableReply` where the reply is not what was asked for.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

from epistill.errors import EpistillError
from epistill.rollouts.vllm_client import UnusableReply

# The server writes -9999 where a log-prob is minus infinity.
LEAST_LOG_PROB = -9999.0


def read_samples(
    reply: Any, *, prompt: Sequence[int], samples: int, limit: int, ends: Collection[int]
) -> list[dict[str, Any]]:
    """The responses of one request.

    Args:
        reply: The server's JSON.
        prompt: The ids that were sent; a server that read others is refused.
        samples: Responses asked for.
        limit: `max_tokens` asked for.
        ends: Token ids that end a response.

    Returns:
        For each response ids, logprobs and stop ("eos" or "length").

    Raises:
        UnusableReply: Fewer responses, tokens or log-probs than asked.
        EpistillError: It stopped at a token that ends nothing here: another model is served.
    """
    choices = _choices(reply, samples)
    found: list[dict[str, Any]] = []
    for choice in choices:
        read = choice.get("prompt_token_ids")
        if read is not None and list(read) != list(prompt):
            raise EpistillError(
                "the vLLM server read other prompt tokens than were sent; expected it to serve the "
                "model whose tokenizer made them"
            )
        ids, stop = choice.get("token_ids"), choice.get("finish_reason")
        if not isinstance(ids, list) or not ids:
            raise UnusableReply("a reply without token ids")
        logprobs = (choice.get("logprobs") or {}).get("token_logprobs")
        if not isinstance(logprobs, list) or len(logprobs) != len(ids):
            raise UnusableReply(
                f"a reply of {len(ids)} tokens with "
                f"{len(logprobs) if isinstance(logprobs, list) else 'no'} log-probs"
            )
        if stop == "length" and len(ids) < limit:
            raise UnusableReply(f"a reply cut at {len(ids)} of {limit} tokens")
        if stop == "stop" and ids[-1] not in ends:
            raise EpistillError(
                f"the vLLM server ended a response at token {ids[-1]}, which is no end token of "
                "this model; expected it to serve the same model"
            )
        if stop not in ("stop", "length"):
            raise UnusableReply(f"a reply that ended with {stop!r}")
        found.append(
            {
                "ids": [int(i) for i in ids],
                "logprobs": [_log_prob(value) for value in logprobs],
                "stop": "eos" if stop == "stop" else "length",
            }
        )
    return found


def read_scores(reply: Any, *, ids: Sequence[int], start: int, top_k: int) -> dict[str, Any]:
    """Log-probs of given tokens.

    Args:
        reply: The server's JSON.
        ids: Prompt and completion, as sent.
        start: Where the completion begins, at least 1 (nothing predicts the first token).
        top_k: Most likely tokens asked for at each position.

    Returns:
        For tokens start..: log_probs [T], top_ids [T][k], top_log_probs [T][k], most likely first.

    Raises:
        UnusableReply: A position, the given token, or one of the top k is missing.
    """
    (choice,) = _choices(reply, 1)
    positions = choice.get("prompt_logprobs")
    if not isinstance(positions, list) or len(positions) != len(ids):
        raise UnusableReply(
            f"{len(positions) if isinstance(positions, list) else 'no'} scored positions for "
            f"{len(ids)} tokens"
        )
    found: dict[str, list[Any]] = {"log_probs": [], "top_ids": [], "top_log_probs": []}
    for place in range(start, len(ids)):
        entries = positions[place]
        if not isinstance(entries, dict) or str(ids[place]) not in entries:
            raise UnusableReply(f"position {place} came without the log-prob of its token")
        try:
            ranked = sorted((int(e["rank"]), int(i), e["logprob"]) for i, e in entries.items())
        except (KeyError, TypeError, ValueError) as error:
            raise UnusableReply(f"position {place} came without ranks") from error
        top = [(i, _log_prob(value)) for rank, i, value in ranked if rank <= top_k][:top_k]
        if len(top) < top_k:
            raise UnusableReply(f"position {place} came with {len(top)} of {top_k} likely tokens")
        found["log_probs"].append(_log_prob(entries[str(ids[place])]["logprob"]))
        found["top_ids"].append([i for i, _ in top])
        found["top_log_probs"].append([value for _, value in top])
    return found


def read_top(reply: Any) -> dict[str, float]:
    """The most likely first tokens and their log-probs, by name."""
    (choice,) = _choices(reply, 1)
    try:
        return {name: _log_prob(v) for name, v in choice["logprobs"]["top_logprobs"][0].items()}
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise UnusableReply("a reply without its likely tokens") from error


def _choices(reply: Any, count: int) -> list[dict[str, Any]]:
    choices = reply.get("choices") if isinstance(reply, dict) else None
    if not isinstance(choices, list) or not all(isinstance(c, dict) for c in choices):
        raise UnusableReply("a reply without choices")
    if len(choices) != count:
        raise UnusableReply(f"{len(choices)} responses where {count} were asked")
    return sorted(choices, key=lambda choice: choice.get("index", 0))


def _log_prob(value: Any) -> float:
    if not isinstance(value, int | float) or math.isnan(value) or value > 1e-3:
        raise UnusableReply(f"a log-prob of {value!r}")
    return max(float(value), LEAST_LOG_PROB)
