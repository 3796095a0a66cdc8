"""Pages about traces: what `compare` or `measure` found, and a browser of the traces themselves.

Enters: a command's dictionary and the traces to show. Leaves: one HTML file that opens offline.
Every trace is escaped before it reaches the page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from epistill.metrics.lexicon import Lexicon, load_lexicon
from epistill.report.format import (
    compared_answer,
    decomposition_lines,
    measured_answer,
    measured_groups,
)
from epistill.report.panels import Plot
from epistill.report.study_page import highlight_markers, render_page
from epistill.report.trace_figures import compared_plots, decile_plots

Trace = Mapping[str, Any]
MAX_ANSWERS = 3  # sentences at the top of a page; the table below has every group


def write_compared_page(
    summary: Mapping[str, Any],
    traces: Sequence[Trace],
    total: int,
    path: Path,
    *,
    lexicons: Sequence[str | Lexicon],
) -> Path:
    """Write the page of a comparison, whole or not at all; returns its path.

    Args:
        summary: What `compare` found, with `shift` beside it where that was asked for.
        traces: Those to browse.
        total: Responses compared; where `traces` are fewer, the page says that it shows a sample.
        path: Where.
        lexicons: Whose words are highlighted.
    """
    strata = {found["set"]: found["strata"] for found in summary["sets"]}
    own = {
        "side_name": "side",
        "answer": [
            (f"{found['set']}. " if len(strata) > 1 else "") + compared_answer(found["measures"])
            for found in summary["sets"]
        ],
        "decompositions": {n: decomposition_lines(s) if s else [] for n, s in strata.items()},
    }
    plots = compared_plots(summary)
    return _write("compare.html.j2", path, plots, traces, total, lexicons, summary, **own)


def write_measured_page(
    summary: Mapping[str, Any],
    traces: Sequence[Trace],
    total: int,
    path: Path,
    *,
    lexicons: Sequence[str | Lexicon],
    warnings: Sequence[str] = (),
) -> Path:
    """The same of what `measure` found; `warnings` are lines about what was skipped or repeated."""
    groups = measured_groups(summary)
    answer = [measured_answer(*one) for one in groups.items()][:MAX_ANSWERS]
    own = {"side_name": "file or group", "warnings": warnings, "groups": groups, "answer": answer}
    plots = decile_plots(groups)
    return _write("measure.html.j2", path, plots, traces, total, lexicons, summary, **own)


def _write(
    template: str,
    path: Path,
    plots: Sequence[Plot],
    traces: Sequence[Trace],
    total: int,
    lexicons: Sequence[str | Lexicon],
    summary: Mapping[str, Any],
    **values: Any,
) -> Path:
    lists = list(map(load_lexicon, lexicons))
    marked = [
        {**trace, **{p: str(highlight_markers(trace[p], lists)) for p in ("thinking", "answer")}}
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
        summary=summary,
        seed=summary["settings"]["seed"],
        **values,
    )
