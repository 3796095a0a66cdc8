"""The traces that a page about measured files shows, as plain records."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Any

from epistill.metrics.epistemic import density
from epistill.traces.measure import Measured, Options, tabulator


def measured_traces(
    results: Sequence[Measured], options: Options
) -> tuple[list[dict[str, Any]], int]:
    """Traces of measured files; `side` is the file and, where there are several, the group.

    Returns:
        Records (side, set, problem, row, score, length, density, thinking, answer), at most
        `options.keep`; and the number of responses used, of which they are all or a sample.
    """
    counter = tabulator(options)
    own = counter.columns[f"{counter.lexicons[0].name}.words"]
    kept = heapq.nsmallest(
        options.keep,
        ((shown, result) for result in results for shown in result.shown),
        key=lambda pair: pair[0].priority,
    )
    records = [
        {
            "side": f"{result.path.name} {shown.group}"
            if len(result.groups) > 1
            else result.path.name,
            "set": "",
            "problem": shown.problem or "",
            "row": shown.row,
            "score": None if shown.score is None else int(shown.score > 0.5),
            "length": (length := int(shown.counts[counter.columns["words"]].sum())),
            "density": density(int(shown.counts[own].sum()), length),
            "thinking": shown.thinking,
            "answer": shown.answer,
        }
        for shown, result in kept
    ]
    return records, sum(result.reading.used for result in results)
