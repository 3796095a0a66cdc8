"""The traces that a page shows, as plain records.

Enters: a `Comparison`, or `Measured` files, with traces kept. Leaves: a record per trace, and how
many there are in all.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Any

import numpy as np

from epistill.metrics.epistemic import density
from epistill.traces.compare import Comparison
from epistill.traces.measure import Measured, Options, tabulator


def measured_traces(
    results: Sequence[Measured], options: Options
) -> tuple[list[dict[str, Any]], int]:
    """Traces of measured files; `side` is the file and, where there are several, the group.

    Returns:
        As `compared_traces`; at most `options.keep` records.
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


def compared_traces(found: Comparison) -> tuple[list[dict[str, Any]], int]:
    """Traces of both sides to shared problems.

    Returns:
        Records (side, set, problem, row, score, length, density, thinking, answer), and the number
        of responses compared, of which they are all or a sample.
    """
    records: list[dict[str, Any]] = []
    for side, i in (("A", 0), ("B", 1)):
        place_of = {
            name: {place: j for j, place in enumerate(matched.halves[i].places)}
            for name, matched in found.matched.items()
        }
        for kept in found.sides[i].kept:
            j = place_of.get(kept.set, {}).get(kept.place)
            if j is None:
                continue
            half = found.matched[kept.set].halves[i]
            score, length = half.scores[j], int(half.lengths[j])
            records.append(
                {
                    "side": side,
                    "set": kept.set,
                    "problem": kept.problem[:200],
                    "row": kept.row,
                    "score": None if np.isnan(score) else int(score),
                    "length": length,
                    "density": density(half.responses[j].markers[0] or 0, length),
                    "thinking": kept.thinking,
                    "answer": kept.answer,
                }
            )
    total = sum(len(matched.all_responses()) for matched in found.matched.values())
    return records, total
