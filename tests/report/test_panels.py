"""Panels: bands over seeds; and what every page weighs and marks."""

from __future__ import annotations

import gzip
import hashlib
import json
import re

import epistill
from epistill.report.format import format_estimate, measure_digits, measure_title
from epistill.report.panels import PALETTE, curve
from epistill.report.study_page import PLOTLY, with_code, write_report
from epistill.report.trace_figures import decile_plots
from tests.helpers.committed import committed


def test_a_curve_is_the_mean_over_a_band_and_skips_what_is_not_there():
    band, mean = curve([1, 2, 3], [[1.0, None, 4.0], [3.0, None, None]], "#000", name="two seeds")
    assert mean.y == (2.0, None, 4.0)
    assert band.x == (1, 3, 3, 1)
    assert band.y == (3.0, 4.0, 4.0, 1.0)


def test_lines_of_more_files_than_colours_are_told_apart_by_their_symbols():
    row = {"from": 0.0, "density_per_1k_words": {"value": 1.0, "low": None, "high": None}}
    found = {"markers": {"paper-en": {"deciles": [row]}}}
    names = [f"{place}.jsonl" for place in range(3 * len(PALETTE))]
    (plot,) = decile_plots(dict.fromkeys(names, found))
    lines = plot.panels[0].data
    assert [line.name for line in lines] == names
    assert len({(line.line.color, line.marker.symbol) for line in lines}) == len(names)


def test_the_library_in_the_page_is_the_one_that_its_licence_names():
    text = (PLOTLY.parent / "plotly-LICENSE.txt").read_text()
    assert hashlib.sha256(gzip.decompress(PLOTLY.read_bytes())).hexdigest() in text
    assert "MIT License" in text


def test_a_page_weighs_at_most_2_mb_marks_its_headings_and_shows_no_backtick(tmp_path):
    for name in ("lab", "lab-phase"):
        html = write_report(committed(name), tmp_path / name).read_text()
        assert len(html.encode()) <= 2_000_000
        body = re.sub(r"<(script|pre|style)\b.*?</\1>", "", html, flags=re.DOTALL)
        assert "<th>" not in body
        assert "`" not in body
        plots = re.findall(r'<div class="plot[^>]*>', body)
        assert plots
        assert all("aria-label=" in plot for plot in plots)
        assert not re.search(r"</h2>\s*<h2", body)


def test_the_pages_show_verified_committed_and_candidates(tmp_path):
    report = committed("lab")
    html = write_report(report, tmp_path / "study").read_text()
    arms = re.search(r'<table class="wide" id="arms">.*?</table>', html, flags=re.DOTALL)[0]
    names = ("verified_share", "committed_share", "candidates")
    assert all(f">OOD {measure_title(name)}</th>" in arms for name in names)
    for arm, row in zip(report["arms"], arms.split("<tr>")[2:], strict=True):
        found = arm["evaluations"].get("ood") or {}
        shown = [format_estimate(found.get(name), measure_digits(name)) for name in names]
        cells = [re.sub(r"<[^>]+>", "", cell).strip() for cell in row.split("<td>")[-3:]]
        assert cells == shown
    assert sum(cell != "–" for cell in shown) == len(names)  # of the last arm all is known
    traces = tmp_path / "a.jsonl"
    checked = {"response": "<think>so 7. Let me check: 7</think>\\boxed{7}", "pred": "7"}
    traces.write_text("".join(json.dumps({"problem_id": i, **checked}) + "\n" for i in range(3)))
    epistill.measure(traces, report=tmp_path / "m.html")
    page = (tmp_path / "m.html").read_text()
    assert all(f">{measure_title(name)}</th>" in page for name in names)
    assert re.findall(r"<td>([\d.]+)", page.split("<h2>Markers of doubt")[0])[-3:] == [
        "1.000", "0.000", "1.0"
    ]  # fmt: skip


def test_code_is_escaped():
    assert str(with_code("`<b>` and <i>")) == "<code>&lt;b&gt;</code> and &lt;i&gt;"
