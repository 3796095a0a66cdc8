"""The plots of a study's page, as plotly figures. Data only from report.json.

Enters: the report's dict. Leaves: (id, title, explanation, figure) in page order. A figure without
data is not made, so every plot on the page has some.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from epistill.report.prediction_figure import PREDICTION_WORDS, prediction_figure
from epistill.report.surface_figure import surface_figure

PALETTE = (
    "#3366aa", "#cc5533", "#d9a441", "#557755", "#884488", "#338899", "#995555", "#777777",
    "#aa3377", "#66aa55", "#222255", "#bb8866",
)  # fmt: skip
CURVE_TITLES = {
    "reward": "score on training problems",
    "length_tokens": "length (tokens)",
    "density_per_1k_tokens": "markers per 1,000 tokens",
    "entropy_nats_per_token": "entropy (nats per token)",
    "distillation_nats_per_token": "divergence from the teacher (nats per token)",
    "truncated_share": "share cut at the limit",
}
MEASURE_TITLES = {
    "score": "score",
    "length_tokens": "length (tokens)",
    "density_per_1k_tokens": "markers per 1,000 tokens",
}


@dataclass(frozen=True, slots=True)
class Plot:
    """One figure with its words."""

    id: str
    title: str
    text: str
    figure: go.Figure


def study_plots(report: Mapping[str, Any]) -> list[Plot]:
    """All plots that have data. The arms of a grid are drawn as a surface, not as lines."""
    arms = report["arms"] if report["surface"] is None else []
    colours = {arm["id"]: PALETTE[i % len(PALETTE)] for i, arm in enumerate(arms)}
    made = [
        *(_probe_plot(probe) for probe in report["probes"]),
        _surface_plot(report["surface"]),
        _curve_plot(arms, colours),
        _evaluation_curves(arms, colours),
        _change_plot(arms, colours),
        _coverage_plot(arms, colours),
        *(
            Plot(*PREDICTION_WORDS, styled(prediction_figure(preflight["prediction"]), 640))
            for preflight in report["preflights"]
            if preflight["prediction"] is not None
        ),
    ]
    return [plot for plot in made if plot is not None]


def _probe_plot(probe: Mapping[str, Any]) -> Plot | None:
    contexts = list(probe["contexts"])
    if not contexts:
        return None
    figure = make_subplots(rows=1, cols=3, subplot_titles=list(MEASURE_TITLES.values()))
    for column, measure in enumerate(MEASURE_TITLES, 1):
        values = [probe["contexts"][context][measure] for context in contexts]
        figure.add_trace(
            go.Bar(
                x=contexts,
                y=[v["value"] for v in values],
                error_y=error_bars(values),
                marker_color=PALETTE[column - 1],
                showlegend=False,
            ),
            row=1,
            col=column,
        )
    return Plot(
        f"probe-{probe['id']}",
        probe["label"],
        "The same model, the same problems; only what it sees beyond the question differs. Bars "
        "are means with 95 % intervals.",
        styled(figure, 340),
    )


def _surface_plot(surface: Mapping[str, Any] | None) -> Plot | None:
    figure = None if surface is None else surface_figure(surface)
    if surface is None or figure is None:
        return None
    return Plot(
        "surface",
        "The surface",
        "Difference of the two methods on the out-of-distribution sets at every setting of the "
        "dials; * where the 95 % interval excludes zero. Red: worse, or fewer markers.",
        styled(figure, 420 * len(surface["pairs"])),
    )


def _curve_plot(arms: Sequence[Mapping[str, Any]], colours: Mapping[str, str]) -> Plot | None:
    shown = [m for m in CURVE_TITLES if any(m in arm["curves"] for arm in arms)]
    if not shown:
        return None
    figure = go.Figure()
    owners: list[str] = []
    for measure in shown:
        for arm in arms:
            curve = arm["curves"].get(measure)
            if curve is None:
                continue
            mean, low, high = _over_seeds(list(curve["seeds"].values()))
            visible = measure == shown[0]
            band = _band(curve["steps"], low, high, colours[arm["id"]], visible)
            line = go.Scatter(
                x=curve["steps"],
                y=mean,
                name=arm["label"],
                legendgroup=arm["id"],
                line={"color": colours[arm["id"]], "width": 2},
                visible=visible,
            )
            for trace in (band, line):
                figure.add_trace(trace)
                owners.append(measure)
    figure.update_layout(
        updatemenus=[_menu(shown, CURVE_TITLES, owners)],
        xaxis_title="optimiser step",
        yaxis_title=CURVE_TITLES[shown[0]],
    )
    return Plot(
        "learning-curves",
        "Learning curves",
        "On the student's own training rollouts: mean over seeds, band from the lowest to the "
        "highest seed. Choose the measure at the top left; click a name to hide an arm.",
        styled(figure, 460),
    )


def _evaluation_curves(
    arms: Sequence[Mapping[str, Any]], colours: Mapping[str, str]
) -> Plot | None:
    """Small evaluations during training, one panel per evaluation set."""
    names = list(
        dict.fromkeys(
            key
            for arm in arms
            for points in arm["evaluation_curve"].values()
            for point in points
            for key in point
            if key != "step"
        )
    )
    if not names:
        return None
    figure = go.Figure()
    owners: list[str] = []
    for name in names:
        for arm in arms:
            tables = [p for p in arm["evaluation_curve"].values() if p and name in p[0]]
            if not tables:
                continue
            mean, low, high = _over_seeds([[p.get(name) for p in points] for points in tables])
            steps = [point["step"] for point in tables[0]]
            visible = name == names[0]
            figure.add_trace(_band(steps, low, high, colours[arm["id"]], visible))
            figure.add_trace(
                go.Scatter(
                    x=steps,
                    y=mean,
                    name=arm["label"],
                    legendgroup=arm["id"],
                    mode="lines+markers",
                    line={"color": colours[arm["id"]], "width": 2},
                    visible=visible,
                )
            )
            owners += [name, name]
    titles = {name: name.replace("/", ": ").replace("_", " ") for name in names}
    figure.update_layout(
        updatemenus=[_menu(names, titles, owners)],
        xaxis_title="optimiser step",
        yaxis_title=titles[names[0]],
    )
    return Plot(
        "evaluation-curves",
        "Evaluations during training",
        "Small samples of the evaluation sets, for the shape of the curve; the table below has the "
        "full ones.",
        styled(figure, 460),
    )


def _change_plot(arms: Sequence[Mapping[str, Any]], colours: Mapping[str, str]) -> Plot | None:
    """OOD score change against marker change, one point per arm with both intervals."""
    figure = go.Figure()
    for arm in arms:
        change = arm["difference_to_baseline"].get("ood")
        if change is None:
            continue
        x, y = change["density_per_1k_tokens"], change["score"]
        figure.add_trace(
            go.Scatter(
                x=[x["value"]],
                y=[y["value"]],
                error_x=error_bars([x]),
                error_y=error_bars([y]),
                name=arm["label"],
                mode="markers",
                marker={"color": colours[arm["id"]], "size": 11},
            )
        )
    if not figure.data:
        return None
    figure.add_hline(y=0, line_width=1, line_color="#999")
    figure.add_vline(x=0, line_width=1, line_color="#999")
    figure.update_layout(
        xaxis_title="change of markers per 1,000 tokens", yaxis_title="change of OOD score"
    )
    return Plot(
        "change",
        "What happened to doubt, and what happened to OOD",
        "Change against the untrained base on the out-of-distribution sets, 95 % intervals.",
        styled(figure, 460),
    )


def _coverage_plot(arms: Sequence[Mapping[str, Any]], colours: Mapping[str, str]) -> Plot | None:
    """Scores over coverage, one line per series that was trained at two or more coverages."""
    lines: dict[str, list[Mapping[str, Any]]] = {}
    for arm in arms:
        if arm["series"] is not None and all(arm["evaluations"].values()):
            lines.setdefault(arm["series"], []).append(arm)
    lines = {series: line for series, line in lines.items() if len(line) >= 2}
    if not lines:
        return None
    kinds = {"in_domain": "in-domain (held out)", "ood": "OOD"}
    figure = make_subplots(rows=1, cols=2, subplot_titles=list(kinds.values()))
    for series, line in lines.items():
        line = sorted(line, key=lambda arm: arm["coverage"] or float("inf"))
        for column, kind in enumerate(kinds, 1):
            values = [arm["evaluations"][kind]["score"] for arm in line]
            figure.add_trace(
                go.Scatter(
                    x=[str(arm["coverage"] or "all") for arm in line],
                    y=[value["value"] for value in values],
                    error_y=error_bars(values),
                    name=series,
                    legendgroup=series,
                    showlegend=column == 1,
                    line={"color": colours[line[-1]["id"]], "width": 2},
                ),
                row=1,
                col=column,
            )
    figure.update_xaxes(title="distinct training problems", type="category")
    return Plot(
        "coverage",
        "Task coverage",
        "Final score against the number of distinct training problems, 95 % intervals.",
        styled(figure, 400),
    )


def _over_seeds(
    series: Sequence[Sequence[float | None]],
) -> tuple[list[float | None], list[float | None], list[float | None]]:
    """(mean, lowest, highest) per step over the seeds that have a number there."""
    mean: list[float | None] = []
    low: list[float | None] = []
    high: list[float | None] = []
    for values in zip(*series, strict=False):
        known = [value for value in values if value is not None]
        mean.append(sum(known) / len(known) if known else None)
        low.append(min(known, default=None))
        high.append(max(known, default=None))
    return mean, low, high


def _band(
    steps: Sequence[int],
    low: Sequence[float | None],
    high: Sequence[float | None],
    colour: str,
    visible: bool,
) -> go.Scatter:
    inside = [(s, a, b) for s, a, b in zip(steps, low, high, strict=False) if a is not None]
    return go.Scatter(
        x=[s for s, _, _ in inside] + [s for s, _, _ in reversed(inside)],
        y=[b for _, _, b in inside] + [a for _, a, _ in reversed(inside)],
        fill="toself",
        fillcolor=colour,
        opacity=0.13,
        line={"width": 0},
        hoverinfo="skip",
        showlegend=False,
        visible=visible,
    )


def _menu(names: Sequence[str], titles: Mapping[str, str], owners: Sequence[str]) -> dict[str, Any]:
    return {
        "x": 0,
        "xanchor": "left",
        "y": 1.14,
        "yanchor": "top",
        "buttons": [
            {
                "label": titles[name],
                "method": "update",
                "args": [
                    {"visible": [owner == name for owner in owners]},
                    {"yaxis.title.text": titles[name]},
                ],
            }
            for name in names
        ],
    }


def error_bars(values: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Intervals of estimates as bars; None where one has none."""
    if any(value["low"] is None for value in values):
        return None
    return {
        "type": "data",
        "symmetric": False,
        "array": [value["high"] - value["value"] for value in values],
        "arrayminus": [value["value"] - value["low"] for value in values],
        "thickness": 1.2,
    }


def styled(figure: go.Figure, height: int) -> go.Figure:
    """The look that all figures share."""
    figure.update_layout(
        template="plotly_white",
        height=height,
        margin={"l": 60, "r": 20, "t": 60, "b": 50},
        font={"family": "system-ui, sans-serif", "size": 13},
        legend={"font": {"size": 12}},
    )
    return figure
