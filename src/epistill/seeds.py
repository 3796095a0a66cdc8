"""Every random draw comes from a named seed.

Enters: any printable parts that name a draw, e.g. `("rollout", run_seed, step)`. Leaves: a 63-bit
integer. Hashing, not `seed + index`: with addition, neighbouring seeds share all but one item, so
"train seed" and "test seed" leak into each other.
"""

from __future__ import annotations

import hashlib
import random


def derive_seed(*parts: object) -> int:
    """Hash the parts into a seed that torch, numpy and `random` accept.

    Args:
        *parts: Names and numbers that identify the draw; order matters.

    Returns:
        An integer in [0, 2**63).

    Example:
        >>> derive_seed("star_search", 1, 0, 7) == derive_seed("star_search", 1, 0, 7)
        True
        >>> derive_seed("a", 11) == derive_seed("a", 1, 1)
        False
    """
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def named_random(*parts: object) -> random.Random:
    """A `random.Random` seeded by the hash of its name."""
    return random.Random(derive_seed(*parts))
