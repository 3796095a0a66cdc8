"""The plots of pages about traces: budgets, accuracy by length and doubt, words, positions.

Enters: what `compare` or `measure` found. Leaves: `Plot`s in page order; a figure without data is
not made.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from epistill.report.format import bounds_text
from epistill.report.study_figures import PALETTE, Plot, error_bars, styled

MAX_WORDS = 30
COLOURS = {"a": PALETTE[0], "b": PALETTE[1]}


def compared_plots(summary: Mapping[str, Any]) -> list[Plot]:
    """All plots that have data, set by set."""
    several = len(summary["sets"]) > 1
    made: list[Plot | None] = []
    for i, found in enumerate(summary["sets"]):
        suffix = f": {found['set']}" if several else ""
        made += [_budget_plot(found, i, suffix), _strata_plot(found, i, suffix)]
    if summary.get("shift") is not None:
        made.append(shift_plot(summary["shift"]))
    return [plot for plot in made if plot is not None]


def _budget_plot(found: Mapping[str, Any], number: int, suffix: str) -> Plot | None:
    rows = found["budgets"]
    if not rows:
        return None
    figure = make_subplots(specs=[[{"secondary_y": True}]])
    budgets = [row["budget"] for row in rows]
    for side, colour in COLOURS.items():
        values = [row[side] for row in rows]
        figure.add_trace(
            go.Scatter(
                x=budgets,
                y=[value["value"] for value in values],
                error_y=error_bars(values),
                name=f"{side.upper()}: score",
                mode="lines+markers",
                line={"color": colour, "width": 2},
            )
        )
        figure.add_trace(
            go.Scatter(
                x=budgets,
                y=[row["cut_share"][side] for row in rows],
                name=f"{side.upper()}: share cut",
                mode="lines",
                line={"color": colour, "width": 1, "dash": "dot"},
            ),
            secondary_y=True,
        )
    figure.update_xaxes(title=f"budget ({found['budget_unit']})", type="log", tickvals=budgets,
                        ticktext=[f"{budget:,}" for budget in budgets])  # fmt: skip
    figure.update_yaxes(title="score (avg@k)", rangemode="tozero", secondary_y=False)
    figure.update_yaxes(title="share of responses cut", range=[0, 1.02], tickvals=[0, 0.5, 1],
                        showgrid=False, secondary_y=True)  # fmt: skip
    return Plot(
        f"budgets-{number}",
        f"Scores under a budget{suffix}",
        f"The same responses, graded as if each had been cut after so many {found['budget_unit']}; "
        "95 % intervals. Dotted: the share that was cut there. Where the order of the two changes, "
        "the comparison depends on the limit.",
        _with_legend_above(styled(figure, 420)),
    )


def _strata_plot(found: Mapping[str, Any], number: int, suffix: str) -> Plot | None:
    strata = found["strata"]
    if strata is None:
        return None
    units = {
        "length": strata["unit"],
        "density": f"{strata['lexicon']} markers per 1,000 {strata['unit']}",
    }
    figure = make_subplots(rows=1, cols=2, subplot_titles=list(units.values()), shared_yaxes=True)
    for column, (kind, unit) in enumerate(units.items(), 1):
        labels = [f"{row['label']}<br>{bounds_text(row, '').strip()}" for row in strata[kind]]
        for side, colour in COLOURS.items():
            known = [(n, row) for n, row in zip(labels, strata[kind], strict=True) if row[side]]
            figure.add_trace(
                go.Bar(
                    x=[name for name, _ in known],
                    y=[row[side]["value"] for _, row in known],
                    error_y=error_bars([row[side] for _, row in known]),
                    text=[f"n = {row['responses'][side]:,}" for _, row in known],
                    textposition="inside",
                    insidetextanchor="start",
                    name=side.upper(),
                    legendgroup=side,
                    showlegend=column == 1,
                    marker_color=colour,
                ),
                row=1,
                col=column,
            )
        figure.update_xaxes(
            title=unit, row=1, col=column, categoryorder="array", categoryarray=labels
        )
    figure.update_layout(barmode="group", yaxis_title="accuracy")
    figure.layout.annotations = ()
    return Plot(
        f"strata-{number}",
        f"Shorter, or less doubtful?{suffix}",
        "Accuracy among responses of like length, and of like marker density; the bounds are the "
        "thirds of both sides together. Bars: 95 % intervals; n: responses.",
        styled(figure, 400),
    )


def shift_plot(shift: Mapping[str, Any]) -> Plot | None:
    """The words that moved most, and beside them the markers, wherever they stand.

    Args:
        shift: What `traces.shift` found.
    """
    rows = [row for row in shift["words"] if row["p_value"] is not None]
    listed = [row for row in rows if row["lexicon"] is not None][:MAX_WORDS]
    if not rows:
        return None
    panels = {"the words that moved most": rows[:MAX_WORDS], "the words of the lexicons": listed}
    figure = make_subplots(rows=1, cols=2, subplot_titles=list(panels), horizontal_spacing=0.16)
    for column, words in enumerate(panels.values(), 1):
        for marker, colour in ((False, PALETTE[7]), (True, PALETTE[1])):
            own = [row for row in words if (row["lexicon"] is not None) == marker]
            figure.add_trace(
                go.Scatter(
                    x=[row["delta_per_1k_words"]["value"] for row in own],
                    y=[f"{row['word']} ({row['rank']})" for row in own],
                    error_x=error_bars([row["delta_per_1k_words"] for row in own]),
                    mode="markers",
                    name="word of a lexicon" if marker else "other word",
                    legendgroup=str(marker),
                    showlegend=column == 1,
                    marker={"color": colour, "size": 7},
                ),
                row=1,
                col=column,
            )
        figure.update_yaxes(
            row=1,
            col=column,
            categoryorder="array",
            categoryarray=[f"{row['word']} ({row['rank']})" for row in reversed(words)],
        )
    figure.update_xaxes(title="B - A, per 1,000 words", zeroline=True)
    tested, means = shift["tested_words"], shift["ordinary"]
    others = "; ".join(
        f"{name} {found['mean_abs_delta_per_response']:.3g}"
        for name, found in shift["lexicons"].items()
        if found["words"]
    )
    ordinary = f"{means['mean_abs_delta_per_response']:.3g}" if means["words"] else "none"
    return Plot(
        "shift",
        "Which words moved",
        f"All words, not only those on a list; rank among {tested:,} tested words in brackets, "
        "lines are 95 % intervals by problem. Mean absolute change per response: ordinary words "
        f"{ordinary}; {others}.",
        _with_legend_above(styled(figure, 180 + 19 * min(MAX_WORDS, len(rows)))),
    )


def decile_plots(summary: Mapping[str, Any]) -> list[Plot]:
    """Where in the response the markers stand, a line for each file (and group) and list."""
    figure = go.Figure()
    for file in summary["files"]:
        for group, found in file["groups"].items():
            for name, markers in found["markers"].items():
                known = [
                    row for row in markers["deciles"] if row["density_per_1k_words"] is not None
                ]
                several = len(file["groups"]) > 1
                owner = f"{file['file']} {group}" if several else file["file"]
                values = [row["density_per_1k_words"] for row in known]
                figure.add_trace(
                    go.Scatter(
                        x=[row["from"] + 0.05 for row in known],
                        y=[value["value"] for value in values],
                        error_y=error_bars(values) if values else None,
                        mode="lines+markers",
                        name=f"{owner}: {name}",
                        line={"color": PALETTE[len(list(figure.data)) % len(PALETTE)], "width": 2},
                    )
                )
    if not figure.data:
        return []
    figure.update_xaxes(title="place in the response", tickformat=".0%", range=[0, 1])
    figure.update_yaxes(title="per 1,000 words", rangemode="tozero")
    return [
        Plot(
            "deciles",
            "Where in the response",
            "Markers (and words of the control lists) by tenth of the response, 95 % intervals.",
            styled(figure, 420),
        )
    ]


def _with_legend_above(figure: go.Figure) -> go.Figure:
    figure.update_layout(legend={"orientation": "h", "y": 1.08, "yanchor": "bottom", "x": 0})
    return figure
