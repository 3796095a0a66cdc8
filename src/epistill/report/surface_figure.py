"""The phase surface: what one method does against another over a grid of two dials."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

SURFACE_MEASURES = {
    "score": "OOD score",
    "density_per_1k_tokens": "markers per 1,000 tokens",
}


def surface_figure(surface: Mapping[str, Any]) -> go.Figure | None:
    """Heat maps of differences, one row per pair of arms; None before the first point is there.

    A star marks points whose 95 % interval excludes zero. The axes are nominal dials; the measured
    ones are in the hover text and in report.json.
    """
    if len(surface["dials"]) != 2:
        return None
    (x_name, x_values), (y_name, y_values) = surface["dials"].items()
    pairs = surface["pairs"]
    if not any(point["score"] for points in pairs.values() for point in points):
        return None
    titles = [f"{label}: {m}" for label in pairs for m in SURFACE_MEASURES.values()]
    figure = make_subplots(
        rows=len(pairs),
        cols=2,
        subplot_titles=titles,
        vertical_spacing=0.14,
        horizontal_spacing=0.14,
    )
    for row, points in enumerate(pairs.values(), 1):
        by_place = {(p["nominal"][x_name], p["nominal"][y_name]): p for p in points}
        for column, measure in enumerate(SURFACE_MEASURES, 1):
            cells = [[by_place[(x, y)][measure] for x in x_values] for y in y_values]
            values = [[cell["value"] if cell else None for cell in line] for line in cells]
            limit = max(abs(v) for line in values for v in line if v is not None) or 1.0
            figure.add_trace(
                go.Heatmap(
                    x=[f"{x:g}" for x in x_values],
                    y=[f"{y:g}" for y in y_values],
                    z=values,
                    zmid=0,
                    zmin=-limit,
                    zmax=limit,
                    colorscale="RdBu",
                    text=[[_label(cell, measure) for cell in line] for line in cells],
                    texttemplate="%{text}",
                    customdata=[[_measured(by_place[(x, y)]) for x in x_values] for y in y_values],
                    hovertemplate="%{text}<br>%{customdata}<extra></extra>",
                    showscale=False,
                ),
                row=row,
                col=column,
            )
    figure.update_xaxes(title=x_name, type="category")
    figure.update_yaxes(title=y_name, type="category")
    return figure


def _label(cell: Mapping[str, Any] | None, measure: str) -> str:
    if cell is None:
        return ""
    value = f"{cell['value']:+.2f}" if measure == "score" else f"{cell['value']:+.0f}"
    sure = cell["low"] is not None and cell["low"] * cell["high"] > 0
    return value + ("*" if sure else "")


def _measured(point: Mapping[str, Any]) -> str:
    measured = point["measured"]
    if measured is None:
        return "dials not measured yet"
    return "measured: " + ", ".join(f"{name} {value:.2f}" for name, value in measured.items())
