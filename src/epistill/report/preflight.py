"""The page of a preflight: table, ladder, classes, heat-map, prompts, verdicts; one offline file.

Enters: the dict of `preflight.run`. Leaves: preflight.html, by the study page's rules (everything
escaped, no requests).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader, select_autoescape
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from epistill.report.figures import PALETTE
from epistill.report.page import as_script_json, format_estimate, format_signed
from epistill.store import write_atomic

CLASSES = ("marker", "control", "number", "other")
PARTS = ("q1", "q2", "q3", "q4")
LIMIT_NATS = 3.0  # of the heat-map's colours


def write_preflight(report: Mapping[str, Any], path: Path) -> Path:
    """Write the page, whole or not at all; returns its path."""
    environment = Environment(
        loader=PackageLoader("epistill.report"), autoescape=select_autoescape(default=True)
    )
    environment.filters |= {
        "estimate": format_estimate,
        "signed": format_signed,
        "pretty": lambda value: json.dumps(value, indent=2, ensure_ascii=False),
    }
    figures = figures_of(report)
    html = environment.get_template("preflight.html.j2").render(
        report=report,
        figures=as_script_json({k: json.loads(str(f.to_json())) for k, f in figures.items()}),
        plots=list(figures),
        plotly=Markup(get_plotlyjs()),
    )
    write_atomic(path, html)
    return path


def figures_of(report: Mapping[str, Any]) -> dict[str, go.Figure]:
    """The figures that have data."""
    made = {
        "ladder": ladder(report["contexts"]),
        "classes": classes(report["contexts"]),
        "trace": trace(report["trace"]),
    }
    return {name: figure for name, figure in made.items() if figure.data}


def ladder(contexts: Mapping[str, Mapping[str, Any]]) -> go.Figure:
    """Richness against pressure, one point per context, both intervals."""
    figure = go.Figure()
    for i, (name, context) in enumerate(contexts.items()):
        x = context["richness"]["own_nats_per_response"]
        y = context["pressure"]["change_per_1k_tokens"]
        if x is None or y is None:
            continue
        figure.add_trace(
            go.Scatter(
                x=[x["value"]],
                y=[y["value"]],
                error_x=_bars(x),
                error_y=_bars(y),
                name=name,
                mode="markers+text",
                text=[name],
                textposition="top center",
                marker={
                    "size": 11,
                    "color": PALETTE[i % len(PALETTE)],
                    "symbol": "x" if context["control"] else "circle",
                },
            )
        )
    figure.update_layout(
        xaxis_title="richness: nats per response of the teacher's own writing",
        yaxis_title="change of marker mass per 1,000 student tokens",
        showlegend=False,
        template="plotly_white",
        height=460,
    )
    return figure


def classes(contexts: Mapping[str, Mapping[str, Any]]) -> go.Figure:
    """Mean u per class of token and quarter of the response, one row per context."""
    columns = [(kind, part) for kind in CLASSES for part in PARTS]
    rows = {
        name: [context["u_by_class"][kind][part] for kind, part in columns]
        for name, context in contexts.items()
    }
    if not any(cell for row in rows.values() for cell in row):
        return go.Figure()
    figure = go.Figure(
        go.Heatmap(
            x=[f"{kind} {part}" for kind, part in columns],
            y=list(rows),
            z=[[None if cell is None else cell["value"] for cell in row] for row in rows.values()],
            text=[[format_signed(cell, 2) for cell in row] for row in rows.values()],
            hovertemplate="%{y}, %{x}: %{text} nats<extra></extra>",
            colorscale="RdBu",
            zmid=0,
            zmin=-LIMIT_NATS,
            zmax=LIMIT_NATS,
        )
    )
    figure.update_layout(template="plotly_white", height=140 + 30 * len(rows))
    figure.update_yaxes(autorange="reversed")
    return figure


def trace(found: Mapping[str, Any]) -> go.Figure:
    """U of every token of one student response, one row per context."""
    u = found["u_nats"]
    if not u:
        return go.Figure()
    places = list(range(len(found["pieces"])))
    labels = [
        f"{piece!r} ({kind})" for piece, kind in zip(found["pieces"], found["classes"], strict=True)
    ]
    figure = go.Figure(
        go.Heatmap(
            x=places,
            y=list(u),
            z=list(u.values()),
            text=[labels] * len(u),
            hovertemplate="%{y}, token %{x} %{text}: %{z:.2f} nats<extra></extra>",
            colorscale="RdBu",
            zmid=0,
            zmin=-LIMIT_NATS,
            zmax=LIMIT_NATS,
        )
    )
    figure.update_layout(template="plotly_white", height=180 + 30 * len(u))
    figure.update_xaxes(tickvals=places, ticktext=found["pieces"], tickangle=90)
    figure.update_yaxes(autorange="reversed")
    return figure


def _bars(estimate: Mapping[str, Any]) -> dict[str, Any] | None:
    if estimate["low"] is None:
        return None
    return {
        "type": "data",
        "symmetric": False,
        "array": [estimate["high"] - estimate["value"]],
        "arrayminus": [estimate["value"] - estimate["low"]],
        "thickness": 1.2,
    }
