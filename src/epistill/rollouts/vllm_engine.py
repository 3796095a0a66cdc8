"""vLLM servers as the engine: sampling, scoring and new weights, over HTTP, by token ids.

vLLM runs in processes of its own (docs/vllm.md says how to start them). Where several processes
train together, the first one asks the servers for all, and an error is the same error in every one.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Unpack

import numpy as np

from epistill.errors import EpistillError
from epistill.records import Rollout, rollout_from_json, rollout_to_json
from epistill.rollouts.engine import Drawing, Ids, PromptRequest, TokenScores
from epistill.rollouts.model import LanguageModel
from epistill.rollouts.sampler import decode_text
from epistill.rollouts.server_responses import server_responses
from epistill.rollouts.top_k_scores import top_k_scores
from epistill.rollouts.vllm_api import (
    check_sampling,
    check_temperature,
    sample_request,
    score_request,
)
from epistill.rollouts.vllm_client import Client
from epistill.rollouts.vllm_prefix import run_scores
from epistill.rollouts.vllm_server import Server, ServerRequest, ServersLost
from epistill.rollouts.vllm_weights import (
    check_version,
    probe_ids,
    probe_log_probs,
    push_to,
    write_weights,
)
from epistill.world import current_world


class VllmEngine:
    """Several vLLM servers that serve the same model.

    Args:
        urls: Their addresses, e.g. "http://127.0.0.1:8000".
        served_name: The name they serve it under (`--served-model-name`).
        model: What they serve, as it is known here: tokenizer, end tokens, sizes. Its weights are
            not read (`load_without_weights`).
        top_k: Most likely tokens listed at each scored position; at most the servers'
            `--max-logprobs` (20 unless they were started with more).
        max_positions: Longest request that the servers take; None for the model's.
        identity: What decides its numbers.
        weights_folder: Where pushed weights are written; every server reads the same path.
        push_every: Steps between two pushes; above 1 the policy that samples is a stale one.
        finished_replies: By key, until the next call begins; `StoredReplies` keeps them on disk.
        client_settings: Those of `Client`, as `in_flight`, `attempts`, `timeout`, `keeps`.
    """

    def __init__(
        self,
        urls: Sequence[str],
        served_name: str,
        model: LanguageModel,
        *,
        top_k: int = 0,
        max_positions: int | None = None,
        identity: Mapping[str, Any] = MappingProxyType({}),
        weights_folder: Path | None = None,
        push_every: int = 1,
        finished_replies: MutableMapping[str, Any] | None = None,
        **client_settings: Any,
    ) -> None:
        urls = [url.strip().rstrip("/") for url in urls]
        if not urls or len(set(urls)) < len(urls):
            raise EpistillError(f"vLLM servers {urls}; expected one or more different addresses")
        self.client = Client([Server(url) for url in urls], **client_settings)
        self.close = self.client.close
        self.model, self.tokenizer, self.eos_ids = model, model.tokenizer, model.eos_ids
        self._served_name, self._vocabulary = served_name, model.vocabulary
        self._top_k = min(top_k, self._vocabulary)
        self.identity: Mapping[str, Any] = {**identity, "top_k": self._top_k}
        self.max_positions = model.max_positions if max_positions is None else max_positions
        self._folder, self._push_every = weights_folder, push_every
        self._finished: MutableMapping[str, Any] = (
            {} if finished_replies is None else finished_replies
        )
        self._handed_over = False
        self._version: int | None = None
        self._probe: tuple[float, ...] | None = None
        self._push_gap: float | None = None
        self._ahead: _Ahead | None = None
        self._scored = True
        self._background = ThreadPoolExecutor(1, thread_name_prefix="ahead")

    def sample(
        self, requests: Sequence[PromptRequest], **drawing: Unpack[Drawing]
    ) -> list[Rollout]:
        """Sample responses, one HTTP request per prompt, more under rules; without entropies.

        The draws are the server's own: named by the seed, but not the in-process sampler's, and on
        a GPU not the same bits for every batch.

        Args:
            requests: Prompts.
            **drawing: As for every engine, but `sampling` must have top-p and top-k off, because
                the server gives log-probs after them and a `Rollout` holds those before, and no
                rules (`unscored` may have both); and where weights were pushed, the version that
                the server itself names after its reply is stamped instead of `policy_version`.

        Raises:
            ServersLost: No server could answer.
            EpistillError: One refused, or log-probs are not those at the sampling temperature.
        """
        ahead, self._ahead = self._ahead, None

        def written() -> list[dict[str, Any]]:
            if ahead is None or ahead.asked != (requests, drawing):
                found = self._ask(requests, drawing)
            else:
                assert ahead.replies is not None  # of rank 0, which alone is here
                found = ahead.replies.result()
            return [rollout_to_json(one) for one in self._rollouts(requests, drawing, found)]

        return [rollout_from_json(row) for row in _by_first(written)]

    def sample_ahead(self, requests: Sequence[PromptRequest], **drawing: Unpack[Drawing]) -> None:
        """Have responses written while the caller does something else.

        The next `sample` with the same arguments waits for them, and raises what went wrong.
        """
        replies: Future[Any] | None = None
        if current_world().first:
            replies = self._background.submit(self._ask, requests, drawing)
        self._ahead = _Ahead((requests, drawing), replies)

    def unscored(self) -> VllmEngine:
        """The same servers for responses whose log-probs nobody reads: filters, rules may be on.

        The log-probs are NaN. What is being written ahead stays with the first.
        """
        engine = copy.copy(self)
        engine._ahead, engine._scored = None, False
        return engine

    @property
    def is_ahead(self) -> bool:
        """Whether responses are being written that nobody has asked for yet."""
        return self._ahead is not None

    def _ask(self, requests: Sequence[PromptRequest], drawing: Drawing) -> list[tuple[Any, Any]]:
        """The replies to each request, with the version that wrote them."""
        sampling = drawing["sampling"]
        check_sampling(sampling, self._scored)
        self._before_call()
        if requests and sampling.temperature not in (0.0, 1.0):
            self.client.on_each(
                lambda server: check_temperature(
                    self.client, server, self._served_name, requests[0].ids, sampling.temperature
                ),
                [server for server in self.client.alive if not server.tempered],
            )
        ask = partial(
            sample_request, self._served_name, ends=self.eos_ids, vocabulary=self._vocabulary
        )
        found = server_responses(requests, drawing, self.tokenizer, self.eos_ids, ask, self._run)
        self._handed_over = True
        return found

    def _rollouts(
        self, requests: Sequence[PromptRequest], drawing: Drawing, found: list[tuple[Any, Any]]
    ) -> list[Rollout]:
        return [
            Rollout(
                problem_id=request.problem_id,
                sample=k,
                prompt_ids=request.ids,
                completion_ids=tuple(reply["ids"]),
                logprobs=tuple(p if self._scored else math.nan for p in reply["logprobs"]),
                forced=reply.get("forced"),
                stop_reason=reply["stop"],
                text=decode_text(self.tokenizer, self.eos_ids, reply["ids"]),
                policy_version=drawing.get("policy_version", 0) if version is None else version,
            )
            for request, (replies, version) in zip(requests, found, strict=True)
            for k in range(drawing["samples"])
            for reply in (replies[k % len(replies)],)
        ]

    def score(
        self, prompts: Sequence[Ids], completions: Sequence[Ids], *, mass_of: Ids | None = None
    ) -> list[TokenScores]:
        """Log-probs of given completions, with the bounds of `top_k_scores`.

        A long prompt of several is computed once where the servers let it (`run_scores`).

        Raises:
            ServersLost: No server could answer.
            EpistillError: One refused, or an empty prompt or completion.
        """
        if not all(map(len, [*prompts, *completions])):
            raise EpistillError(
                "an empty prompt or completion to score; expected at least one token in each"
            )

        def ask() -> list[dict[str, Any]]:
            self._before_call()
            how: Any = {"vocabulary": self._vocabulary, "salt": f"scores of {self._version}"}
            how |= {"model": self._served_name, "top_k": self._top_k}
            replies = run_scores(self.client, self._run, prompts, completions, **how)
            self._handed_over = True
            return replies

        return [
            top_k_scores(
                tokens,
                np.array(reply["log_probs"]),
                np.array(reply["top_ids"], dtype=np.int64).reshape(len(tokens), self._top_k),
                np.array(reply["top_log_probs"]).reshape(len(tokens), self._top_k),
                mass_of=mass_of,
                vocabulary=self._vocabulary,
            )
            for tokens, reply in zip(completions, _by_first(ask), strict=True)
        ]

    def refresh(self, student: LanguageModel, step: int, *, now: bool = False) -> float | None:
        """Push the student's weights if it is time.

        Every `push_every` steps, counted from the run's first, whoever pushed in between.

        Args:
            student: The trainer's weights.
            step: Optimiser batches they have seen.
            now: It is time unless these are there already.

        Returns:
            If they are there, the largest gap that `push_weights` saw.

        Raises:
            ServersLost: No server took them.
        """
        due = self._version is None or now or step % self._push_every == 0
        if due and self._version != step:
            self._push_gap = max(self.push_weights(student, step).values())
        return self._push_gap if self._version == step else None

    def push_weights(self, student: LanguageModel, version: int) -> dict[str, float]:
        """Give every server new weights; servers that were lost and answer again come back.

        All processes of a run call it together. What is being written ahead is waited for.

        Args:
            student: Written to `weights_folder`, adapters merged.
            version: Optimiser steps these weights have seen.

        Returns:
            By address of each server that has them, its probe's mean gap in nats per token.

        Raises:
            EpistillError: No `weights_folder`, no disk, or no server that took them.
        """
        if self._folder is None:
            raise EpistillError(
                "the servers have no weights_folder; expected a path that the trainer and every "
                "server can read"
            )
        ids = probe_ids(len(self.tokenizer))
        if self._ahead is not None:
            current_world().wait_for_first(self._ahead.replies)
        write_weights(student, self._folder)
        expected = probe_log_probs(student, ids)
        push = partial(
            push_to,
            self.client,
            folder=self._folder,
            version=version,
            probe=score_request(self._served_name, ids, 1, top_k=0, vocabulary=self._vocabulary),
            expected=expected,
            expected_before=self._probe,
        )

        def pushed() -> dict[str, float]:
            if not (gaps := self.client.on_each(push, self.client.servers)):
                raise self.client.lost_error()
            return gaps

        self._finished.clear()
        try:
            return _by_first(pushed)
        finally:
            self._version, self._probe = version, expected

    def request_counts(self) -> dict[str, int]:
        """Servers in use, and how often requests were repeated or moved, over the run so far."""
        return {
            "servers_in_use": len(self.client.alive),
            "requests_retried": self.client.counts["retried"],
            "requests_moved": self.client.counts["moved"],
        }

    def _before_call(self) -> None:
        """Forget the replies of a call that ended well; ask lost servers whether they are back."""
        if self._handed_over:
            self._finished.clear()
        self._handed_over = False

        def ask(server: Server) -> None:
            self.client.call(server, "/health", seconds=5)
            server.lost, server.tempered, server.by_prefix = None, False, None

        if self._version is None:  # with pushed weights only a push brings them back
            self.client.on_each(ask, [s for s in self.client.servers if s.lost is not None])

    def _run(self, asked: Sequence[ServerRequest]) -> list[tuple[Any, Any]]:
        def version(server: Server) -> int | None:
            return None if self._version is None else check_version(self.client, server)

        return self.client.run(asked, self._finished, version)


@dataclass(frozen=True, slots=True)
class _Ahead:
    """What `sample_ahead` was asked, and on rank 0 what will come of it."""

    asked: tuple[Sequence[PromptRequest], Drawing]
    replies: Future[Any] | None


def _by_first(ask: Callable[[], Any]) -> Any:
    """What rank 0 was told, in every process; ServersLost in all of them too."""

    def told() -> dict[str, Any]:
        try:
            return {"value": ask(), "lost": None}
        except ServersLost as error:
            return {"value": None, "lost": str(error)}

    answer = current_world().on_first(told, slow=True)
    if answer["lost"] is not None:
        raise ServersLost(answer["lost"])
    return answer["value"]
