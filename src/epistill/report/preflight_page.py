"""The page of a preflight: table, ladder, classes, heat-map, prompts, verdicts; one offline file.

Enters: the dict of `preflight.run`. Leaves: preflight.html, by the study page's rules (everything
escaped, no requests).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from epistill.report.format import format_signed
from epistill.report.panels import Plot, colour_and_ending, heat_panel, panel, with_bars
from epistill.report.study_page import render_page

CLASSES = ("marker", "control", "number", "other")
PARTS = ("q1", "q2", "q3", "q4")
LIMIT_NATS = 3.0  # of the heat-map's colours


def write_preflight(report: Mapping[str, Any], path: Path) -> Path:
    """Write the page, whole or not at all; returns its path."""
    # All but the one written down beforehand, which is another for each outcome.
    rivals = [*next(iter(report["thresholds"]["correlations"].values()))][1:]
    page = {"traces": None, "report": report, "rivals": rivals}
    return render_page("preflight.html.j2", path, preflight_plots(report), **page)


def preflight_plots(report: Mapping[str, Any]) -> list[Plot]:
    """All plots that have data, in page order."""
    made = (
        Plot(
            "ladder",
            "The ladder: richness against pressure",
            "Each context with both 95 % intervals; crosses are controls.",
            (_ladder(report["contexts"]),),
        ),
        Plot(
            "classes",
            "Where the teacher pulls",
            "Mean u (teacher minus student log-probability, nats) per class of token and quarter "
            "of the response; empty where there is no such token.",
            (_classes(report["contexts"]),),
        ),
        *([_trace_plot(report["trace"])] if "trace" in report else []),
    )
    return [plot for plot in made if plot.panels[0].data]


def _ladder(contexts: Mapping[str, Mapping[str, Any]]) -> go.Figure:
    points: list[go.Scatter] = []
    for place, (name, context) in enumerate(contexts.items()):
        x = context["richness"]["own_nats_per_response"]
        y = context["pressure"]["change_per_1k_tokens"]
        colour, ending = colour_and_ending(place)
        symbol = ("x" if context["control"] else "circle") + ending
        look = {"mode": "markers", "marker": {"size": 11, "color": colour, "symbol": symbol}}
        if x is not None and y is not None:
            points.append(with_bars(go.Scatter, [x], [y], name=name, **look))
    return panel(
        *points,
        x="richness: nats per response of the teacher's own writing",
        y="change of marker mass per 1,000 student tokens",
        height=420,
    )


def _classes(contexts: Mapping[str, Mapping[str, Any]]) -> go.Figure:
    """Mean u per class of token and quarter of the response, one row per context."""
    columns = [(kind, part) for kind in CLASSES for part in PARTS]
    rows = {
        name: [context["u_by_class"][kind][part] for kind, part in columns]
        for name, context in contexts.items()
    }
    if not any(cell for row in rows.values() for cell in row):
        return go.Figure()
    heat = heat_panel(
        [[kind for kind, _ in columns], [part for _, part in columns]],
        list(rows),
        [[None if cell is None else cell["value"] for cell in row] for row in rows.values()],
        LIMIT_NATS,
        "nats",
        text=[[format_signed(cell, 2) for cell in row] for row in rows.values()],
        hovertemplate="%{y}, %{x}: %{text} nats<extra></extra>",
    )
    figure = panel(heat, height=130 + 30 * len(rows), meta={"columns": len(columns)})
    figure.update_xaxes(showgrid=False)
    return figure.update_yaxes(autorange="reversed", showgrid=False)


def _trace_plot(found: Mapping[str, Any]) -> Plot:
    words = (
        f"The first student response with a marker (problem {found['problem_id']}), not a chosen "
        f"one; {len(found['pieces'])} of {found['tokens']} tokens. Red: the teacher would rather "
        "not."
    )
    return Plot("trace", "One response, token by token", words, (_trace(found),))


def _trace(found: Mapping[str, Any]) -> go.Figure:
    """U of every token of one student response, one row per context."""
    u = found["u_nats"]
    if not u:
        return go.Figure()
    places = list(range(len(found["pieces"])))
    labels = [
        f"{piece!r} ({kind})" for piece, kind in zip(found["pieces"], found["classes"], strict=True)
    ]
    heat = heat_panel(
        places,
        list(u),
        list(u.values()),
        LIMIT_NATS,
        "nats",
        text=[labels] * len(u),
        hovertemplate="%{y}, token %{x} %{text}: %{z:.2f} nats<extra></extra>",
    )
    figure = panel(heat, height=150 + 24 * len(u), meta={"columns": len(places)})
    figure.update_xaxes(showgrid=False)
    figure.update_yaxes(autorange="reversed", showgrid=False)
    return figure.update_xaxes(tickvals=places, ticktext=found["pieces"], tickangle=90)
