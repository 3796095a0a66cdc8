"""Scoring given completions: log-probs and entropies of a model under any prompt, no gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from epistill.objective import entropy, tempered, token_log_probs
from epistill.objective.fused import chunk_rows
from epistill.rollouts.align import micro_batches
from epistill.rollouts.engine import Ids, TokenScores
from epistill.rollouts.model import LanguageModel
from epistill.rollouts.shared_prompts import SharedPrompts
from epistill.world import current_world


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
    """Score completions under their prompts, in float32; rows in the order they were given.

    Args:
        model: In eval mode.
        prompts: One per row, at least one token each.
        completions: One per row.
        temperature: Logits are divided by it, as the sampler's were.
        microbatch_tokens: Tokens per forward pass, with padding.
        mass_of: Also the total probability of these token ids at each position.
    """
    world = current_world()
    lengths = [len(p) + len(c) for p, c in zip(prompts, completions, strict=True)]
    most = world.batch_tokens(lengths, microbatch_tokens)
    batches = list(micro_batches(lengths, max_tokens=most, packed=model.packs))
    shared = SharedPrompts(prompts, completions, batches, most_tokens=microbatch_tokens)
    head = model.head()
    wanted = torch.tensor(mass_of or (), dtype=torch.long, device=model.device)
    width = 2 if mass_of is None else 3
    found: dict[int, Tensor] = {}  # [width, T] of each row
    for members, counted in world.deal(batches):
        chosen = [completions[i] for i in members]
        states = shared.hidden(model)
        tokens = torch.tensor([t for one in chosen for t in one], device=model.device)
        parts: list[Tensor] = []
        chunk = chunk_rows(head.weight)
        for some, ids in zip(states.split(chunk), tokens.split(chunk), strict=True):
            logits = tempered(head.logits(some).float(), temperature)
            normalised = logits.log_softmax(-1)
            columns = [token_log_probs(logits, ids), entropy(normalised)]
            if mass_of is not None:
                columns.append(normalised[:, wanted].exp().sum(-1))
            parts.append(torch.stack(columns).cpu())
        if counted:
            sizes = [len(completion) for completion in chosen]
            found |= zip(members, torch.cat(parts, 1).split(sizes, 1), strict=True)
    if world.size > 1:
        own = torch.cat([torch.zeros(0), *(part.flatten() for part in found.values())])
        for rank, told in enumerate(world.gather_tensor(own)):
            # Who scored which row follows from how the batches were dealt.
            rows = [i for batch in batches[rank :: world.size] for i in batch]
            flat = told.split([width * len(completions[i]) for i in rows])
            found |= zip(rows, (part.view(width, -1) for part in flat), strict=True)
    exact = [] if mass_of is None else [torch.zeros_like] * 2
    return [
        TokenScores(*found[i].contiguous(), *(slack(found[i][0]) for slack in exact))
        for i in range(len(lengths))
    ]
