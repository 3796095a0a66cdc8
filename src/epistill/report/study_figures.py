"""The plots of a study's page. Data only from report.json.

Enters: the report's dict. Leaves: plots in page order. A plot without data is not made, so every
plot on the page has some. Colour is the method, dash (or the number at a point) the coverage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from epistill.report.panels import PALETTE, Plot, curve, error_bars, panel
from epistill.report.prediction_figure import prediction_plot
from epistill.report.surface_figure import surface_plot

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
UNTRAINED = "#8a8a8a"
DASHES = ("solid", "longdash", "dash", "dashdot", "dot")  # from all problems to the fewest

Arm = Mapping[str, Any]


def study_plots(report: Mapping[str, Any]) -> list[Plot]:
    """All plots that have data. The arms of a grid are drawn as a surface, not as lines."""
    arms: Sequence[Arm] = report["arms"] if report["surface"] is None else []
    names = dict.fromkeys(arm["method"] for arm in arms if arm["method"] is not None)
    colours = {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(names)} | {None: UNTRAINED}
    made = [
        *(_probe_plot(probe) for probe in report["probes"]),
        surface_plot(report["surface"]),
        _learning_curves(arms, colours),
        _evaluation_curves(arms, colours),
        _change_plot(arms, colours),
        _coverage_plot(arms, colours),
        *(prediction_plot(preflight["prediction"]) for preflight in report["preflights"]),
    ]
    return [plot for plot in made if plot is not None]


def _probe_plot(probe: Mapping[str, Any]) -> Plot | None:
    contexts = list(probe["contexts"])
    if not contexts:
        return None
    panels: list[go.Figure] = []
    for measure, title in MEASURE_TITLES.items():
        values = [probe["contexts"][context][measure] for context in contexts]
        heights = [value["value"] for value in values]
        bars = go.Bar(
            x=contexts, y=heights, error_y=error_bars(values), marker_color=PALETTE[0], name=title
        )
        panels.append(panel(bars, title=title))
    return Plot(
        f"probe-{probe['id']}",
        probe["label"],
        "The same model, the same problems; only what it sees beyond the question differs. Bars "
        "are means with 95 % intervals.",
        tuple(panels),
    )


def _variants(arms: Sequence[Arm]) -> dict[str, list[tuple[Arm, str]]]:
    """Arms that differ in coverage only, each with its dash, by what they have in common."""
    amounts = sorted({arm["coverage"] or float("inf") for arm in arms}, reverse=True)
    dashes = {amount: DASHES[i % len(DASHES)] for i, amount in enumerate(amounts)}
    variants: dict[str, list[tuple[Arm, str]]] = {}
    for arm in arms:
        drawn = (arm, dashes[arm["coverage"] or float("inf")])
        variants.setdefault(arm["series"] or arm["label"], []).append(drawn)
    return variants


def _amount(arm: Arm) -> str:
    coverage = arm["coverage"]
    return "1 problem" if coverage == 1 else f"{coverage or 'all'} problems"


def _curve_panels(
    arms: Sequence[Arm],
    colours: Mapping[str | None, str],
    measures: Sequence[str],
    seeds_of: Any,
) -> tuple[go.Figure, ...]:
    """A panel for each variant; `seeds_of(arm, measure)` gives (steps, a series per seed)."""
    panels: list[go.Figure] = []
    for title, variant in _variants(arms).items():
        traces: list[go.Scatter] = []
        for place, measure in enumerate(measures):
            for arm, dash in variant:
                steps, seeds = seeds_of(arm, measure)
                if seeds:
                    look = {"dash": dash, "meta": place, "showlegend": len(variant) > 1}
                    colour = colours[arm["method"]]
                    traces += curve(steps, seeds, colour, name=_amount(arm), **look)
        if traces:
            panels.append(panel(*traces, title=title, x="optimiser step", height=280))
    return tuple(panels)


def _learning_curves(arms: Sequence[Arm], colours: Mapping[str | None, str]) -> Plot | None:
    shown = [m for m in CURVE_TITLES if any(m in arm["curves"] for arm in arms)]

    def seeds_of(arm: Arm, measure: str) -> tuple[Any, list[Any]]:
        found = arm["curves"].get(measure)
        return ([], []) if found is None else (found["steps"], list(found["seeds"].values()))

    panels = _curve_panels(arms, colours, shown, seeds_of)
    if not panels:
        return None
    return Plot(
        "learning-curves",
        "Learning curves",
        "On the student's own training rollouts: mean over seeds, band from the lowest to the "
        "highest seed. Colour is the method, dash the number of training problems; all panels have "
        "the same scale.",
        panels,
        tuple(CURVE_TITLES[measure] for measure in shown),
    )


def _evaluation_curves(arms: Sequence[Arm], colours: Mapping[str | None, str]) -> Plot | None:
    """Small evaluations during training."""
    points = [p for arm in arms for of_seed in arm["evaluation_curve"].values() for p in of_seed]
    names = [name for name in dict.fromkeys(key for p in points for key in p) if name != "step"]

    def seeds_of(arm: Arm, name: str) -> tuple[Any, list[Any]]:
        tables = [p for p in arm["evaluation_curve"].values() if p and name in p[0]]
        steps = [point["step"] for point in tables[0]] if tables else []
        return steps, [[point.get(name) for point in table] for table in tables]

    panels = _curve_panels(arms, colours, names, seeds_of)
    if not panels:
        return None
    return Plot(
        "evaluation-curves",
        "Evaluations during training",
        "Small samples of the evaluation sets, for the shape of the curve; the table below has the "
        "full ones.",
        panels,
        tuple(name.replace("/", ": ").replace("_", " ") for name in names),
    )


def _change_plot(arms: Sequence[Arm], colours: Mapping[str | None, str]) -> Plot | None:
    """OOD score change against marker change, one point per arm with both intervals."""
    traces: list[go.Scatter] = []
    named: set[str] = set()
    for arm in arms:
        change = arm["difference_to_baseline"].get("ood")
        if change is None:
            continue
        x, y, name = change["density_per_1k_tokens"], change["score"], arm["method"] or "untrained"
        traces.append(
            go.Scatter(
                x=[x["value"]],
                y=[y["value"]],
                error_x=error_bars([x]),
                error_y=error_bars([y]),
                name=name,
                legendgroup=name,
                showlegend=name not in named,
                hovertext=arm["label"],
                text=str(arm["coverage"] or ""),
                textposition="top right",
                mode="markers+text",
                marker={"color": colours[arm["method"]], "size": 10},
            )
        )
        named.add(name)
    if not traces:
        return None
    return Plot(
        "change",
        "What happened to doubt, and what happened to OOD",
        "Change against the untrained base on the out-of-distribution sets, 95 % intervals. Colour "
        "is the method; a number is the training problems where they were not all; hover for the "
        "arm.",
        (
            panel(
                *traces,
                x="change of markers per 1,000 tokens",
                y="change of OOD score",
                height=480,
            ),
        ),
    )


def _coverage_plot(arms: Sequence[Arm], colours: Mapping[str | None, str]) -> Plot | None:
    """Scores over coverage, one line per series that was trained at two or more coverages."""
    lines: dict[str, list[Arm]] = {}
    for arm in arms:
        if arm["series"] is not None and all(arm["evaluations"].values()):
            lines.setdefault(arm["series"], []).append(arm)
    lines = {series: line for series, line in lines.items() if len(line) >= 2}
    if not lines:
        return None
    panels: list[go.Figure] = []
    for kind, title in {"in_domain": "in-domain (held out)", "ood": "OOD"}.items():
        figure = panel(title=f"{title}: score", x="distinct training problems", height=340)
        for series, line in lines.items():
            line = sorted(line, key=lambda arm: arm["coverage"] or float("inf"))
            values = [arm["evaluations"][kind]["score"] for arm in line]
            figure.add_trace(
                go.Scatter(
                    x=[str(arm["coverage"] or "all") for arm in line],
                    y=[value["value"] for value in values],
                    error_y=error_bars(values),
                    name=series,
                    line={"color": colours[line[-1]["method"]], "width": 2},
                )
            )
        panels.append(figure.update_xaxes(type="category"))
    return Plot(
        "coverage",
        "Task coverage",
        "Final score against the number of distinct training problems, 95 % intervals.",
        tuple(panels),
    )
