"""Attention of short rows in float32 while a CPU trains in bfloat16.

torch's backward pass of attention on a CPU takes 1.4 to 3.8 times as long in bfloat16 as in float32
where rows are short (docs/benchmarks.md); of an update that was a fifth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

_Attention = Callable[..., tuple[Tensor, None]]
LONGEST = 384  # tokens; beyond it bfloat16's products make up for it


@contextmanager
def short_attention_in_float32() -> Iterator[None]:
    """For forward and backward, which computes forward again where activations are not kept."""
    before: _Attention = ALL_ATTENTION_FUNCTIONS["sdpa"]
    ALL_ATTENTION_FUNCTIONS["sdpa"] = partial(_in_float32, before)
    try:
        yield
    finally:
        del ALL_ATTENTION_FUNCTIONS["sdpa"]
        if ALL_ATTENTION_FUNCTIONS["sdpa"] is not before:  # somebody's own
            ALL_ATTENTION_FUNCTIONS["sdpa"] = before


def _in_float32(
    attention: _Attention,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """`attention`, [B, heads, W, dim] in and [B, W, heads, dim] out, on wider numbers."""
    given, device = (query, key, value), query.device.type
    autocast = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if autocast else query.dtype
    if (device, dtype) != ("cpu", torch.bfloat16) or max(map(_tokens, given)) > LONGEST:
        return attention(module, *given, attention_mask, **settings)
    if attention_mask is not None and attention_mask.is_floating_point():
        attention_mask = attention_mask.float()
    with torch.autocast(device, enabled=False):
        wider = (one.float() for one in given)
        found, nothing = attention(module, *wider, attention_mask, **settings)
    return found.to(dtype), nothing


def _tokens(states: Tensor) -> int:
    return states.shape[-2]
