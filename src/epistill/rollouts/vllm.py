"""vLLM servers as an engine: sampling, scoring and new weights, over HTTP, by token ids.

Enters: prompts as ids, as in `sampler.sample`. Leaves: the same `Rollout`s, or log-probs of given
completions. vLLM runs in processes of its own (docs/vllm.md says how to start them); its version
never constrains this package's torch or transformers.
"""

from __future__ import annotations

from collections.abc import Collection, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from epistill.errors import EpistillError
from epistill.records import Rollout
from epistill.rollouts.engine import Drawing
from epistill.rollouts.model import LanguageModel
from epistill.rollouts.sampler import PromptRequest, decode_text
from epistill.rollouts.vllm_client import Client, Server, ServerRequest, UnusableReply
from epistill.rollouts.vllm_push import (
    WEIGHTS,
    Push,
    probe_ids,
    probe_log_probs,
    push_to,
    served_version,
    write_weights,
)
from epistill.rollouts.vllm_request import check_temperature, sample_job, score_job
from epistill.seeds import derive_seed


@dataclass(frozen=True, slots=True)
class ScoredTokens:
    """Scores of one completion at temperature 1, in nats, float32 on the CPU.

    A token y that is not in the list has p(y) <= exp(top_log_probs[-1]), and all such tokens
    together have `tail_mass`. So the mass of any set of tokens lies between its listed mass and
    that plus `tail_mass`.

    Attributes:
        log_probs: [T], of each completion token.
        top_ids: [T, k], the most likely tokens at its position, most likely first.
        top_log_probs: [T, k].
    """

    log_probs: Tensor
    top_ids: Tensor
    top_log_probs: Tensor

    @property
    def tail_mass(self) -> Tensor:
        """[T]: probability of all tokens that are not listed."""
        return (1 - self.top_log_probs.double().exp().sum(-1)).clamp(min=0).float()


