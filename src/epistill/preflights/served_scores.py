"""A server as an engine: its top k instead of the full vocabulary, with bounds.

Enters: a pool of vLLM servers (`rollouts.vllm.VllmPool`). Leaves: the `Engine` that preflight asks.
Retrying is the pool's. Finished calls are kept by the cache in front of this, the replies of an
unfinished one by the pool until the next begins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, Unpack

import numpy as np

from epistill.errors import EpistillError
from epistill.preflights.scoring_engine import Ids, Scores, top_k_scores
from epistill.records import Rollout
from epistill.rollouts.engine import Drawing, Sampler
from epistill.rollouts.reply_cache import KeptReplies
from epistill.rollouts.sampler import PromptRequest

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase


class ScoredTokens(Protocol):
    """What a server says of one completion, in nats at temperature 1."""

    @property
    def log_probs(self) -> Tensor:
        """[T]."""
        ...

    @property
    def top_ids(self) -> Tensor:
        """[T, k]."""
        ...

    @property
    def top_log_probs(self) -> Tensor:
        """[T, k]."""
        ...


class Pool(Sampler, Protocol):
    """What is asked of the servers."""

    def score(
        self, prompts: Sequence[Ids], completions: Sequence[Ids], *, top_k: int
    ) -> Sequence[ScoredTokens]:
        """Log-probs of completions under their prompts."""
        ...


class Served:
    """A pool with the tokenizer of the model that it serves.

    Args:
        pool: The servers.
        tokenizer: Of the served model.
        eos_ids: Tokens that end a response.
        vocabulary: Tokens of the served model's head.
        max_positions: Longest prompt with completion.
        top_k: Tokens listed per position.
        identity: Which model this is; two different models must not share one.
        kept: Where the pool keeps replies; emptied when a call begins after a finished one.
    """

    def __init__(
        self,
        pool: Pool,
        *,
        tokenizer: PreTrainedTokenizerBase,
        eos_ids: frozenset[int],
        vocabulary: int,
        max_positions: int | None,
        top_k: int,
        identity: Mapping[str, Any],
        kept: KeptReplies | None = None,
    ) -> None:
        self._pool, self._vocabulary, self._top_k = pool, vocabulary, min(top_k, vocabulary)
        self.tokenizer, self.eos_ids, self.max_positions = tokenizer, eos_ids, max_positions
        self._kept, self._finished = kept, False
        self.identity: Mapping[str, Any] = {**identity, "top_k": self._top_k}

    def sample(
        self, requests: Sequence[PromptRequest], **drawing: Unpack[Drawing]
    ) -> list[Rollout]:
        """The servers' own draws; the count of responses is checked."""
        self._begin()
        found = self._pool.sample(requests, **drawing)
        expected = len(requests) * drawing["samples"]
        if len(found) != expected:
            raise EpistillError(
                f"the server gave {len(found)} responses; expected {expected}; "
                "the same command goes on with what was kept"
            )
        self._finished = True
        return found

    def score(
        self, prompts: Sequence[Ids], completions: Sequence[Ids], *, mass_of: Ids
    ) -> list[Scores]:
        """Scores with the bounds of `top_k_scores`."""
        self._begin()
        found = self._pool.score(prompts, completions, top_k=self._top_k)
        self._finished = True
        return [
            top_k_scores(
                tokens,
                row.log_probs.double().numpy(),
                row.top_ids.numpy().astype(np.int64),
                row.top_log_probs.double().numpy(),
                mass_of=mass_of,
                vocabulary=self._vocabulary,
            )
            for tokens, row in zip(completions, found, strict=True)
        ]

    def _begin(self) -> None:
        """Forget the replies of the call before: the cache has it."""
        if self._finished and self._kept is not None:
            self._kept.clear()
        self._finished = False
