"""A key-value cache that grows by doubling, writes in place and lets rows leave.

transformers' dynamic cache copies itself at every token. For plain attention whose window, if it
has one, holds all that is sampled, this one does not; for any other kind of layer (a shorter
window, linear attention) the library's own cache is kept, which is slower and right.
"""

from __future__ import annotations

from inspect import signature
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel


class GrowingLayer(DynamicLayer):
    """One layer's keys and values, [B, heads, length, dim], in buffers with spare room.

    `keys` and `values` are views of the filled part, as the rest of the library expects.
    """

    def __init__(self, room: int) -> None:
        super().__init__()
        self._room = room
        self._buffers: list[Tensor] = []

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append in place; reallocate at twice the size when the room is used up."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        filled = self.get_seq_length()
        needed = filled + key_states.shape[-2]
        new = (key_states, value_states)
        if not self._buffers:
            self._allocate(new, needed + self._room)
        elif needed > self._buffers[0].shape[-2]:
            old, self._buffers = self._buffers, []
            self._allocate(new, max(needed, 2 * filled))
            for buffer, before in zip(self._buffers, old, strict=True):
                buffer[:, :, :filled] = before[:, :, :filled]
        for buffer, states in zip(self._buffers, new, strict=True):
            buffer[:, :, filled:needed] = states
        return self._view(needed)

    def _allocate(self, like: tuple[Tensor, Tensor], capacity: int) -> None:
        self._buffers = [one.new_empty(*one.shape[:2], capacity, one.shape[-1]) for one in like]

    def _view(self, length: int) -> tuple[Tensor, Tensor]:
        self.keys, self.values = (buffer[:, :, :length] for buffer in self._buffers)
        return self.keys, self.values

    def select(self, rows: Tensor) -> None:
        """Keep (or repeat) rows of the batch."""
        if self._buffers:
            length, old = self.get_seq_length(), self._buffers
            self._buffers = [one.new_empty(len(rows), *one.shape[1:]) for one in old]
            for buffer, before in zip(self._buffers, old, strict=True):
                torch.index_select(before[:, :, :length], 0, rows, out=buffer[:, :, :length])
            self._view(length)


def make_cache(config: PreTrainedConfig, width: int, room: int) -> Cache:
    """A cache for one sampling run of a model: so many tokens of prompts, and as many beyond."""
    cache = DynamicCache(config=config)
    if cache.layers and all(_sees_all(layer, width + room) for layer in cache.layers):
        cache.layers[:] = [GrowingLayer(room) for _ in cache.layers]
    return cache


def _sees_all(layer: Any, length: int) -> bool:
    """Whether plain attention of this kind sees every one of so many tokens."""
    windowed = type(layer) is DynamicSlidingWindowLayer and layer.sliding_window >= length
    return windowed or type(layer) is DynamicLayer


def holds_everything(cache: Cache) -> bool:
    """Whether every layer's state is the keys and values of all tokens so far."""
    return bool(cache.layers) and all(isinstance(layer, GrowingLayer) for layer in cache.layers)


def decoding_mask(
    cache: Cache, network: PreTrainedModel, dtype: torch.dtype | None
) -> Tensor | None:
    """What a step of unpadded rows passes as its attention mask: one zero, or nothing.

    Without a mask transformers leaves grouped heads to torch's kernel, which on a CPU takes five
    times as long in bfloat16 as with them packed as one head's queries, what it does under a mask.
    """
    dtype = dtype or network.dtype
    slow = network.device.type == "cpu" and dtype == torch.bfloat16
    fused = network.config._attn_implementation == "sdpa"
    plain = holds_everything(cache)
    return torch.zeros(1, 1, 1, 1, dtype=dtype) if plain and slow and fused else None


def cache_argument(decoder: nn.Module) -> str:
    """What a decoder's forward calls its cache: a pure state-space model has no keys and values."""
    own = "cache_params"
    return own if own in signature(decoder.forward).parameters else "past_key_values"


def select_rows(cache: Cache, rows: Tensor) -> None:
    """Keep (or repeat) rows of every layer."""
    for layer in cache.layers:
        if isinstance(layer, GrowingLayer):
            layer.select(rows)
        else:
            layer.reorder_cache(cast(torch.LongTensor, rows))  # the way that every kind has
