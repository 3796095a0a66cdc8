"""The page about traces: what a comparison found, and a browser of the traces themselves.

Enters: a comparison's dictionary and the traces to show. Leaves: one HTML file that opens offline.
Every trace is escaped before it reaches the page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from epistill.metrics.lexicon import load_lexicon
from epistill.report.format import decomposition_lines
from epistill.report.page import highlight_markers, render_page
from epistill.report.trace_figures import trace_plots


def write_trace_page(
    summary: Mapping[str, Any],
    traces: Sequence[Mapping[str, Any]],
    total: int,
    path: Path,
    *,
    lexicons: Sequence[str],
) -> Path:
    """Write the page.

    Args:
        summary: What `traces.compare` found.
        traces: From `traces.shown`.
        total: Responses compared; where `traces` are fewer, the page says that it shows a sample.
        path: Where; written whole or not at all.
        lexicons: Whose words are highlighted.

    Returns:
        The path.
    """
    lists = [load_lexicon(name) for name in lexicons]
    marked = [
        {
            **trace,
            "thinking": str(highlight_markers(trace["thinking"], lists)),
            "answer": str(highlight_markers(trace["answer"], lists)),
        }
        for trace in traces
    ]
    return render_page(
        "traces.html.j2",
        path,
        trace_plots(summary),
        traces=marked,
        summary=summary,
        shown=len(traces),
        total=total,
        lexicons=[one.name for one in lists],
        decompositions={
            found["set"]: [] if found["strata"] is None else decomposition_lines(found["strata"])
            for found in summary["sets"]
        },
    )
