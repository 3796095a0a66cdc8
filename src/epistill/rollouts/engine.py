"""The one engine: it samples responses and scores given ones. Two kinds keep this protocol.

`in_process_engine.InProcessEngine` is a model of this process, `vllm_engine.VllmEngine` servers; a
cache may stand in front of either. Train, eval, probes and preflight ask nothing else. Where
several processes train together, all call an engine alike and all get everything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NotRequired, Protocol, TypedDict, Unpack, runtime_checkable

from torch import Tensor

from epistill.config import SamplingConfig
from epistill.records import Rollout

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ids = Sequence[int]


@dataclass(frozen=True, slots=True)
class PromptRequest:
    """One prompt to sample from.

    Attributes:
        draw: Names the random draws of its samples together with the call's seed, so that they do
            not depend on which other prompts share the batch (or the process).
    """

    problem_id: str
    ids: tuple[int, ...]
    draw: int = 0


@dataclass(frozen=True, slots=True)
class TokenScores:
    """One completion under one prompt; [T] each, on the CPU.

    Attributes:
        log_probs: Nats of the completion's tokens.
        entropies: Nats, of the distribution each came from; of a server, which lists only its top
            k, a lower bound.
        mass: Probability of the asked-for tokens at each position, of a server a lower bound; None
            where none were asked for. The slacks are then known too.
        entropy_slack, mass_slack: The true number is at most so much more; 0 with all tokens.
    """

    log_probs: Tensor
    entropies: Tensor
    mass: Tensor | None = None
    entropy_slack: Tensor | None = None
    mass_slack: Tensor | None = None


class Drawing(TypedDict):
    """How responses are drawn; the arguments of `sampler.sample`, where each is explained."""

    samples: int
    sampling: SamplingConfig
    seed: int
    policy_version: NotRequired[int]
    entropies: NotRequired[bool]


@runtime_checkable
class Engine(Protocol):
    """A model that samples and scores, wherever it is.

    Attributes:
        tokenizer: Renders the prompts and decodes the responses.
        eos_ids: Tokens that end a response.
        max_positions: Longest prompt with completion; None where nobody says.
    """

    tokenizer: PreTrainedTokenizerBase
    eos_ids: frozenset[int]
    max_positions: int | None

    @property
    def identity(self) -> Mapping[str, Any]:
        """What decides its numbers; part of the key of every stored result."""
        ...

    def sample(
        self, requests: Sequence[PromptRequest], **drawing: Unpack[Drawing]
    ) -> list[Rollout]:
        """`samples` rollouts per request, in request order."""
        ...

    def score(
        self, prompts: Sequence[Ids], completions: Sequence[Ids], *, mass_of: Ids | None = None
    ) -> list[TokenScores]:
        """Completions under their prompts, in the given order; at temperature 1 by default.

        Args:
            prompts: One per row, at least one token each.
            completions: One per row.
            mass_of: Also the total probability of these token ids at each position.
        """
        ...
