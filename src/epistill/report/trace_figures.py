"""The plots of pages about traces: budgets, accuracy by length and doubt, words, positions.

Enters: what `compare` or `measure` found. Leaves: `Plot`s in page order; a figure without data is
not made.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go

from epistill.report.format import bounds_text
from epistill.report.panels import PALETTE, Plot, colour_and_ending, panel, with_bars

MAX_WORDS = 30
MAX_LABEL = 40  # letters of a name in a legend
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
    score, cut = panel(title="score (avg@k)"), panel(title="share of responses cut")
    budgets = [row["budget"] for row in rows]
    for side, colour in COLOURS.items():
        look = {"name": side.upper(), "line": {"color": colour, "width": 2}}
        values, shares = [row[side] for row in rows], [row["cut_share"][side] for row in rows]
        score.add_trace(with_bars(go.Scatter, budgets, values, mode="lines+markers", **look))
        cut.add_trace(with_bars(go.Scatter, budgets, shares, **look))
    ticks = {"tickvals": budgets, "ticktext": [f"{budget:,}" for budget in budgets]}
    for figure in (score, cut):
        figure.update_xaxes(title=f"budget ({found['budget_unit']})", type="log", **ticks)
        figure.update_yaxes(rangemode="tozero")
    return Plot(
        f"budgets-{number}",
        f"Scores under a budget{suffix}",
        f"The same responses, graded as if each had been cut after so many {found['budget_unit']}; "
        "95 % intervals; beside it the share that was cut there. Where the order of the two "
        "changes, the comparison depends on the limit.",
        (score, cut),
    )


def _strata_plot(found: Mapping[str, Any], number: int, suffix: str) -> Plot | None:
    strata = found["strata"]
    if strata is None:
        return None
    units = {
        "length": strata["unit"],
        "density": f"{strata['lexicon']} markers per 1,000 {strata['unit']}",
    }
    panels: list[go.Figure] = []
    for kind, unit in units.items():
        figure = panel(title=f"accuracy by {unit}", barmode="group", height=340)
        labels = [
            f"{row['label']}<br>{bounds_text(row, '').strip()}<br>"
            f"n {row['responses']['a']:,}, {row['responses']['b']:,}"
            for row in strata[kind]
        ]
        for side, colour in COLOURS.items():
            known = [(n, row) for n, row in zip(labels, strata[kind], strict=True) if row[side]]
            figure.add_trace(
                with_bars(
                    go.Bar,
                    [name for name, _ in known],
                    [row[side] for _, row in known],
                    name=side.upper(),
                    marker_color=colour,
                )
            )
        figure.update_yaxes(range=[0, 1.05])
        panels.append(figure.update_xaxes(categoryorder="array", categoryarray=labels))
    return Plot(
        f"strata-{number}",
        f"Shorter, or less doubtful?{suffix}",
        "Accuracy among responses of like length, and of like marker density; the bounds are the "
        "thirds of both sides together. Bars: 95 % intervals; n: responses of A, of B.",
        tuple(panels),
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
    lists = {"the words that moved most": rows[:MAX_WORDS], "the words of the lexicons": listed}
    panels: list[go.Figure] = []
    for title, words in lists.items():
        if not words:
            continue
        figure = panel(title=title, x="B - A, per 1,000 words", height=130 + 19 * len(words))
        for marker, colour in ((False, PALETTE[7]), (True, PALETTE[1])):
            own = [row for row in words if (row["lexicon"] is not None) == marker]
            figure.add_trace(
                with_bars(
                    go.Scatter,
                    [row["delta_per_1k_words"] for row in own],
                    [f"{row['word']} ({row['rank']})" for row in own],
                    mode="markers",
                    name="word of a lexicon" if marker else "other word",
                    marker={"color": colour, "size": 7},
                )
            )
        names = [f"{row['word']} ({row['rank']})" for row in reversed(words)]
        panels.append(figure.update_yaxes(categoryorder="array", categoryarray=names))
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
        tuple(panels),
    )


def decile_plots(groups: Mapping[str, Mapping[str, Any]]) -> list[Plot]:
    """Where in the response the markers stand, a line for each group and a panel for each list.

    Args:
        groups: What `measure` found, by the name that the page gives the file or the group.
    """
    panels: dict[str, go.Figure] = {}
    for number, (owner, found) in enumerate(groups.items()):
        # The end of a name tells it from the others; a legend as wide as the page hides the data.
        label = owner if len(owner) <= MAX_LABEL else "…" + owner[1 - MAX_LABEL :]
        colour, ending = colour_and_ending(number)
        look = {"name": label, "mode": "lines+markers", "line": {"color": colour, "width": 2}}
        look["marker"] = {"symbol": f"circle{ending}", "size": 8}
        for name, markers in found["markers"].items():
            rows = [row for row in markers["deciles"] if row["density_per_1k_words"]]
            values = [row["density_per_1k_words"] for row in rows]
            if not any(value["value"] for value in values):
                continue
            figure = panels.setdefault(
                name, panel(title=f"{name}, per 1,000 words", x="place in the response")
            )
            places = [row["from"] + 0.05 for row in rows]
            figure.add_trace(with_bars(go.Scatter, places, values, **look))
    for figure in panels.values():
        figure.update_xaxes(tickformat=".0%", range=[-0.04, 1], zeroline=False).update_yaxes(
            rangemode="tozero"
        )
        figure.update_layout(showlegend=len(groups) > 1)
    if not panels:
        return []
    return [
        Plot(
            "deciles",
            "Where in the response",
            "Markers (and words of the control lists) by tenth of the response, 95 % intervals; a "
            "list of which no word occurs has no panel.",
            tuple(panels.values()),
        )
    ]
