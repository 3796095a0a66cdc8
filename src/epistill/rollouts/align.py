"""How a prompt joins a completion: the positions that predict each completion token.

Student and teacher differ in their prompts only; the flat order is that of the completions, so the
two are aligned token for token by construction. Rows are padded to one width or, of a model that
packs, follow each other in one sequence.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers.cache_utils import get_layer_types_and_kwargs
from transformers.utils.generic import is_flash_attention_requested

from epistill.rollouts.model import LanguageModel

MAX_PADDING = 0.1
PLAIN = {"full_attention", "sliding_attention"}  # of the kinds of layers that transformers names
# Of the hidden states' norm: bfloat16's rounding stays below, what another row adds far above.
MOST_LEAK = 0.05


@dataclass(frozen=True, slots=True)
class Aligned:
    """One batch of rows, each a prompt and then its completion.

    Attributes:
        input_ids: [B, W], padded on the right; packed, [1, all tokens].
        rows, columns: [N]: where the hidden state that predicts completion token n stands.
        token_ids: [N]: the completion tokens, row after row.
        position_ids: [1, all tokens], from 0 in each packed row; None where rows are padded.
    """

    input_ids: Tensor
    rows: Tensor
    columns: Tensor
    token_ids: Tensor
    position_ids: Tensor | None

    def hidden(self, model: LanguageModel) -> Tensor:
        """[N, H]: the hidden states that predict the completion tokens."""
        return model.hidden(self.input_ids, self.rows, self.columns, self.position_ids)


def align(
    model: LanguageModel, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]
) -> Aligned:
    """Join prompts, of at least one token each, and completions, as many, for a model."""
    pairs = list(zip(prompts, completions, strict=True))
    assert all(map(len, prompts))
    each = [torch.tensor([*p, *c]) for p, c in pairs]
    lengths = [len(one) for one in each]
    if model.packs:
        ids = torch.cat(each).unsqueeze(0)
        positions = torch.cat([torch.arange(n) for n in lengths]).unsqueeze(0).to(model.device)
        begins = [(0, end - n) for n, end in zip(lengths, accumulate(lengths), strict=True)]
    else:
        ids = pad_sequence(each, batch_first=True, padding_value=model.pad_id)
        positions, begins = None, [(row, 0) for row in range(len(each))]
    found = [
        (row, begin + len(p) - 1 + i, token)
        for (row, begin), (p, c) in zip(begins, pairs, strict=True)
        for i, token in enumerate(c)
    ]
    flat = torch.tensor(found, dtype=torch.long, device=model.device).view(len(found), 3)
    rows, columns, tokens = flat.unbind(1)
    return Aligned(ids.to(model.device), rows, columns, tokens, positions)


def packs(model: LanguageModel) -> bool:
    """Whether rows may go as one sequence: attention has variable lengths, nothing else joins them.

    Flash kernels have them; other attention would compute every row with every other, under a mask.
    A state that runs along tokens (Mamba's, a convolution's) would run from row to row, a chunk's
    place would be counted from the first. Whether the network tells rows apart by their positions
    in all it does is tried.
    """
    config: Any = model.decoder().config
    kinds, _ = get_layer_types_and_kwargs(config.get_text_config(decoder=True))
    if not is_flash_attention_requested(config) or not PLAIN.issuperset(kinds):
        return False
    rows = [[(n + i) % model.vocabulary for i in range(n)] for n in (7, 3, 12)]
    padded, packed = (model.with_network(model.network) for _ in range(2))
    padded.packs, packed.packs = False, True
    apart, together = (
        align(one, [row[:1] for row in rows], [row[1:] for row in rows]).hidden(one).float()
        for one in (padded, packed)
    )
    return bool((together - apart).norm() <= MOST_LEAK * apart.norm())


def micro_batches(
    lengths: Sequence[int], *, max_tokens: int, packed: bool = False
) -> Iterator[list[int]]:
    """Cut rows, longest first, into batches of little padding.

    A batch ends before its size exceeds `max_tokens`, or its padding a tenth of that size: so
    padding is under a tenth of all tokens whatever the lengths. Longest first finds out at once
    whether memory suffices. A single row longer than the limit gets a batch of its own.

    Args:
        lengths: Tokens of every row.
        max_tokens: Tokens per batch, with padding.
        packed: There is no padding.
    """
    batch: list[int] = []
    width = real = 0
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[index]
        size = real + length if packed else width * (len(batch) + 1)
        if batch and (size > max_tokens or size - real - length > MAX_PADDING * size):
            yield batch
            batch, real = [], 0
        if not batch:
            width = length
        batch.append(index)
        real += length
    if batch:
        yield batch
