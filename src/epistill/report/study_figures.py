"""The plots of a study's page. Data only from report.json.

Enters: the report's dict. Leaves: plots in page order, the answer's first. A plot without data is
not made, so every plot on the page has some. Colour is the method with its settings, dash or symbol
the coverage; where colours come again, symbols are open or dotted.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from epistill.report.format import CURVE_TITLES, MEASURE_TITLES
from epistill.report.panels import (
    PALETTE,
    Plot,
    cell_texts,
    colour_and_ending,
    curve,
    heat_panel,
    panel,
    with_bars,
)

SURFACE_TITLES = {"score": "OOD score", "density_per_1k_tokens": "markers per 1,000 tokens"}
UNTRAINED = "#8a8a8a"
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x")  # as dashes
DASHES = ("solid", "longdash", "dash", "dashdot", "dot")  # from all problems to the fewest
AGAIN = " Open or dotted symbols: methods beyond the first dozen."

Arm = Mapping[str, Any]
Looks = Mapping[str, tuple[str, str]]  # of a variant: its colour, and what its symbol ends with


def study_plots(report: Mapping[str, Any]) -> list[Plot]:
    """All plots that have data. The arms of a grid are drawn as a surface, not as lines."""
    arms: Sequence[Arm] = report["arms"] if report["surface"] is None else []
    looks = _looks(arms)
    made = [
        _surface_plot(report["surface"]),
        _change_plot(arms, looks),
        *(_probe_plot(probe) for probe in report["probes"]),
        _learning_curves(arms, looks),
        _evaluation_curves(arms, looks),
        _coverage_plot(arms, looks),
        *(_prediction_plot(preflight["prediction"]) for preflight in report["preflights"]),
    ]
    return [plot for plot in made if plot is not None]


def _looks(arms: Sequence[Arm]) -> Looks:
    """Those without training are grey."""
    variants = dict.fromkeys(_variant(arm) for arm in arms if arm["method"] is not None)
    trained = {name: colour_and_ending(place) for place, name in enumerate(variants)}
    return trained | {_variant(arm): (UNTRAINED, "") for arm in arms if arm["method"] is None}


def _again(names: Iterable[str], looks: Looks) -> str:
    """What a plot says below itself where colours come again."""
    return AGAIN if any(looks[name][1] for name in names) else ""


def _variant(arm: Arm) -> str:
    """What arms that differ in coverage only have in common."""
    return str(arm["series"] or arm["label"])


def _probe_plot(probe: Mapping[str, Any]) -> Plot | None:
    contexts = probe["contexts"]
    if not contexts:
        return None

    def bars(measure: str, title: str) -> go.Figure:
        values = [found[measure] for found in contexts.values()]
        look = {"marker_color": PALETTE[0], "name": title, "orientation": "h"}
        figure = panel(with_bars(go.Bar, values, list(contexts), **look), title=title, height=260)
        return figure.update_yaxes(autorange="reversed")

    return Plot(
        f"probe-{probe['id']}",
        probe["label"],
        "The same model, the same problems; only what it sees beyond the question differs. Bars "
        "are means with 95 % intervals.",
        tuple(bars(measure, title) for measure, title in MEASURE_TITLES.items()),
    )


def _variants(arms: Sequence[Arm]) -> dict[str, list[tuple[Arm, str]]]:
    """Arms of each variant from the largest coverage to the smallest, each with its dash."""
    amounts = sorted({_coverage(arm) for arm in arms if arm["method"] is not None}, reverse=True)
    dashes = dict(zip(amounts, itertools.cycle(DASHES), strict=False))
    variants: dict[str, list[tuple[Arm, str]]] = {}
    for arm in arms:
        drawn = (arm, dashes.get(_coverage(arm), DASHES[0]))
        variants.setdefault(_variant(arm), []).append(drawn)
    return {
        name: sorted(drawn, key=lambda one: _coverage(one[0]), reverse=True)
        for name, drawn in variants.items()
    }


def _coverage(arm: Arm) -> float:
    return arm["coverage"] or float("inf")


def _amount(arm: Arm) -> str:
    coverage = arm["coverage"]
    return "1 problem" if coverage == 1 else f"{coverage or 'all'} problems"


def _curve_panels(
    arms: Sequence[Arm],
    looks: Looks,
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
                    traces += curve(steps, seeds, looks[title][0], name=_amount(arm), **look)
        if traces:
            panels.append(panel(*traces, title=title, x="optimiser step", height=280))
    return tuple(panels)


def _learning_curves(arms: Sequence[Arm], looks: Looks) -> Plot | None:
    shown = [m for m in CURVE_TITLES if any(m in arm["curves"] for arm in arms)]

    def seeds_of(arm: Arm, measure: str) -> tuple[Any, list[Any]]:
        found = arm["curves"].get(measure)
        return ([], []) if found is None else (found["steps"], list(found["seeds"].values()))

    panels = _curve_panels(arms, looks, shown, seeds_of)
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


def _evaluation_curves(arms: Sequence[Arm], looks: Looks) -> Plot | None:
    """Small evaluations during training."""
    points = [p for arm in arms for of_seed in arm["evaluation_curve"].values() for p in of_seed]
    names = [name for name in dict.fromkeys(key for p in points for key in p) if name != "step"]

    def seeds_of(arm: Arm, name: str) -> tuple[Any, list[Any]]:
        tables = [p for p in arm["evaluation_curve"].values() if p and name in p[0]]
        steps = [point["step"] for point in tables[0]] if tables else []
        return steps, [[point.get(name) for point in table] for table in tables]

    panels = _curve_panels(arms, looks, names, seeds_of)
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


def _change_plot(arms: Sequence[Arm], looks: Looks) -> Plot | None:
    """OOD score change against marker change, one point per arm with both intervals."""
    changed = [(arm, arm["difference_to_baseline"].get("ood")) for arm in arms]
    changed = [(arm, change) for arm, change in changed if change is not None]
    amounts = sorted({_coverage(arm): _amount(arm) for arm, _ in changed}.items(), reverse=True)
    symbols = dict(zip(dict(amounts), itertools.cycle(SYMBOLS), strict=False))
    traces: dict[str, list[go.Scatter]] = {}
    for arm, change in changed:
        name = _variant(arm)
        colour, ending = looks[name]
        look = {
            "legendgroup": name,
            "showlegend": name not in traces,
            "hovertext": arm["label"],
            "mode": "markers",
            "marker": {
                "color": colour, "size": 10, "symbol": symbols[_coverage(arm)] + ending,
            },
        }  # fmt: skip
        x, y = [change["density_per_1k_tokens"]], [change["score"]]
        traces.setdefault(name, []).append(with_bars(go.Scatter, x, y, name=name, **look))
    said = _again(traces, looks)
    if len(amounts) > 1:  # the legend's second half: a symbol for each coverage
        traces[""] = [
            go.Scatter(
                x=[None], y=[None], mode="markers", name=amount, hoverinfo="skip",
                marker={"color": UNTRAINED, "size": 10, "symbol": symbols[coverage]},
            )
            for coverage, amount in amounts
        ]  # fmt: skip
    if not changed:
        return None
    every = [trace for of_name in traces.values() for trace in of_name]
    labels = {"x": "change of markers per 1,000 tokens", "y": "change of OOD score"}
    return Plot(
        "change",
        "What happened to doubt, and what happened to OOD",
        "Change against the untrained base on the out-of-distribution sets, 95 % intervals. Colour "
        f"is the method, symbol the number of training problems; hover for the arm.{said}",
        (panel(*every, **labels, height=420),),
    )


def _coverage_plot(arms: Sequence[Arm], looks: Looks) -> Plot | None:
    """Scores over coverage, one line per series that was trained at two or more coverages."""
    lines: dict[str, list[Arm]] = {}
    for arm in sorted(arms, key=_coverage):
        if arm["series"] is not None and all(arm["evaluations"].values()):
            lines.setdefault(_variant(arm), []).append(arm)
    lines = {series: line for series, line in lines.items() if len(line) >= 2}
    if not lines:
        return None
    panels: list[go.Figure] = []
    for kind, title in {"in_domain": "in-domain (held out)", "ood": "OOD"}.items():
        traces = [
            with_bars(
                go.Scatter,
                [str(arm["coverage"] or "all") for arm in line],
                [arm["evaluations"][kind]["score"] for arm in line],
                name=series,
                line={"color": looks[series][0], "width": 2},
                marker={"symbol": f"circle{looks[series][1]}", "size": 8},
            )
            for series, line in lines.items()
        ]
        look = {"title": f"{title}: score", "x": "distinct training problems", "height": 340}
        panels.append(panel(*traces, **look).update_xaxes(type="category"))
    return Plot(
        "coverage",
        "Task coverage",
        "Final score against the number of distinct training problems, 95 % intervals."
        + _again(lines, looks),
        tuple(panels),
    )


def _prediction_plot(prediction: Mapping[str, Any] | None) -> Plot | None:
    """The predictions that verdicts use against their outcomes; one point per arm."""
    if prediction is None:
        return None
    panels: list[go.Figure] = []
    arms = prediction["arms"]
    for name, found in prediction["outcomes"].items():
        points = with_bars(
            go.Scatter,
            [arm["predictions"][found["predictor"]] for arm in arms],
            [arm["outcomes"][name] for arm in arms],
            text=[arm["label"] for arm in arms],
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


def _surface_plot(surface: Mapping[str, Any] | None) -> Plot | None:
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
    for measure, title in SURFACE_TITLES.items():
        limit = max((abs(p[measure]["value"]) for p in every if p[measure]), default=0.0) or 1.0
        for label, points in surface["pairs"].items():
            by_place = {(p["nominal"][x_name], p["nominal"][y_name]): p for p in points}
            cells = [[by_place[(x, y)] for x in x_values] for y in y_values]
            across, up = [f"{x:g}" for x in x_values], [f"{y:g}" for y in y_values]
            values = [[p[measure] and p[measure]["value"] for p in line] for line in cells]
            texts = [[_label(p[measure], measure) for p in line] for line in cells]
            heat = heat_panel(
                across, up, values, limit, title,
                text=texts,
                customdata=[[_measured(point) for point in line] for line in cells],
                hovertemplate="%{text}<br>%{customdata}<extra></extra>",
            )  # fmt: skip
            written = cell_texts(across, up, values, texts, limit)
            figure = panel(heat, written, title=label, x=x_name, y=y_name, height=380)
            figure.update_xaxes(type="category", showgrid=False)
            panels.append(figure.update_yaxes(type="category", showgrid=False))
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
    sure = cell["low"] is not None and cell["low"] * cell["high"] > 0
    return f"{cell['value']:+.{2 if measure == 'score' else 0}f}{'*' if sure else ''}"


def _measured(point: Mapping[str, Any]) -> str:
    if point["measured"] is None:
        return "dials not measured yet"
    return "measured: " + ", ".join(f"{n} {value:.2f}" for n, value in point["measured"].items())
