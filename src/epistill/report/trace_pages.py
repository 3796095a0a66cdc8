"""Pages about traces: what `compare` or `measure` found, and a browser of the traces themselves.

Enters: a command's dictionary and the traces to show. Leaves: one HTML file that opens offline.
Every trace is escaped before it reaches the page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from epistill.metrics.lexicon import load_lexicon
from epistill.report.format import decomposition_lines
from epistill.report.panels import Plot
from epistill.report.study_page import highlight_markers, render_page
from epistill.report.trace_figures import compared_plots, decile_plots

Trace = Mapping[str, Any]


def write_compared_page(
    summary: Mapping[str, Any],
    traces: Sequence[Trace],
    total: int,
    path: Path,
    *,
    lexicons: Sequence[str],
) -> Path:
    """Write the page of a comparison.

    Args:
        summary: What `traces.compare` found, with `shift` beside it where that was asked for.
        traces: From `traces.shown`.
        total: Responses compared; where `traces` are fewer, the page says that it shows a sample.
        path: Where; written whole or not at all.
        lexicons: Whose words are highlighted.

    Returns:
        The path.
    """
    return _write(
        "compare.html.j2",
        path,
        compared_plots(summary),
        traces,
        total,
        lexicons,
        summary=summary,
        side_name="side",
        seed=summary["settings"]["seed"],
        decompositions={
            found["set"]: [] if found["strata"] is None else decomposition_lines(found["strata"])
            for found in summary["sets"]
        },
    )


def write_measured_page(
    summary: Mapping[str, Any],
    traces: Sequence[Trace],
    total: int,
    path: Path,
    *,
    lexicons: Sequence[str],
    warnings: Sequence[str] = (),
) -> Path:
    """Write the page of what `measure` found; arguments as for `write_compared_page`.

    Args:
        summary: From `traces.summary`.
        traces, total, path, lexicons: As above.
        warnings: Lines about what was skipped or repeated.
    """
    return _write(
        "measure.html.j2",
        path,
        decile_plots(summary),
        traces,
        total,
        lexicons,
        summary=summary,
        side_name="file or group",
        seed=summary["settings"]["seed"],
        warnings=warnings,
    )


def _write(
    template: str,
    path: Path,
    plots: Sequence[Plot],
    traces: Sequence[Trace],
    total: int,
    lexicons: Sequence[str],
    **values: Any,
) -> Path:
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
        template,
        path,
        plots,
        traces=marked,
        shown=len(traces),
        total=total,
        lexicons=[one.name for one in lists],
        **values,
    )
