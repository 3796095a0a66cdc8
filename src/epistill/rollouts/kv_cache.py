"""A key-value cache that grows by doubling, writes in place and lets rows leave.

transformers' dynamic cache copies itself at every token. For plain full attention this one does
not; for any other kind of layer (sliding window, linear attention) the library's own cache is
kept, which is slower and right.
"""

from __future__ import annotations

from inspect import signature
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer
from transformers.configuration_utils import PreTrainedConfig


class GrowingLayer(DynamicLayer):
    """One layer's keys and values, [B, heads, length, dim], in buffers with spare room.

    `keys` and `values` are views of the filled part, as the rest of the library expects.
    """

    def __init__(self, room: int) -> None:
        super().__init__()
        self._room = room
        self._key_buffer: Tensor | None = None
        self._value_buffer: Tensor | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append in place; reallocate at twice the size when the room is used up."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        filled = self.get_seq_length()
        needed = filled + key_states.shape[-2]
        if self._key_buffer is None or needed > self._key_buffer.shape[-2]:
            self._reserve(key_states, value_states, filled, needed)
        assert self._key_buffer is not None and self._value_buffer is not None
        self._key_buffer[:, :, filled:needed] = key_states
        self._value_buffer[:, :, filled:needed] = value_states
        self._show(needed)
        assert self.keys is not None and self.values is not None
        return self.keys, self.values

    def _reserve(self, keys: Tensor, values: Tensor, filled: int, needed: int) -> None:
        capacity = needed + self._room if self._key_buffer is None else max(needed, 2 * filled)
        old_keys, old_values = self.keys, self.values
        self._key_buffer = keys.new_empty(*keys.shape[:2], capacity, keys.shape[-1])
        self._value_buffer = values.new_empty(*values.shape[:2], capacity, values.shape[-1])
        if filled:
            assert old_keys is not None and old_values is not None
            self._key_buffer[:, :, :filled] = old_keys
            self._value_buffer[:, :, :filled] = old_values

    def _show(self, length: int) -> None:
        assert self._key_buffer is not None and self._value_buffer is not None
        self.keys = self._key_buffer[:, :, :length]
        self.values = self._value_buffer[:, :, :length]

    def select(self, rows: Tensor) -> None:
        """Keep (or repeat) rows of the batch."""
        if self._key_buffer is None or self._value_buffer is None:
            return
        length = self.get_seq_length()
        capacity = self._key_buffer.shape[-2]
        for name in ("_key_buffer", "_value_buffer"):
            old = getattr(self, name)
            new = old.new_empty(len(rows), old.shape[1], capacity, old.shape[-1])
            torch.index_select(old[:, :, :length], 0, rows, out=new[:, :, :length])
            setattr(self, name, new)
        self._show(length)


def make_cache(config: PreTrainedConfig, room: int) -> Cache:
    """A cache for one sampling run.

    Args:
        config: The model's configuration.
        room: Tokens it will probably have to hold beyond the prompt.
    """
    cache = DynamicCache(config=config)
    if all(type(layer) is DynamicLayer for layer in cache.layers) and cache.layers:
        cache.layers[:] = [GrowingLayer(room) for _ in cache.layers]
    return cache


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
