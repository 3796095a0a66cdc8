"""Prompts, computed once for all rows that begin with them.

Enters: prompts as token ids. Leaves: a cache to go on from (the sampler's), or the hidden states
that predict the tokens of given completions. The rows of a group share the student's prompt, and
the teacher's where their contexts are equal.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.nn.utils.rnn import pad_sequence
from transformers.cache_utils import Cache

from epistill.rollouts.align import align, micro_batches
from epistill.rollouts.engine import Ids
from epistill.rollouts.kv_cache import cache_argument, holds_everything, make_cache
from epistill.rollouts.model import LanguageModel

# Of all tokens of a pass, what must be saved: below it the second forward pass costs more.
LEAST_SAVED = 0.1


@dataclass(frozen=True, slots=True)
class Prefilled:
    """Prompts that were read.

    Attributes:
        cache: Keys and values, [P, heads, width, dim], padded on the left.
        last: [P, H]: the hidden states that predict the first token after each.
        mask: [P, width]; None where all are equally long.
    """

    cache: Cache
    last: Tensor
    mask: Tensor | None


def prefill(model: LanguageModel, prompts: Sequence[Ids], *, room: int) -> Prefilled:
    """Read prompts, of at least one token each, for sequences that go on by `room` tokens."""
    width = max(map(len, prompts))
    ids = _left_padded([torch.tensor(prompt) for prompt in prompts]).to(model.device)
    mask = None
    if any(len(prompt) < width for prompt in prompts):
        mask = _mask(prompts).to(model.device)
    cache, decoder = make_cache(model.network.config, width, room), model.decoder()
    states = decoder(
        input_ids=ids,
        attention_mask=mask,
        position_ids=None if mask is None else (mask.cumsum(1) - 1).clamp(min=0),
        use_cache=True,
        **{cache_argument(decoder): cache},
    )[0]
    return Prefilled(cache, states[:, -1], mask)


class SharedPrompts:
    """The prompts of one pass without gradients, each read once while rows with it are to come.

    Rows are read whole, as ever, where few tokens would be saved, where the model's layers hold
    more than keys and values, and where it is sharded: its blocks are gathered by all processes
    together, which must call it equally often, and how often prompts are read depends on the rows
    that a process has. What follows prompts that were read is padded, of a model that packs too.

    Args:
        prompts: Of every row of the pass that this process has.
        completions: As many.
        most_tokens: Of prompts that are kept for later micro-batches: as many as one may have.
    """

    def __init__(
        self, prompts: Sequence[Ids], completions: Sequence[Ids], *, most_tokens: int
    ) -> None:
        self._to_come = Counter(map(tuple, prompts))
        once = sum(map(len, self._to_come))
        prompt_tokens = sum(map(len, prompts))
        tokens = prompt_tokens + sum(map(len, completions))
        self._pays = prompt_tokens - once >= LEAST_SAVED * tokens
        self._most = most_tokens
        self._kept: dict[tuple[int, ...], _Kept] = {}

    @torch.no_grad()
    def hidden(
        self, model: LanguageModel, prompts: Sequence[Ids], completions: Sequence[Ids]
    ) -> Tensor:
        """[N, H]: what predicts each completion token of a micro-batch, row after row."""
        if not self._pays or any(isinstance(one, FSDPModule) for one in model.network.modules()):
            return align(model, prompts, completions).hidden(model)
        if not model.packs:
            return self._hidden(model, prompts, completions)
        found: dict[int, Tensor] = {}
        lengths = [len(p) + len(c) for p, c in zip(prompts, completions, strict=True)]
        for part in micro_batches(lengths, max_tokens=self._most):  # padding is to stay little
            said = [completions[i] for i in part]
            states = self._hidden(model, [prompts[i] for i in part], said)
            found |= zip(part, states.split(list(map(len, said))), strict=True)
        return torch.cat([found[i] for i in range(len(prompts))])

    def _hidden(
        self, model: LanguageModel, prompts: Sequence[Ids], completions: Sequence[Ids]
    ) -> Tensor:
        width, room = max(map(len, prompts)), max(map(len, completions))
        cache = make_cache(model.network.config, width, room)
        if not holds_everything(cache):
            return align(model, prompts, completions).hidden(model)
        assert all(map(len, prompts))
        begun = [tuple(prompt) for prompt in prompts]
        with model.computing():
            self._read(model, begun)
            states = self._go_on(model, cache, begun, completions)
        self._to_come.subtract(begun)
        self._forget()
        return states if model.compute_dtype is None else states.to(model.compute_dtype)

    def _read(self, model: LanguageModel, prompts: Sequence[tuple[int, ...]]) -> None:
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._kept]
        if not new:
            return
        found = prefill(model, new, room=0)
        cached: Any = found.cache.layers
        for row, prompt in enumerate(new):
            layers = [
                tuple(
                    states[row, :, -len(prompt) :].transpose(0, 1).clone()
                    for states in (layer.keys, layer.values)
                )
                for layer in cached
            ]
            self._kept[prompt] = _Kept(layers, found.last[row])

    def _go_on(
        self,
        model: LanguageModel,
        cache: Cache,
        prompts: Sequence[tuple[int, ...]],
        completions: Sequence[Ids],
    ) -> Tensor:
        """The completions' tokens but the last, which predicts nothing, after what was read."""
        kept, device = [self._kept[prompt] for prompt in prompts], model.device
        for index in range(len(cache.layers)):
            pairs = zip(*(one.layers[index] for one in kept), strict=True)
            keys, values = (_left_padded(states).transpose(1, 2) for states in pairs)
            cache.update(keys, values, index)
        lengths = torch.tensor([[len(prompt)] for prompt in prompts])
        read = [torch.tensor(said[:-1], dtype=torch.long) for said in completions]
        ids = pad_sequence(read, batch_first=True, padding_value=model.pad_id)
        states = torch.stack([one.last for one in kept]).unsqueeze(1)
        if ids.shape[1]:
            mask = None
            if len(lengths.unique()) > 1:
                mask = torch.cat([_mask(prompts), torch.ones_like(ids)], 1).to(device)
            # Padding stays at the row's last position: one more might be beyond the model's last.
            ends = torch.tensor([[max(0, len(one) - 1)] for one in read])
            places = lengths + torch.arange(ids.shape[1]).minimum(ends)
            after = model.decoder()(
                input_ids=ids.to(device),
                attention_mask=mask,
                position_ids=places.to(device),
                past_key_values=cache,
                use_cache=True,
            )[0]
            states = torch.cat([states, after], 1)
        return torch.cat([row[: len(c)] for row, c in zip(states, completions, strict=True)])

    def _forget(self) -> None:
        """What no row is to come for, and what there is no room for."""
        room = self._most
        for prompt in list(self._kept):
            if self._to_come[prompt] > 0 and len(prompt) <= room:
                room -= len(prompt)
            else:
                del self._kept[prompt]


@dataclass(frozen=True, slots=True)
class _Kept:
    """Of a prompt: keys and values of each layer, [P, heads, dim], and its last hidden state."""

    layers: Sequence[tuple[Tensor, ...]]
    last: Tensor


def _mask(prompts: Sequence[Ids]) -> Tensor:
    return _left_padded([torch.ones(len(prompt), dtype=torch.long) for prompt in prompts])


def _left_padded(parts: Sequence[Tensor]) -> Tensor:
    return pad_sequence(list(parts), batch_first=True, padding_side="left")
