"""What the benchmarks share: pairs timed in turn, medians, a table and JSON.

Every number is a ratio against a peer in the same run on the same machine; a single absolute time
says little on a shared one.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any


def timed(function: Callable[[], Any]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def medians_in_turn(functions: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of each, called A B C A B C ..., after one warm-up round each.

    Under "NAME, processor" stand the processor seconds, those of processes that it waited for too.
    """
    for function in functions.values():
        function()
    seconds: defaultdict[str, list[float]] = defaultdict(list)
    for _ in range(repeats):
        for name, function in functions.items():
            before = sum(os.times()[:4])
            seconds[name].append(timed(function))
            seconds[f"{name}, processor"].append(sum(os.times()[:4]) - before)
    return {name: statistics.median(values) for name, values in seconds.items()}


def report(title: str, rows: list[dict[str, Any]], out: Path | None) -> None:
    """Print rows as a table, and write them as JSON."""
    print(f"\n{title}")
    columns = list(rows[0])
    widths = [max(len(c), *(len(_cell(r[c])) for r in rows)) for c in columns]
    for line in [columns, *([_cell(r[c]) for c in columns] for r in rows)]:
        print("  ".join(str(v).ljust(w) for v, w in zip(line, widths, strict=True)).rstrip())
    if out is not None:
        out.write_text(
            json.dumps({"title": title, "rows": rows}, indent=2) + "\n", encoding="utf-8"
        )


def _cell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
