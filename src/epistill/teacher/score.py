"""Scoring given completions: log-probs and entropies of a model under any prompt, no gradient.

Enters: prompts and completions as ids. Leaves: per row, the log-prob of every completion token and
the entropy of the distribution it came from. Rows come back in the order they were given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from epistill.objective import entropy, token_log_probs
from epistill.objective.fused import chunk_rows
from epistill.rollouts.model import LanguageModel
from epistill.teacher.align import align, micro_batches
from epistill.world import World, current_world


@dataclass(frozen=True, slots=True)
class TokenScores:
    """One row's scores, [T] each, float32 on the CPU: nats of each completion token."""

    log_probs: Tensor
    entropies: Tensor


@torch.no_grad()
def score_completions(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    *,
    temperature: float = 1.0,
    microbatch_tokens: int = 16_384,
) -> list[TokenScores]:
    """Score completions under their prompts.

    Args:
        model: In eval mode.
        prompts: One per row, at least one token each.
        completions: One per row.
        temperature: Logits are divided by it, as the sampler's were.
        microbatch_tokens: Padded tokens per forward pass.
    """
    found: dict[int, TokenScores] = {}
    world = current_world()
    lengths = [len(p) + len(c) for p, c in zip(prompts, completions, strict=True)]
    batches = list(
        micro_batches(lengths, max_tokens=world.batch_tokens(lengths, microbatch_tokens))
    )
    head = model.head()
    for members, counted in world.deal(batches):
        chosen = [completions[i] for i in members]
        batch = align(
            [prompts[i] for i in members], chosen, pad_id=model.pad_id, device=model.device
        )
        hidden = batch.hidden(model)
        log_probs, entropies = [], []
        for part in torch.arange(len(hidden)).split(chunk_rows(head.weight.shape[0])):
            logits = head.logits(hidden[part]).float() / temperature
            log_probs.append(token_log_probs(logits, batch.token_ids[part]).cpu())
            entropies.append(entropy(logits.log_softmax(-1)).cpu())
        sizes = [len(completion) for completion in chosen]
        rows = zip(
            torch.cat(log_probs).split(sizes), torch.cat(entropies).split(sizes), strict=True
        )
        if counted:
            found |= {i: TokenScores(*scores) for i, scores in zip(members, rows, strict=True)}
    if world.size > 1:
        found = _from_everyone(found, batches, completions, world)
    return [found[i] for i in range(len(lengths))]


def _from_everyone(
    found: dict[int, TokenScores],
    batches: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    world: World,
) -> dict[int, TokenScores]:
    """All processes' scores; who scored which row follows from how the batches were dealt."""
    log_probs, entropies = (
        world.gather_tensor(torch.cat([torch.zeros(0), *parts]))
        for parts in (
            [score.log_probs for score in found.values()],
            [score.entropies for score in found.values()],
        )
    )
    everything: dict[int, TokenScores] = {}
    for rank in range(world.size):
        rows = [i for batch in batches[rank :: world.size] for i in batch]
        sizes = [len(completions[i]) for i in rows]
        parts = zip(rows, log_probs[rank].split(sizes), entropies[rank].split(sizes), strict=True)
        everything |= {i: TokenScores(one, other) for i, one, other in parts}
    return everything
