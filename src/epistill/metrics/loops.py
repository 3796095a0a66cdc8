"""Responses that end in a loop: text that only repeats itself until a limit cuts it.

A loop full of *wait* is collapse, not deliberation, so densities are given with and without such
responses (`docs/metrics.md`, "Loops"). Only the last TAIL characters are looked at.
"""

from __future__ import annotations

import zlib

TAIL = 4_000  # characters of the end that are looked at for repeated runs of words
COMPRESSED_BYTES = 1_000  # of the end that are compressed
LEAST_WORDS = 60
FEW_WORDS = 10  # in the last 1,000 characters: text without spaces, as Chinese
RUN = 8  # words
# In 2,718 responses of two 3B models to GSM8K and AMC23 the ends of 8 are loops. Those have .52 or
# more of their runs repeated or compress to .17 or less; of the others none has .28 or reaches .24.
REPEATED_SHARE, COMPRESSION, SOME_REPEATED = 0.5, 0.2, 0.05
_RUNS_REPEAT_BELOW = 0.4  # where half of the runs repeat, the end compresses to less than this
_PROBE, _PROBED_AT, _OFTEN = 12, (30, 90), 5


def is_looping(text: str) -> bool:
    """Whether the end of a text repeats itself.

    Either the last 1,000 bytes compress to less than a fifth and one in twenty of the runs of eight
    words near the end occurs more than once (or there are no words, as in Chinese), or half of the
    runs do. A loop that the response left again is not seen.

    Example:
        >>> is_looping("Let x = 3. " + "Wait, let me check that again. " * 60)
        True
        >>> is_looping("Wait, let me check that again. So x = 3.")
        False
    """
    size = len(text)
    if size < COMPRESSED_BYTES // 4:
        return False
    # Nearly every text leaves here, at the price of two searches in its end.
    end = text[-TAIL // 2 :]
    if all(end.count(text[size - at - _PROBE : size - at]) < _OFTEN for at in _PROBED_AT):
        return False
    ratio = compression_ratio_of_end(text)
    if ratio >= _RUNS_REPEAT_BELOW:
        return False
    share = repeated_run_share(text[-TAIL:])
    if ratio < COMPRESSION:  # so do rows of a table and lines of code, but no run of theirs repeats
        return share >= SOME_REPEATED or len(text[-COMPRESSED_BYTES:].split()) < FEW_WORDS
    return share >= REPEATED_SHARE


def repeated_run_share(text: str) -> float:
    """Share of the runs of eight words that stand in the text before; 0 for short texts."""
    words = text.split()
    if len(words) < LEAST_WORDS:
        return 0.0
    runs = [tuple(words[i : i + RUN]) for i in range(len(words) - RUN + 1)]
    return 1 - len(set(runs)) / len(runs)


def compression_ratio_of_end(text: str) -> float:
    """Compressed over plain size of the last 1,000 bytes; 1 for shorter texts."""
    end = text[-COMPRESSED_BYTES:].encode(errors="replace")[-COMPRESSED_BYTES:]
    return len(zlib.compress(end)) / len(end) if len(end) == COMPRESSED_BYTES else 1.0
