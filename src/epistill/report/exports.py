"""What a page shows for other programs: tables as CSV and parquet, plots as SVG and PNG.

Enters: tables and plots. Leaves: a folder. Tables are tidy: a row for each number, its interval
beside it; `None` is an empty cell. Pictures need kaleido and a Chrome or Chromium; without them the
tables are written all the same.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from epistill.errors import first_line
from epistill.number_rows import number_rows
from epistill.report.format import measured_groups
from epistill.report.panels import Plot
from epistill.report.preflight_page import preflight_plots
from epistill.report.study_figures import study_plots
from epistill.report.trace_figures import compared_plots, decile_plots
from epistill.store import write_atomic

Row = dict[str, Any]
FORMATS = ("svg", "png")
SCALE = 2  # pixels of a PNG for one of the SVG
COLUMNS = 3  # of panels at most
PANEL_WIDTH = {1: 760, 2: 520, 3: 420}  # in pixels, by columns


def export_report(report: Mapping[str, Any], folder: Path) -> list[str]:
    """A study's report; see `_export`."""
    return _export(report_tables(report), study_plots(report), folder)


def _export(tables: Mapping[str, Sequence[Row]], plots: Sequence[Plot], folder: Path) -> list[str]:
    """Write the files.

    Args:
        tables: Rows by name; one without rows is not written.
        plots: Those of the page.
        folder: Where.

    Returns:
        Why there are no pictures, in a line; [] where there are.

    Raises:
        EpistillError: The folder cannot be written.
    """
    import polars as pl

    for name, rows in ((name, rows) for name, rows in tables.items() if rows):
        table = pl.DataFrame([_flat(row) for row in rows], infer_schema_length=None, strict=False)
        table.write_parquet(buffer := io.BytesIO())
        for kind, content in (("csv", table.write_csv()), ("parquet", buffer.getvalue())):
            write_atomic(folder / f"{name}.{kind}", content)
    pictures = dict(named for plot in plots for named in _pictures(plot))
    figures = [figure for figure in pictures.values() for _ in FORMATS]
    files: list[str | Path] = [folder / f"{name}.{kind}" for name in pictures for kind in FORMATS]
    try:
        import plotly.io

        plotly.io.write_images(figures, files, scale=SCALE)
    except Exception as error:  # noqa: BLE001 - a browser may fail in any way; the tables are there
        return [
            f"no pictures: {first_line(error)[:160]}; they need kaleido (pip install "
            "'epistill[export]') and a Chrome or Chromium"
        ]
    return []


def export_measured(summary: Mapping[str, Any], rows: Sequence[Row], folder: Path) -> list[str]:
    """What `measure` found."""
    return _export({"numbers": rows}, decile_plots(measured_groups(summary)), folder)


def export_compared(summary: Mapping[str, Any], rows: Sequence[Row], folder: Path) -> list[str]:
    """What `compare` found, with the words that moved."""
    tables = {"differences": rows, "words": summary["shift"]["words"]}
    return _export(tables, compared_plots(summary), folder)


def export_preflight(summary: Mapping[str, Any], rows: Sequence[Row], folder: Path) -> list[str]:
    """What `preflight` measured."""
    return _export({"numbers": rows}, preflight_plots(summary), folder)


def _pictures(plot: Plot) -> Iterator[tuple[str, go.Figure]]:
    """Name and figure of each picture: one of all panels, or one for each choice of the page."""
    every: list[tuple[Any, Any]] = [(one, one.data) for one in plot.panels]
    if not plot.choices:
        yield _file_name(plot.id), _side_by_side(every, plot.title)
    for place, title in enumerate(plot.choices):
        chosen = [(one, [t for t in traces if t.meta == place]) for one, traces in every]
        shown = [(one, traces) for one, traces in chosen if traces]
        name = _file_name(f"{plot.id}-{title}").strip("-")
        yield name, _side_by_side(shown, f"{plot.title}: {title}", one_scale=True)


def _file_name(text: str) -> str:
    """Of a name that a study gives."""
    return re.sub(r"[^\w-]+", "-", text)


