"""Predictions against outcomes: one panel per outcome, one point per arm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

PREDICTION_WORDS = (
    "prediction-plot",
    "Prediction and outcome, arm by arm",
    "Across: what preflight measured before training; up: the change that training brought, with "
    "its 95 % interval. Hover for the arm.",
)


def prediction_figure(prediction: Mapping[str, Any]) -> go.Figure:
    """Four panels: the prediction that verdicts use, and its outcome."""
    outcomes = prediction["outcomes"]
    titles = [f"{name}: rho {found['rho']['value']:+.2f}" for name, found in outcomes.items()]
    figure = make_subplots(rows=2, cols=2, subplot_titles=titles, vertical_spacing=0.16)
    for i, (name, found) in enumerate(outcomes.items()):
        row, column = i // 2 + 1, i % 2 + 1
        changes = [arm["outcomes"][name] for arm in prediction["arms"]]
        figure.add_trace(
            go.Scatter(
                x=[arm["predictions"][found["predictor"]] for arm in prediction["arms"]],
                y=[change["value"] for change in changes],
                error_y={
                    "type": "data",
                    "symmetric": False,
                    "array": [c["high"] - c["value"] for c in changes],
                    "arrayminus": [c["value"] - c["low"] for c in changes],
                    "thickness": 1,
                }
                if all(c["low"] is not None for c in changes)
                else None,
                text=[arm["label"] for arm in prediction["arms"]],
                mode="markers",
                showlegend=False,
            ),
            row=row,
            col=column,
        )
        figure.update_xaxes(title=found["predictor"], row=row, col=column)
        figure.update_yaxes(title="change", row=row, col=column)
    return figure
