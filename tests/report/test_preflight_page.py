"""The command from end to end: files, page in a browser, one-line mistakes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from epistill.preflights.verdict import load_thresholds
from epistill.report.format import format_signed
from epistill.report.preflight_page import write_preflight
from tests.helpers.browser import needs_chromium, opened
from tests.helpers.python import run_epistill

COMMAND = ["preflight", "lab", "--data", "star-search:3x2"]
SMALL = ["--problems", "4", "-k", "4", "--max-new-tokens", "32", "--contexts", "sibling,answer"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("preflight")
    done = run_epistill(*COMMAND, *SMALL, "--out", out)
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def test_what_is_printed(finished):
    out, printed = finished
    report = json.loads((out / "preflight.json").read_text())
    assert printed.rstrip().endswith("preflight.html")
    for context in ("sibling", "answer"):
        sha = report["contexts"][context]["prompt"]["teacher_sha256"]
        assert sha in printed  # the prompt is printed, and its hash
        assert f"c={context}: {report['contexts'][context]['headline']}" in printed
    for outcome in report["thresholds"]["outcomes"]:
        assert printed.count(f"  {outcome}: ") == 2
        assert f"in the validation study, rho with {outcome}: " in printed
    assert "Correctly solve the original question." in printed
    assert "control, no context" in printed
    assert report["advice"] in printed


def test_the_page_is_whole_and_refers_to_nothing(finished):
    html = (finished[0] / "preflight.html").read_text()
    report = json.loads((finished[0] / "preflight.json").read_text())
    bare = re.sub(r"<script>.*?</script>", "", html, flags=re.DOTALL)
    assert not re.search(r"""(src|href)\s*=""", bare)
    assert "default-src 'none'" in html
    for table in ("worth", "richness", "pressure"):
        assert f'id="{table}"' in html
    assert "c = sibling" in html
    # The validation study's own failures stand on the page.
    worth = html[html.index('id="worth"') : html.index("</table>", html.index('id="worth"'))]
    failed = [
        name
        for name, found in report["thresholds"]["outcomes"].items()
        if found["registered_rho"]["low"] <= 0
    ]
    assert worth.count("does NOT predict it") == len(failed)
    assert worth.count("verdicts use this one") == len(report["thresholds"]["outcomes"])


def test_text_of_a_model_is_escaped(finished, tmp_path):
    report = json.loads((finished[0] / "preflight.json").read_text())
    evil = "</script><script>alert(1)</script>"
    report["settings"]["model"] = evil
    report["trace"]["pieces"][0] = evil
    report["contexts"]["sibling"]["prompt"]["teacher"] = evil
    html = write_preflight(report, tmp_path / "page.html").read_text()
    assert "<script>alert(1)" not in html
    assert "&lt;script&gt;alert(1)" in html


@needs_chromium
def test_in_a_browser_every_plot_has_data_and_nothing_is_fetched(finished, tmp_path):
    facts, _ = opened(finished[0] / "preflight.html", tmp_path)
    assert int(facts["plots"]) == 3  # ladder, classes, heat-map of a trace
    assert facts["plots-with-data"] == facts["plots"]
    assert facts["requests"] == "0"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--contexts", "solutoin"], "no context 'solutoin'"),
        (["--engine", "gpu"], "expected inprocess or http"),
        (["-k", "1"], "greater than or equal to 2"),
    ],
)
def test_mistakes_are_one_line(arguments, words, tmp_path):
    done = run_epistill(*COMMAND, *arguments, "--out", tmp_path)
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_the_docs_publish_the_committed_results():
    """docs/preflight.md has every rho with its interval, and every arm, of thresholds.json."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "preflight.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    found = load_thresholds()
    for outcome, predictors in found["correlations"].items():
        wanted = [format_signed(entry["rho_contexts"], 2) for entry in predictors.values()]
        assert any(
            row.startswith(f"| {outcome} |") and all(text in row for text in wanted) for row in rows
        ), outcome
    for outcome, entry in found["outcomes"].items():
        cut = entry["sign"] * entry["threshold"]["value"]
        start = (
            f"| {outcome} | {entry['predictor']} | {cut:+.3g} | {entry['threshold']['right']} of"
        )
        assert any(row.startswith(start) for row in rows), outcome
        for arm in entry["arms"]:
            digits = 3 if "score" in outcome else 1
            assert any(
                row.startswith(f"| {arm['arm']} |") and f"{arm['outcome']:+.{digits}f}" in row
                for row in rows
            ), arm
