"""Predictions against outcomes: one panel per outcome, one point per arm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go

from epistill.report.panels import PALETTE, Plot, error_bars, panel


def prediction_plot(prediction: Mapping[str, Any] | None) -> Plot | None:
    """The predictions that verdicts use, and their outcomes."""
    if prediction is None:
        return None
    panels: list[go.Figure] = []
    for name, found in prediction["outcomes"].items():
        changes = [arm["outcomes"][name] for arm in prediction["arms"]]
        points = go.Scatter(
            x=[arm["predictions"][found["predictor"]] for arm in prediction["arms"]],
            y=[change["value"] for change in changes],
            error_y=error_bars(changes),
            text=[arm["label"] for arm in prediction["arms"]],
            mode="markers",
            marker={"color": PALETTE[0]},
            name=name,
        )
        title = f"{name}: rho {found['rho']['value']:+.2f}"
        panels.append(panel(points, title=title, x=found["predictor"], y="change"))
    return Plot(
        "prediction-plot",
        "Prediction and outcome, arm by arm",
        "Across: what preflight measured before training; up: the change that training brought, "
        "with its 95 % interval. Hover for the arm.",
        tuple(panels),
    )