class VllmPool:
    """Several vLLM servers that serve the same model.

    Args:
        urls: Their addresses, e.g. "http://127.0.0.1:8000".
        model: The name they serve it under (`--served-model-name`).
        tokenizer: The model's; turns ids into text.
        ends: Token ids that end a response (`LanguageModel.eos_ids`).
        weights_folder: Where pushed weights are written; every server reads the same path.
        kept: Finished work by name; None keeps it in memory until the call that asked for it is
            complete. `KeptReplies` keeps it on disk.
        client_settings: `in_flight`, `attempts`, `pause`, `timeout`, `api_key` of `Client`.
    """

    def __init__(
        self,
        urls: Sequence[str],
        model: str,
        *,
        tokenizer: PreTrainedTokenizerBase,
        ends: Collection[int],
        weights_folder: Path | None = None,
        kept: MutableMapping[str, Any] | None = None,
        **client_settings: Any,
    ) -> None:
        if not urls or len(set(urls)) < len(urls):
            raise EpistillError(
                f"vLLM servers {list(urls)}; expected one or more different addresses"
            )
        self.client = Client([Server(url.rstrip("/")) for url in urls], **client_settings)
        self._model = model
        self._tokenizer = tokenizer
        self._ends = frozenset(ends)
        self._folder = weights_folder
        self._kept: MutableMapping[str, Any] = {} if kept is None else kept
        self._forget = kept is None
        self._version: int | None = None
        self._expected: tuple[float, ...] | None = None

    def close(self) -> None:
        """Close the connections."""
        self.client.close()

    # ---- sampling

    def sample(
        self, requests: Sequence[PromptRequest], **drawing: Unpack[Drawing]
    ) -> list[Rollout]:
        """Sample responses; the contract of `sampler.sample`, without entropies.

        The draws are the server's own: named by the seed, but not the in-process sampler's, and on
        a GPU not the same bits for every batch.

        Args:
            requests: Prompts; each is one HTTP request for all its samples.
            **drawing: `samples`, responses per prompt; `sampling`, whose top-p and top-k must be
                off, because the server gives log-probs after them and a `Rollout` holds those
                before; `seed`; `policy_version`, stamped on each rollout unless weights were
                pushed: then the stamp is the version that the server itself names after its reply.

        Raises:
            EpistillError: No server could answer, one refused, or its log-probs are not those at
                the sampling temperature.
        """
        samples, sampling, seed = drawing["samples"], drawing["sampling"], drawing["seed"]
        policy_version = drawing.get("policy_version", 0)
        # Greedy responses are all the same, and the server refuses to repeat them.
        drawn = 1 if sampling.temperature == 0.0 else samples
        jobs = [
            sample_job(
                self._model,
                request.ids,
                samples=drawn,
                sampling=sampling,
                seed=derive_seed("sample", seed, request.draw, request.ids),
                ends=self._ends,
                weights=str(self._version),
            )
            for request in requests
        ]
        self._revive()
        if requests and sampling.temperature not in (0.0, 1.0):
            self._check_temperature(requests[0].ids, sampling.temperature)
        answers = self._run(jobs)
        return [
            self._rollout(request, k, replies[k % drawn], policy_version, version)
            for request, (replies, version) in zip(requests, answers, strict=True)
            for k in range(samples)
        ]

    def _rollout(
        self,
        request: PromptRequest,
        sample: int,
        reply: dict[str, Any],
        policy_version: int,
        version: int | None,
    ) -> Rollout:
        ids = tuple(reply["ids"])
        return Rollout(
            problem_id=request.problem_id,
            sample=sample,
            prompt_ids=request.ids,
            completion_ids=ids,
            logprobs=tuple(reply["logprobs"]),
            stop_reason=reply["stop"],
            text=decode_text(self._tokenizer, self._ends, ids),
            policy_version=policy_version if version is None else version,
        )

    # ---- scoring

    def score(
        self,
        prompts: Sequence[Sequence[int]],
        completions: Sequence[Sequence[int]],
        *,
        top_k: int = 0,
    ) -> list[ScoredTokens]:
        """Log-probs of given completions under given prompts, at temperature 1.

        Args:
            prompts: One per row, at least one token each.
            completions: One per row, at least one token each.
            top_k: Most likely tokens listed at each position; at most the server's
                `--max-logprobs` (20 unless it was started with more).

        Raises:
            EpistillError: No server could answer, or one refused.
        """
        self._revive()
        jobs: list[ServerRequest] = []
        for prompt, completion in zip(prompts, completions, strict=True):
            if not prompt or not completion:
                raise EpistillError(
                    "an empty prompt or completion to score; expected at least one token in each"
                )
            ids = (*prompt, *completion)
            jobs.append(self._score_job(ids, len(prompt), top_k))
        found: list[ScoredTokens] = []
        for reply, _ in self._run(jobs):
            length = len(reply["log_probs"])
            found.append(
                ScoredTokens(
                    torch.tensor(reply["log_probs"]),
                    torch.tensor(reply["top_ids"], dtype=torch.long).view(length, top_k),
                    torch.tensor(reply["top_log_probs"]).view(length, top_k),
                )
            )
        return found

    def _score_job(self, ids: tuple[int, ...], start: int, top_k: int) -> ServerRequest:
        return score_job(self._model, ids, start, top_k=top_k, weights=str(self._version))

    # ---- weights

    def push_weights(self, source: LanguageModel | Path, version: int) -> Push:
        """Give every server new weights; servers that were lost and answer again come back.

        Args:
            source: The student, written to the pool's `weights_folder` (adapters merged); or a
                folder that holds model.safetensors already.
            version: Optimiser steps these weights have seen.

        Raises:
            EpistillError: No `weights_folder`, no disk, or no server that took them.
        """
        folder = source if isinstance(source, Path) else self._folder
        if folder is None:
            raise EpistillError(
                "the servers have no weights_folder; expected a path that the trainer and every "
                "server can read"
            )
        ids = probe_ids(len(self._tokenizer))
        expected = None
        if isinstance(source, LanguageModel):
            write_weights(source, folder)
            expected = probe_log_probs(source, ids)
        elif not (folder / WEIGHTS).is_file():
            raise EpistillError(f"no {WEIGHTS} in {folder}; expected weights in one file")

        probe = self._score_job(ids, 1, 0)
        gaps = self._each(
            lambda server: push_to(
                self.client,
                server,
                folder,
                version,
                probe,
                expected=expected,
                expected_before=self._expected,
            ),
            self.client.servers,
        )
        self._version, self._expected = version, expected
        if self._forget:
            self._kept.clear()
        if not gaps:
            raise self.client.lost_error()
        known = [gap for gap in gaps.values() if gap is not None]
        return Push(version, tuple(gaps), max(known) if known else None)

    def _each(self, act: Any, servers: Sequence[Server]) -> dict[str, Any]:
        """Do something on several servers at once; those that fail after retries are lost."""

        def tried(server: Server) -> tuple[bool, Any]:
            try:
                if server.lost is not None:
                    return True, act(server)
                return True, self.client.patiently(lambda: act(server))
            except UnusableReply as failure:
                server.lost = str(failure)
                return False, None

        with ThreadPoolExecutor(max(1, len(servers))) as threads:
            results = list(threads.map(tried, servers))
        return {
            server.url: value
            for server, (done, value) in zip(servers, results, strict=True)
            if done
        }

    def _stamp(self, server: Server) -> int | None:
        """The version the server has, by its own word; None where none was ever pushed."""
        if self._version is None:
            return None
        says = served_version(self.client, server)
        if says != str(server.version):
            server.lost = f"its weights have version {says}, expected {server.version}"
            raise UnusableReply(f"{server.lost}: it was restarted, or someone else changed them")
        return server.version

    # ---- common

    def _run(self, jobs: Sequence[ServerRequest]) -> list[tuple[Any, Any]]:
        found = self.client.run(jobs, self._kept, self._stamp)
        if self._forget:
            self._kept.clear()
        return found

    def _revive(self) -> None:
        """Ask lost servers whether they are back; with pushed weights only a push brings them."""
        lost = [server for server in self.client.servers if server.lost is not None]
        if not lost or self._version is not None:
            return

        def ask(server: Server) -> None:
            self.client.call(server, "/health", seconds=5)
            server.lost, server.tempered = None, False

        self._each(ask, lost)

    def _check_temperature(self, prompt: Sequence[int], temperature: float) -> None:
        self._each(
            lambda server: check_temperature(self.client, server, self._model, prompt, temperature),
            [server for server in self.client.alive if not server.tempered],
        )
