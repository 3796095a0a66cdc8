"""Rows of a large array, a few at a time."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

# Numbers per block: a handful of float32 arrays of this size fit into a second-level cache.
BLOCK_NUMBERS = 2**18


def row_blocks(rows: Tensor) -> Iterator[slice]:
    """Slices over the rows of [N, V] that keep what is computed from them in a processor's cache.

    Elsewhere one slice: a GPU waits for each kernel that a block would launch.
    """
    step = BLOCK_NUMBERS // rows.shape[1] if rows.device.type == "cpu" else len(rows)
    step = max(1, step)
    for start in range(0, len(rows), step):
        yield slice(start, start + step)
