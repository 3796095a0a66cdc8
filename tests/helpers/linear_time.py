"""Whether twice the text is at most some three times the work, in processor time."""

from __future__ import annotations

import time

MOST = 3.5  # linear is 2, quadratic 4; processor time of the fastest of several tries


def work(function, units, size):
    """Processor seconds of one reading of every unit, repeated to so many characters."""
    texts = [unit * (size // len(unit)) for unit in units]
    fastest = float("inf")
    for _ in range(2):
        started = time.process_time()
        for text in texts:
            function(text)
        fastest = min(fastest, time.process_time() - started)
    return fastest


def is_linear(function, units, size):
    """Whether doubling doubles; tried again, since other programs share the machine's caches."""
    return any(
        work(function, units, 2 * size) < MOST * work(function, units, size) for _ in range(4)
    )
