"""Who samples and scores: this process with the full vocabulary, or a server with its top k.

Enters: prompts and completions as ids. Leaves: `Rollout`s and `Scores`, the same from every engine,
and for a server a bound on what the rest of the vocabulary could change. All scores are at
temperature 1, whatever the responses were sampled at: servers score prompts only so.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Unpack

import numpy as np
from numpy.typing import NDArray

from epistill.errors import EpistillError
from epistill.records import Rollout
from epistill.rollouts.engine import Drawing, Speaker
from epistill.rollouts.model import LanguageModel
from epistill.rollouts.sampler import PromptRequest, sample
from epistill.rollouts.scoring import score_completions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ids = Sequence[int]
Numbers = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Scores:
    """One completion under one prompt; every array is [T], nats at temperature 1.

    Attributes:
        log_probs: Of the completion's tokens.
        entropies: Of the distribution each came from; with a top k, a lower bound.
        mass: Probability of the asked-for tokens at each position; with a top k, a lower bound.
        entropy_slack: The true entropy is at most entropies + entropy_slack; 0 with all tokens.
        mass_slack: The true mass is at most mass + mass_slack; 0 with all tokens.
    """

    log_probs: Numbers
    entropies: Numbers
    mass: Numbers
    entropy_slack: Numbers
    mass_slack: Numbers


class Engine(Speaker, Protocol):
    """What preflight asks of a model."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """What decides its numbers; part of the key of every cached result."""
        ...

    @property
    def eos_ids(self) -> frozenset[int]:
        """Tokens that end a response."""
        ...

    @property
    def max_positions(self) -> int | None:
        """Longest prompt with completion; None where nobody says."""
        ...

    def score(
        self, prompts: Sequence[Ids], completions: Sequence[Ids], *, mass_of: Ids
    ) -> list[Scores]:
        """Scores of completions under their prompts, in the given order."""
        ...


class InProcess:
    """A model in this process: full vocabulary, exact masses and entropies.

    Args:
        model: In eval mode.
        microbatch_tokens: Padded tokens per forward pass.
    """

    def __init__(self, model: LanguageModel, *, microbatch_tokens: int = 16_384) -> None:
        self._model = model
        self._microbatch_tokens = microbatch_tokens
        self.identity: Mapping[str, Any] = {
            "engine": "in process",
            "model": model.name,
            "weights": weights_fingerprint(model),
            "top_k": None,
        }

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's."""
        return self._model.tokenizer

    @property
    def eos_ids(self) -> frozenset[int]:
        """The model's."""
        return self._model.eos_ids

    @property
    def max_positions(self) -> int | None:
        """The model's."""
        return self._model.max_positions

    def sample(
        self, requests: Sequence[PromptRequest], **drawing: Unpack[Drawing]
    ) -> list[Rollout]:
        """The in-process sampler."""
        return sample(self._model, requests, **drawing)

    def score(
        self, prompts: Sequence[Ids], completions: Sequence[Ids], *, mass_of: Ids
    ) -> list[Scores]:
        """`rollouts.scoring`, the path that training's teacher takes."""
        found = score_completions(
            self._model,
            prompts,
            completions,
            mass_of=mass_of,
            microbatch_tokens=self._microbatch_tokens,
        )
        rows: list[Scores] = []
        for row in found:
            assert row.mass is not None
            exact = np.zeros(len(row.log_probs))
            nats, entropies, mass = (
                c.double().numpy() for c in (row.log_probs, row.entropies, row.mass)
            )
            rows.append(Scores(nats, entropies, mass, exact, exact))
        return rows


def weights_fingerprint(model: LanguageModel) -> str:
    """Hash of names, shapes and exact integer sums of the weights' bits; cheap beside a forward.

    A model that was changed in memory, or one under the name of another, gets another fingerprint.
    """
    import torch

    digest = hashlib.sha256()
    for name, parameter in model.network.named_parameters():
        flat = parameter.detach().flatten()
        whole = torch.int32 if flat.element_size() == 4 else torch.int16
        bits = flat.view(whole) if flat.element_size() in (2, 4) else flat.to(torch.int64)
        sums = [int(bits.sum(dtype=torch.int64)), int(bits[::7].sum(dtype=torch.int64))]
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype} {sums}\n".encode())
    return digest.hexdigest()


def top_k_scores(
    tokens: Ids,
    log_probs: Numbers,
    top_ids: NDArray[np.int64],
    top_log_probs: Numbers,
    *,
    mass_of: Ids,
    vocabulary: int,
) -> Scores:
    """Scores from the k most likely tokens of each position, with the bounds that this implies.

    With m the probability outside the top k and p_k the smallest inside, a token outside has at
    most p_k: n asked-for tokens outside add between 0 and min(m, n p_k) to the mass, and the tail
    adds between -m log min(p_k, m) and m log((V - k) / m) to the entropy.

    Args:
        tokens: [T] the completion.
        log_probs: [T] of its tokens, exact also outside the top k.
        top_ids, top_log_probs: [T, k], in any order, without repeats.
        mass_of: Asked-for ids.
        vocabulary: V, to bound the entropy.

    Raises:
        EpistillError: Arrays that do not fit the completion.
    """
    if not len(tokens) == len(log_probs) == len(top_ids) == len(top_log_probs):
        raise EpistillError(
            f"{len(tokens)} completion tokens but scores of {len(log_probs)} and top tokens of "
            f"{len(top_ids)}; expected one of each per token; ask the server again"
        )
    p = np.exp(top_log_probs)
    wanted = np.array(sorted(set(mass_of)), dtype=np.int64)
    inside = np.isin(top_ids, wanted)
    ids = np.asarray(tokens, dtype=np.int64)
    # The completion's own token is known even where it is not among the top k.
    own = np.isin(ids, wanted) & ~(top_ids == ids[:, None]).any(1)
    own_mass = np.where(own, np.exp(log_probs), 0.0)
    tail = np.clip(1.0 - p.sum(1), 0.0, 1.0)
    smallest = p.min(1)
    outside = len(wanted) - inside.sum(1) - own
    rest = np.clip(tail - own_mass, 0.0, None)
    mass = (p * inside).sum(1) + own_mass
    few = max(vocabulary - top_ids.shape[1], 1)
    kept = -(p * np.where(p > 0, top_log_probs, 0.0)).sum(1)
    safe = np.where(tail > 0, tail, 1.0)
    least = -tail * np.log(np.minimum(smallest, safe))
    most = np.maximum(tail * np.log(few / safe), least)
    return Scores(
        np.asarray(log_probs, dtype=np.float64),
        kept + least,
        mass,
        most - least,
        np.minimum(rest, outside * smallest),
    )
