"""A model of this process as the engine: full vocabulary, exact masses and entropies."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Unpack

import torch

from epistill.records import Rollout, rollout_from_json, rollout_to_json
from epistill.rollouts.engine import Drawing, Ids, PromptRequest, TokenScores
from epistill.rollouts.model import LanguageModel
from epistill.rollouts.sampler import sample
from epistill.rollouts.scoring import score_completions
from epistill.world import current_world


class InProcessEngine:
    """Samples and scores with the model's current weights.

    Args:
        model: In eval mode.
        microbatch_tokens: Tokens per forward pass of scoring, with padding.
        temperature: Of what is scored; training scores at the temperature that it sampled at.
    """

    def __init__(
        self, model: LanguageModel, *, microbatch_tokens: int = 16_384, temperature: float = 1.0
    ) -> None:
        self._model, self._microbatch_tokens = model, microbatch_tokens
        self._temperature = temperature
        self._weights: str | None = None
        self.tokenizer, self.eos_ids = model.tokenizer, model.eos_ids
        self.max_positions = model.max_positions

    @property
    def identity(self) -> Mapping[str, Any]:
        """The model's name and its weights, as they are when this is first asked."""
        if self._weights is None:
            self._weights = weights_fingerprint(self._model)
        name = self._model.name
        return {"engine": "in process", "model": name, "weights": self._weights, "top_k": None}

    def sample(
        self, requests: Sequence[PromptRequest], **drawing: Unpack[Drawing]
    ) -> list[Rollout]:
        """`sampler.sample`, each process a share of the prompts."""
        world, size = current_world(), drawing["samples"]
        rollouts = sample(self._model, world.share(requests), **drawing)
        if world.size == 1:
            return rollouts
        told = [rollout_to_json(rollout) for rollout in rollouts]
        groups = [told[start : start + size] for start in range(0, len(told), size)]
        everyone = world.deal_back(world.gather(groups))
        return [rollout_from_json(row) for group in everyone for row in group]

    def score(
        self, prompts: Sequence[Ids], completions: Sequence[Ids], *, mass_of: Ids | None = None
    ) -> list[TokenScores]:
        """`score_completions`."""
        return score_completions(
            self._model,
            prompts,
            completions,
            mass_of=mass_of,
            temperature=self._temperature,
            microbatch_tokens=self._microbatch_tokens,
        )


def weights_fingerprint(model: LanguageModel) -> str:
    """Hash of names, shapes and exact integer sums of the weights' bits; cheap beside a forward.

    A model that was changed in memory, or one under the name of another, gets another fingerprint.
    """
    digest = hashlib.sha256()
    for name, parameter in model.network.named_parameters():
        flat = parameter.detach().flatten()
        whole = torch.int32 if flat.element_size() == 4 else torch.int16
        bits = flat.view(whole) if flat.element_size() in (2, 4) else flat.to(torch.int64)
        sums = [int(bits.sum(dtype=torch.int64)), int(bits[::7].sum(dtype=torch.int64))]
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype} {sums}\n".encode())
    return digest.hexdigest()
