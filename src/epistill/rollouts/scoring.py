"""Scoring given completions: log-probs and entropies of a model under any prompt, no gradient.

Enters: prompts and completions as ids. Leaves: per row, the log-prob of every completion token and
the entropy of the distribution it came from. Rows come back in the order they were given.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from epistill.objective import entropy, token_log_probs
from epistill.objective.fused import chunk_rows
from epistill.rollouts.align import align, micro_batches
from epistill.rollouts.engine import Ids, TokenScores
from epistill.rollouts.model import LanguageModel
from epistill.world import World, current_world


@torch.no_grad()
def score_completions(
    model: LanguageModel,
    prompts: Sequence[Ids],
    completions: Sequence[Ids],
    *,
    temperature: float = 1.0,
    microbatch_tokens: int = 16_384,
    mass_of: Ids | None = None,
) -> list[TokenScores]:
    """Score completions under their prompts, in float32.

    Args:
        model: In eval mode.
        prompts: One per row, at least one token each.
        completions: One per row.
        temperature: Logits are divided by it, as the sampler's were.
        microbatch_tokens: Padded tokens per forward pass.
        mass_of: Also the total probability of these token ids at each position.
    """
    found: dict[int, TokenScores] = {}
    world = current_world()
    lengths = [len(p) + len(c) for p, c in zip(prompts, completions, strict=True)]
    batches = list(
        micro_batches(lengths, max_tokens=world.batch_tokens(lengths, microbatch_tokens))
    )
    head = model.head()
    wanted = torch.tensor(mass_of or (), dtype=torch.long, device=model.device)
    for members, counted in world.deal(batches):
        chosen = [completions[i] for i in members]
        batch = align(
            [prompts[i] for i in members], chosen, pad_id=model.pad_id, device=model.device
        )
        hidden = batch.hidden(model)
        log_probs, entropies, mass = [], [], []
        for part in torch.arange(len(hidden)).split(chunk_rows(head.weight.shape[0])):
            logits = head.logits(hidden[part]).float() / temperature
            log_probs.append(token_log_probs(logits, batch.token_ids[part]).cpu())
            normalised = logits.log_softmax(-1)
            entropies.append(entropy(normalised).cpu())
            if mass_of is not None:
                mass.append(normalised[:, wanted].exp().sum(-1).cpu())
        sizes = [len(completion) for completion in chosen]
        columns = [torch.cat(parts).split(sizes) for parts in (log_probs, entropies, mass) if parts]
        rows = zip(*columns, strict=True)
        if counted:
            found |= {i: _exact(*scores) for i, scores in zip(members, rows, strict=True)}
    if world.size > 1:
        found = _from_everyone(found, batches, completions, world, with_mass=mass_of is not None)
    return [found[i] for i in range(len(lengths))]


def _exact(*scores: torch.Tensor) -> TokenScores:
    slack = [torch.zeros_like(scores[0])] * 2 if len(scores) == 3 else []
    return TokenScores(*scores, *slack)


def _from_everyone(
    found: dict[int, TokenScores],
    batches: Sequence[Sequence[int]],
    completions: Sequence[Ids],
    world: World,
    *,
    with_mass: bool,
) -> dict[int, TokenScores]:
    """All processes' scores; who scored which row follows from how the batches were dealt."""
    names = ("log_probs", "entropies", *(("mass",) if with_mass else ()))
    gathered = [
        world.gather_tensor(
            torch.cat([torch.zeros(0), *(getattr(score, name) for score in found.values())])
        )
        for name in names
    ]
    everything: dict[int, TokenScores] = {}
    for rank in range(world.size):
        rows = [i for batch in batches[rank :: world.size] for i in batch]
        sizes = [len(completions[i]) for i in rows]
        parts = zip(*(column[rank].split(sizes) for column in gathered), strict=True)
        everything |= {i: _exact(*scores) for i, scores in zip(rows, parts, strict=True)}
    return everything
