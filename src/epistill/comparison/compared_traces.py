"""The traces that a comparison's page shows, as plain records."""

from __future__ import annotations

from typing import Any

import numpy as np

from epistill.comparison.compare import Comparison
from epistill.metrics.epistemic import density


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
