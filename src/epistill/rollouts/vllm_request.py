"""What is asked of a vLLM server: bodies of `POST /v1/completions` with their readers. No torch.

Enters: token ids and settings. Leaves: `ServerRequest`s. Every sampling setting is sent, also those
that are off: what is missing, a server fills from the model's generation_config.json.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from epistill.config import SamplingConfig
from epistill.errors import EpistillError
from epistill.rollouts.vllm_client import COMPLETIONS, Client, Server, ServerRequest
from epistill.rollouts.vllm_reply import read_samples, read_scores, read_top

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


def sample_job(
    model: str,
    prompt: Sequence[int],
    *,
    samples: int,
    sampling: SamplingConfig,
    seed: int,
    ends: Collection[int],
    weights: str,
) -> ServerRequest:
    """Sample `samples` responses to one prompt.

    Raises:
        EpistillError: Filters are on.
    """
    if sampling.top_p < 1.0 or sampling.top_k is not None:
        raise EpistillError(
            f"top_p={sampling.top_p:g}, top_k={sampling.top_k}: a vLLM server gives log-probs "
            "after these filters; expected top_p=1 and no top_k, or the in-process engine"
        )
    body = {
        **_body(model, prompt),
        "n": samples,
        "max_tokens": sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "seed": seed,
        "logprobs": 0,
        "stop_token_ids": sorted(ends),
    }

    def read(reply: Any) -> Any:
        return read_samples(
            reply, prompt=prompt, samples=samples, limit=sampling.max_new_tokens, ends=ends
        )

    return ServerRequest(body, read, weights)


def score_job(
    model: str, ids: Sequence[int], start: int, *, top_k: int, weights: str
) -> ServerRequest:
    """Score the tokens from `start` on."""
    body = {
        **_body(model, ids),
        "max_tokens": 1,
        "temperature": 0.0,
        "prompt_logprobs": top_k,
    }
    return ServerRequest(
        body, lambda reply: read_scores(reply, ids=ids, start=start, top_k=top_k), weights
    )


def check_temperature(
    client: Client, server: Server, model: str, prompt: Sequence[int], temperature: float
) -> None:
    """See from replies that log-probs are those at the sampling temperature.

    At temperature t the gap between two tokens' log-probs is that at temperature 1, over t. A
    server without `--logprobs-mode processed_logprobs` gives the same gap at both.

    Raises:
        EpistillError: They are not.
    """

    def spread(at: float) -> float:
        body = {
            **_body(model, prompt),
            "max_tokens": 1,
            "temperature": at,
            "seed": 0,
            "logprobs": PROBED,
            "return_tokens_as_token_ids": True,
        }
        top = sorted(read_top(client.call(server, COMPLETIONS, body)).values())[-PROBED:]
        return top[-1] - top[0]

    plain, tempered = spread(1.0), spread(temperature)
    if abs(tempered - plain / temperature) > abs(tempered - plain):
        raise EpistillError(
            f"vLLM server {server.url} gives log-probs before temperature; expected it to be "
            "started with --logprobs-mode processed_logprobs"
        )
    server.tempered = True


def _body(model: str, ids: Sequence[int]) -> dict[str, Any]:
    return {"model": model, "prompt": list(ids), "return_token_ids": True, **NEUTRAL}
