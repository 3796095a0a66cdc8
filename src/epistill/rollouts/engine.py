"""What every source of responses looks like: a model in this process, servers, a cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NotRequired, Protocol, TypedDict, Unpack

from epistill.config import SamplingConfig
from epistill.records import Rollout
from epistill.rollouts.sampler import PromptRequest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Drawing(TypedDict):
    """How responses are drawn; the arguments of `sampler.sample`, where each is explained."""

    samples: int
    sampling: SamplingConfig
    seed: int
    policy_version: NotRequired[int]


class Sampler(Protocol):
    """Answers prompts."""

    def sample(
        self, requests: Sequence[PromptRequest], **drawing: Unpack[Drawing]
    ) -> list[Rollout]:
        """As `sampler.sample`: `samples` rollouts per request, in request order."""
        ...


class Speaker(Sampler, Protocol):
    """Answers prompts, and says how to write them."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer, which renders the prompts and decodes the responses."""
        ...
