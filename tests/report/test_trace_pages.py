"""The page about traces: one file, nothing fetched, everything escaped, the browser works."""

from __future__ import annotations

import json
import re

import pytest

from tests.helpers.browser import needs_chromium, opened
from tests.helpers.python import run_epistill

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)> wait"


def records(side, problems=24):
    for problem in range(problems):
        for sample in range(2):
            doubt = "wait maybe " * (sample + side)
            right = (problem + sample + side) % 3 > 0
            yield {
                "problem_id": f"<b>{problem}</b>", "sample": sample, "reference": "7", "grader": "exact",
                "response": f"<think>{doubt}{HOSTILE} so it is {problem}</think>answer {7 if right else 8}",
            }  # fmt: skip


def make_page(folder, problems=24):
    paths = []
    for side in (0, 1):
        paths.append(folder / f"<i>{'ab'[side]}.jsonl")
        paths[-1].write_text("".join(json.dumps(r) + "\n" for r in records(side, problems)))
    out = folder / "out.html"
    done = run_epistill("compare", *paths, "--report", out, "--json")
    assert done.returncode == 0, done.stderr
    return out, json.loads(done.stdout)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return make_page(tmp_path_factory.mktemp("page"))[0]


def test_every_trace_is_escaped(page):
    html = page.read_text()
    assert "<script>alert(1)" not in html
    assert "<img src=x" not in html
    assert "\\u0026lt;script\\u0026gt;alert(1)" in html  # escaped as HTML, then as JSON
    assert "&lt;i&gt;a.jsonl" in html


def test_nothing_outside_is_referred_to(page):
    html = re.sub(r"<script>.*?</script>", "", page.read_text(), flags=re.DOTALL)
    assert not re.search(r"""(src|href)\s*=["']""", html)
    assert "default-src 'none'" in html


@needs_chromium
def test_in_a_browser_plots_are_drawn_and_traces_can_be_chosen(page, tmp_path):
    facts, dom = opened(page, tmp_path / "one")
    assert int(facts["plots"]) == 3  # budgets, strata, shift
    assert facts["plots-with-data"] == facts["plots"]
    assert facts["requests"] == "0"
    assert facts["entries"] == "96"
    assert "<mark>wait</mark>" in dom
    assert re.search(r"<details[^>]*><summary[^>]*>thinking", dom)
    assert '<details class="" open' not in dom  # thinking is folded
    assert "onerror=alert(2)&gt;" in dom
    wrong = [r for side in (0, 1) for r in records(side) if r["response"].endswith("8")]
    facts, dom = opened(page, tmp_path / "two", "#grade=0&sort=density-")
    assert int(facts["entries"]) == len(wrong)
    shown = [
        float(x) for x in re.findall(r"([\d.]+) markers per 1,000", dom.split('id="entries"')[1])
    ]
    assert len(shown) == 20
    assert shown == sorted(shown, reverse=True)


@needs_chromium
def test_beyond_2000_traces_the_page_shows_a_sample_and_says_so(tmp_path):
    page, found = make_page(tmp_path, problems=600)
    assert found["sets"][0]["responses"] == {"a": 1200, "b": 1200}
    text = page.read_text()
    assert "A sample: 2,000 of 2,400 traces" in text
    assert "drawn with seed 0" in text
    facts, _ = opened(page, tmp_path / "profile")
    assert facts["entries"] == "2000"
    shown = json.loads(re.search(r'id="traces-data">(.*?)</script>', text, flags=re.DOTALL)[1])
    problems = {side: {t["problem"] for t in shown if t["side"] == side} for side in "AB"}
    assert problems["A"] == problems["B"]  # whole problems, the same on both sides


@needs_chromium
def test_the_page_of_measure_has_the_browser_too(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({**r, "kind": "<u>"}) + "\n" for r in records(1)))
    done = run_epistill("measure", path, "--report", tmp_path / "m.html", "--json")
    assert done.returncode == 0, done.stderr
    html = (tmp_path / "m.html").read_text()
    assert "<script>alert(1)" not in html
    facts, _ = opened(tmp_path / "m.html", tmp_path / "profile")
    assert (facts["plots"], facts["plots-with-data"], facts["requests"]) == ("1", "1", "0")
    assert facts["entries"] == "48"
    assert "All 48 traces." in html
    density = json.loads(done.stdout)["files"][0]["groups"]["(all)"]["markers"]["paper-en"]
    value = density["density_per_1k_words"]["value"]
    assert f'{value:.2f} <span class="interval">[' in html
