"""Render report.json as one HTML file that opens offline.

Enters: the report's dict. Leaves: report.html. Every text is escaped by the template; data reach
the page's script as JSON in which no tag can close; a content security policy forbids requests.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape
from markupsafe import Markup, escape

from epistill.metrics.epistemic import marker_spans
from epistill.metrics.lexicon import Lexicon
from epistill.report.format import (
    format_estimate,
    format_signed,
    loops_line,
    measure_digits,
    measure_title,
)
from epistill.report.panels import Plot
from epistill.report.study_advice import disputed, study_advice
from epistill.report.study_figures import study_plots
from epistill.store import write_atomic

VERDICT_CLASSES = {
    "reproduced": "yes",
    "not reproduced": "no",
    "not distinguishable": "open",
    "not measured": "open",
}

PLOTLY = files("epistill.report") / "templates" / "plotly-cartesian.min.js.gz"


def write_report(report: Mapping[str, Any], path: Path) -> Path:
    """Write the page.

    Args:
        report: What `study.summary` collected, by this version or an older one.
        path: Where; written whole or not at all.

    Returns:
        The path.
    """
    report = {"preflights": [], **report}  # older versions had none
    return render_page(
        "study.html.j2",
        path,
        study_plots(report),
        report=report,
        advice=study_advice(report),
        disputes=disputed(report),
        traces=_marked_traces(report),
    )


def render_page(
    template: str, path: Path, plots: Sequence[Plot], *, traces: object, **values: Any
) -> Path:
    """Fill a template; every page goes through here.

    Args:
        template: Its name.
        path: Where; written whole or not at all.
        plots: Drawn by the page's script.
        traces: For the page's script, as JSON.
        **values: For the template, which escapes them.
    """
    environment = Environment(
        loader=PackageLoader("epistill.report"), autoescape=select_autoescape(default=True)
    )
    environment.filters |= {
        "estimate": _with_interval(format_estimate),
        "signed": _with_interval(format_signed),
        "digits": measure_digits,
        "measure": measure_title,
        "number": lambda value, digits=3: "–" if value is None else f"{value:.{digits}f}",
        "code": with_code,
        "loops": loops_line,
        "minutes": lambda seconds: f"{seconds / 60:.1f}",
        "verdict_class": VERDICT_CLASSES.__getitem__,
        "pretty": lambda value: json.dumps(value, indent=2, ensure_ascii=False),
    }
    html = environment.get_template(template).render(
        plots=plots,
        figures=as_script_json({plot.id: _drawn(plot) for plot in plots}),
        traces=as_script_json(traces),
        plotly=Markup(base64.b64encode(PLOTLY.read_bytes()).decode()),
        **values,
    )
    write_atomic(path, html)
    return path


def _with_interval(format_number: Callable[..., str]) -> Callable[..., Markup]:
    """An interval is an element of its own: it never breaks, and wide tables put it below."""

    def formatted(*given: Any) -> Markup:
        value, bracket, rest = format_number(*given).partition("[")
        interval = Markup('<span class="interval">[{}</span>').format(rest)
        return escape(value) + (interval if bracket else "")

    return formatted


def with_code(text: str) -> Markup:
    """Text as HTML, escaped, what stands in backticks as code.

    Example:
        >>> str(with_code("`a<b` holds"))
        '<code>a&lt;b</code> holds'
    """
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _drawn(plot: Plot) -> dict[str, Any]:
    """A plot for the page's script; numbers to six digits, which no screen shows."""
    panels = [json.loads(str(figure.to_json()), parse_float=_six_digits) for figure in plot.panels]
    return {"panels": panels, "choices": plot.choices}


def _six_digits(number: str) -> float:
    return float(f"{float(number):.6g}")


def as_script_json(value: Any) -> Markup:
    """JSON that is safe inside a script element: no `<`, so nothing can close it."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return Markup(
        text.replace("&", "\\u0026")
        .replace("<", "\\u003c")
        .replace(">", "\\u003e")
        .replace("\u2028", "\\u2028")
        .replace("\u2029", "\\u2029")
    )


def highlight_markers(text: str, lexicons: Sequence[Lexicon | None] = (None,)) -> Markup:
    """Text as HTML, escaped, each epistemic marker in `<mark>`.

    Args:
        text: Any.
        lexicons: Whose words are marked; None is the paper's.

    Example:
        >>> str(highlight_markers("Wait, <b>"))
        '<mark>Wait</mark>, &lt;b&gt;'
    """
    spans = sorted({span for lexicon in lexicons for span in marker_spans(text, lexicon)})
    parts: list[str] = []
    position = 0
    for start, stop in spans:
        if start < position:  # inside a longer marker of another list
            continue
        parts += [escape(text[position:start]), Markup("<mark>"), escape(text[start:stop])]
        parts.append(Markup("</mark>"))
        position = stop
    return Markup("").join([*parts, escape(text[position:])])


def _marked_traces(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    labels = {arm["id"]: arm["label"] for arm in report["arms"]}
    return [
        {
            "problem": entry["problem_id"],
            "kind": entry["kind"],
            "responses": [
                {**response, "label": labels[response["arm"]]}
                | {"html": str(highlight_markers(response["text"])), "text": None}
                for response in entry["responses"]
            ],
        }
        for entry in report["traces"]
    ]
