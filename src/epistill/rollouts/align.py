"""How a prompt joins a completion: the positions that predict each completion token.

Student and teacher differ in their prompts only; the flat order is that of the completions, so the
two are aligned token for token by construction.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from epistill.rollouts.model import LanguageModel

MAX_PADDING = 0.1


@dataclass(frozen=True, slots=True)
class Aligned:
    """One padded batch.

    Attributes:
        input_ids: [B, W]: prompt then completion, padded on the right.
        rows, columns: [N]: where the hidden state that predicts completion token n stands.
        token_ids: [N]: the completion tokens, row after row.
    """

    input_ids: Tensor
    rows: Tensor
    columns: Tensor
    token_ids: Tensor

    def hidden(self, model: LanguageModel) -> Tensor:
        """[N, H]: the hidden states that predict the completion tokens."""
        return model.hidden(self.input_ids, self.rows, self.columns)


def align(
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    *,
    pad_id: int,
    device: torch.device,
) -> Aligned:
    """Join prompts, of at least one token each, and completions, as many; `pad_id` is any token."""
    pairs = list(zip(prompts, completions, strict=True))
    assert all(map(len, prompts))
    width = max(len(prompt) + len(completion) for prompt, completion in pairs)
    ids = torch.tensor([[*p, *c, *[pad_id] * (width - len(p) - len(c))] for p, c in pairs])
    rows = torch.tensor([row for row, (_, c) in enumerate(pairs) for _ in c], dtype=torch.long)
    columns = torch.tensor(
        [len(p) - 1 + i for p, c in pairs for i in range(len(c))], dtype=torch.long
    )
    tokens = torch.tensor([token for _, c in pairs for token in c], dtype=torch.long)
    return Aligned(*(t.to(device) for t in (ids, rows, columns, tokens)))


def micro_batches(lengths: Sequence[int], *, max_tokens: int) -> Iterator[list[int]]:
    """Cut rows, longest first, into batches of little padding.

    A batch ends before its padded size exceeds `max_tokens`, or its padding a tenth of that size:
    so padding is under a tenth of all tokens whatever the lengths. Longest first finds out at once
    whether memory suffices. A single row longer than the limit gets a batch of its own.

    Args:
        lengths: Tokens of every row.
        max_tokens: Padded tokens per batch.
    """
    batch: list[int] = []
    width = real = 0
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        size = width * (len(batch) + 1)
        if batch and (size > max_tokens or size - real - lengths[index] > MAX_PADDING * size):
            yield batch
            batch, real = [], 0
        if not batch:
            width = lengths[index]
        batch.append(index)
        real += lengths[index]
    if batch:
        yield batch
