"""What every plot of a page is made of: panels, one look, intervals and bands.

A plot is one panel or several small ones beside each other. The page lays them out (below each
other where it is narrow), draws them in its own colours (dark or light), and offers `choices`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
from plotly.colors import sample_colorscale

PALETTE = (
    "#3a78c9", "#d1583a", "#c8922c", "#4f9a5b", "#9a5bb0", "#2f98ab", "#b56a6a", "#8a8a8a",
    "#c24a8a", "#7aa83a", "#6a6ad0", "#b58560",
)  # fmt: skip
ROUNDS = ("", "-open", "-dot", "-open-dot")  # of a symbol, each time that the colours are used up

SCALE = "RdBu"  # of heat-maps


@dataclass(frozen=True, slots=True)
class Plot:
    """One section of a page.

    Attributes:
        choices: Titles of what can be chosen to be shown; a trace's `meta` is its place among them.
    """

    id: str
    title: str
    text: str
    panels: tuple[go.Figure, ...]
    choices: tuple[str, ...] = ()


def panel(
    *traces: Any, title: str = "", x: str = "", y: str = "", height: int = 300, **layout: Any
) -> go.Figure:
    """A figure with the look that all share: the legend stands below, never over data."""
    figure = go.Figure(list(traces))
    figure.update_layout(
        template=go.layout.Template(),
        title={"text": title, "font": {"size": 13}, "x": 0.01, "xanchor": "left"},
        height=height,
        margin={"l": 56, "r": 12, "t": 36 if title else 14, "b": 44},
        font={"family": "system-ui, sans-serif", "size": 12},
        legend={
            "orientation": "h",
            "x": 0,
            "y": 0,
            "yref": "container",
            "yanchor": "bottom",
            "tracegroupgap": 2,
            "maxheight": 4000,
        },
        xaxis={"title": {"text": x}, "automargin": True},
        yaxis={"title": {"text": y}, "automargin": True},
    )
    return figure.update_layout(**layout)


def colour_and_ending(place: int) -> tuple[str, str]:
    """Colour of the method at a place, and what its symbols end with: no two of 48 look alike.

    Example:
        >>> colour_and_ending(1), colour_and_ending(13)
        (('#d1583a', ''), ('#d1583a', '-open'))
    """
    again, number = divmod(place, len(PALETTE))
    return PALETTE[number], ROUNDS[again % len(ROUNDS)]


def heat_panel(
    x: Sequence[Any], y: Sequence[Any], z: Sequence[Any], limit: float, unit: str, **heat: Any
) -> go.Heatmap:
    """Red below zero, blue above; panels that are to be compared get the same limit."""
    bar = {"title": {"text": unit, "side": "right"}, "thickness": 12}
    return go.Heatmap(
        x=x, y=y, z=z, zmid=0, zmin=-limit, zmax=limit, colorscale=SCALE, colorbar=bar, **heat
    )


def cell_texts(
    x: Sequence[str],
    y: Sequence[str],
    z: Sequence[Sequence[float | None]],
    texts: Sequence[Sequence[str]],
    limit: float,
) -> go.Scatter:
    """A text in each cell of a `heat_panel`, black or white: what is further from its luminance.

    plotly's own texts on a heat-map come down to a contrast of 3.
    """
    cells = [
        (column, row, text, _ink_on(0.5 + value / (2 * limit)))
        for row, values, line in zip(y, z, texts, strict=True)
        for column, value, text in zip(x, values, line, strict=True)
        if value is not None
    ]
    return go.Scatter(
        x=[x for x, _, _, _ in cells],
        y=[y for _, y, _, _ in cells],
        text=[text for _, _, text, _ in cells],
        textfont={"color": [ink for _, _, _, ink in cells], "size": 9.5},
        mode="text",
        hoverinfo="skip",
        showlegend=False,
    )


def _ink_on(place: float) -> str:
    """Black or white on the colour at a place of the scale, 0 to 1, by WCAG 2's luminance.

    One of the two has a contrast of at least 4.5 on any colour.

    Example:
        >>> _ink_on(0.5), _ink_on(0.3), _ink_on(0.0)
        ('#000', '#000', '#fff')
    """
    colour: Any = sample_colorscale(SCALE, min(max(place, 0.0), 1.0), colortype="tuple")[0]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#000" if (luminance + 0.05) ** 2 > 1.05 * 0.05 else "#fff"


def with_bars(kind: Callable[..., Any], x: Sequence[Any], y: Sequence[Any], **look: Any) -> Any:
    """A trace (go.Scatter, go.Bar); estimates on an axis become values with their intervals."""
    axes: dict[str, Any] = {}
    for axis, values in (("x", x), ("y", y)):
        estimates = bool(values) and isinstance(values[0], Mapping)
        axes[axis] = [value["value"] for value in values] if estimates else list(values)
        if estimates and all(value["low"] is not None for value in values):
            axes[f"error_{axis}"] = {
                "type": "data",
                "symmetric": False,
                "array": [value["high"] - value["value"] for value in values],
                "arrayminus": [value["value"] - value["low"] for value in values],
                "thickness": 1.2,
            }
    return kind(**axes, **look)


def curve(
    steps: Sequence[int], seeds: Sequence[Sequence[float | None]], colour: str, **line: Any
) -> list[go.Scatter]:
    """The mean over the seeds that have a number there; a band from the lowest to the highest."""
    rows = [[v for v in values if v is not None] for values in zip(*seeds, strict=False)]
    inside = [(step, min(row), max(row)) for step, row in zip(steps, rows, strict=False) if row]
    band = go.Scatter(
        x=[s for s, _, _ in inside] + [s for s, _, _ in reversed(inside)],
        y=[high for _, _, high in inside] + [low for _, low, _ in reversed(inside)],
        mode="lines",
        fill="toself",
        fillcolor=colour,
        opacity=0.15,
        line={"width": 0},
        hoverinfo="skip",
        showlegend=False,
        meta=line.get("meta"),
    )
    mean = [sum(row) / len(row) if row else None for row in rows]
    dash = {"color": colour, "width": 2, "dash": line.pop("dash", "solid")}
    return [band, go.Scatter(x=list(steps), y=mean, mode="lines", line=dash, **line)]
