"""The phase surface: what one method does against another over a grid of two dials."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go

from epistill.report.panels import Plot, heat_panel, panel

SURFACE_MEASURES = {
    "score": "OOD score",
    "density_per_1k_tokens": "markers per 1,000 tokens",
}


def surface_plot(surface: Mapping[str, Any] | None) -> Plot | None:
    """Heat maps of differences, a panel per pair of arms; None before the first point is there.

    The axes are nominal dials; the measured ones are in the hover text and in report.json.
    """
    if surface is None or len(surface["dials"]) != 2:
        return None
    (x_name, x_values), (y_name, y_values) = surface["dials"].items()
    every = [point for points in surface["pairs"].values() for point in points]
    if not any(point["score"] for point in every):
        return None
    panels: list[go.Figure] = []
    for measure, title in SURFACE_MEASURES.items():
        limit = max(abs(p[measure]["value"]) for p in every if p[measure]) or 1.0
        for label, points in surface["pairs"].items():
            by_place = {(p["nominal"][x_name], p["nominal"][y_name]): p for p in points}
            cells = [[by_place[(x, y)][measure] for x in x_values] for y in y_values]
            heat = heat_panel(
                [f"{x:g}" for x in x_values],
                [f"{y:g}" for y in y_values],
                [[cell["value"] if cell else None for cell in line] for line in cells],
                limit,
                title,
                text=[[_label(cell, measure) for cell in line] for line in cells],
                texttemplate="%{text}",
                customdata=[[_measured(by_place[(x, y)]) for x in x_values] for y in y_values],
                hovertemplate="%{text}<br>%{customdata}<extra></extra>",
            )
            figure = panel(heat, title=label, x=x_name, y=y_name, height=380)
            panels.append(figure.update_xaxes(type="category").update_yaxes(type="category"))
    return Plot(
        "surface",
        "The surface",
        "Difference of the two methods on the out-of-distribution sets at every setting of the "
        "dials; * where the 95 % interval excludes zero. Red: worse, or fewer markers. Panels of "
        "one measure have one scale.",
        tuple(panels),
    )


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