def _side_by_side(
    panels: Sequence[tuple[Any, Any]], title: str, one_scale: bool = False
) -> go.Figure:
    """Panels in rows, with one legend below and, where they are to be compared, one scale."""
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    heights = max(one.layout.height for one, _ in panels)
    scale: Any = "all" if one_scale else False  # plotly says bool
    made: Any = make_subplots(
        rows,
        columns,
        subplot_titles=["<br>".join(wrap(one.layout.title.text or "", 46)) for one, _ in panels],
        shared_yaxes=scale,
        vertical_spacing=min(0.3, 110 / (heights * rows)),
    )
    named: set[str | None] = set()
    for place, (one, traces) in enumerate(panels):
        cell = {"row": place // columns + 1, "col": place % columns + 1}
        for trace in traces:
            again = trace.name in named and trace.showlegend is not False
            looks = {"showlegend": False} if again else {}
            if trace.type == "heatmap" and place:
                looks = {"showscale": False}  # all of a plot have one scale
            named |= {trace.name} if trace.showlegend is not False else set()
            made.add_trace(type(trace)(trace.to_plotly_json() | looks), **cell)
        for axis, update in (("xaxis", made.update_xaxes), ("yaxis", made.update_yaxes)):
            update(one.layout[axis].to_plotly_json(), **cell)
    made.update_annotations(font_size=13)
    made.update_layout(
        template="plotly_white",
        showlegend=any(len({t.name for t in traces} - {None}) > 1 for _, traces in panels),
        title={"text": title, "x": 0.01},
        width=columns * PANEL_WIDTH[columns],
        height=heights * rows + 140,
        font=panels[0][0].layout.font,
        legend={"orientation": "h", "x": 0, "y": 0.02, "yref": "container", "yanchor": "bottom"},
        margin={"l": 60, "r": 20, "t": 80, "b": 110},
    )
    return made


def report_tables(report: Mapping[str, Any]) -> dict[str, list[Row]]:
    """Name and rows of every table that has some.

    Args:
        report: What `study.summary` collected.
    """
    arms: Sequence[Mapping[str, Any]] = report["arms"]
    about = ("method", "coverage", "learning_rate", "baseline", "seconds")
    pairs = (report["surface"] or {"pairs": {}})["pairs"]
    found: dict[str, list[Row]] = {
        "claims": [
            {"kind": kind, "claim": claim["id"], "claim_verdict": claim["verdict"], **_flat(number)}
            for kind in ("claims", "controls")
            for claim in report[kind]
            for number in claim["numbers"]
        ],
        "arms": [{"arm": a["id"], "label": a["label"], **{n: a[n] for n in about}} for a in arms],
        "evaluations": [
            row
            for a in arms
            for on, found in a["evaluations"].items()
            for row in number_rows(found, arm=a["id"], on=on)
        ],
        "differences": [
            row
            for a in arms
            for on, found in a["difference_to_baseline"].items()
            for row in number_rows(found, arm=a["id"], versus=a["baseline"], on=on)
        ],
        "sets": [
            row
            for a in arms
            for seed, sets in a["sets"].items()
            for name, found in sets.items()
            for row in number_rows(found, arm=a["id"], seed=seed, set=name)
        ],
        "training_curves": [
            {"arm": a["id"], "measure": measure, "seed": seed, "step": step, "value": value}
            for a in arms
            for measure, curve in a["curves"].items()
            for seed, values in curve["seeds"].items()
            for step, value in zip(curve["steps"], values, strict=False)
        ],
        "evaluation_curves": [
            {"arm": a["id"], "measure": n, "seed": seed, "step": point["step"], "value": value}
            for a in arms
            for seed, points in a["evaluation_curve"].items()
            for point in points
            for n, value in point.items()
            if n != "step"
        ],
        "probes": [
            row
            for probe in report["probes"]
            for context, found in probe["contexts"].items()
            for row in number_rows(found, probe=probe["id"], context=context)
        ],
        "surface": [
            {"pair": pair, **_flat(point)} for pair, points in pairs.items() for point in points
        ],
        "predictions": [
            _flat(arm)
            for one in report.get("preflights", ())
            if one.get("prediction")
            for arm in one["prediction"]["arms"]
        ],
        "correlations": [
            {"outcome": outcome, "predictor": predictor, **_flat(found)}
            for one in report.get("preflights", ())
            if one.get("prediction")
            for outcome, predictors in one["prediction"]["correlations"].items()
            for predictor, found in predictors.items()
        ],
        "traces": [
            {**{n: trace[n] for n in ("problem_id", "set", "kind")}, **response}
            for trace in report["traces"]
            for response in trace["responses"]
        ],
    }
    return {name: rows for name, rows in found.items() if rows}


def _flat(record: Mapping[str, Any], prefix: str = "") -> Row:
    """A record in one row: what is inside another record has both names, joined."""
    row: Row = {}
    for name, value in record.items():
        inner = _flat(value, f"{prefix}{name}/") if isinstance(value, Mapping) else None
        row |= {f"{prefix}{name}": value} if inner is None else inner
    return row
