"""Every kind of page in a browser, wide and narrow, light and dark: overlap and contrast."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from epistill.cli import app
from epistill.report.preflight_page import write_preflight
from tests.helpers.browser import looked_at, needs_chromium

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).with_name("looks.js").read_text(encoding="utf-8")
WIDTHS, SCHEMES = (1400, 420), ("light", "dark")
# Pages name the files that they are drawn from: the files lie where a path is long and cannot be broken.
LONG = Path("a_folder_whose_name_has_no_place_at_which_it_could_be_broken" * 2)
BASE, TUNED = (str(LONG / f"{name}.jsonl") for name in ("base", "tuned"))
COMMANDS = {
    "study": ["report", str(ROOT / "docs/results/lab"), "--out"],
    "rules": ["report", str(ROOT / "docs/results/lab-cure-coverage"), "--out"],
    "surface": ["report", str(ROOT / "docs/results/lab-phase"), "--out"],
    "compare": ["compare", BASE, TUNED, "--report"],
    "measure": ["measure", BASE, TUNED, "--report"],
    "groups": ["measure", str(LONG / "verl"), "--by", "step", "--report"],
}
CASES = [(p, w, s) for p in (*COMMANDS, "preflight") for w in WIDTHS for s in SCHEMES]
OVERLAPPING = """<main><div class="plot" id="x"><div style="width:200px">
<svg width="200" height="60"><text x="5" y="20">one</text><text x="9" y="20">two</text></svg></div></div>
<div class="plot"><div><svg width="200" height="60"><g class="heatmaplayer"><image width="200" height="60"
href="data:image/svg+xml,<svg xmlns='http://www.w3.org/2000/svg' width='4' height='4'>
<rect width='4' height='4' fill='rgb(214,96,77)'/></svg>"/></g>
<g class="scatterlayer"><text x="20" y="20" fill="#444">-.47</text></g></svg></div></div>
<p style="color:#aaa;background:#fff">faint</p><h2>a</h2><h2>b</h2></main>
<script>document.body.dataset.requests = 0</script>"""


# On paper nobody can scroll, and what is chosen must be read.
PAPER = """
dispatchEvent(new Event("beforeprint"));
const boxes = document.querySelectorAll(".scroll, .plot > div:not([hidden])");
const cut = [...boxes].filter((box) => box.scrollWidth > box.clientWidth + 1);
const broken = [...document.querySelectorAll(".interval")].filter((part) => part.getClientRects().length > 1 ||
  part.getBoundingClientRect().right > part.closest("td").getBoundingClientRect().right + 1);
const chosen = [...document.querySelectorAll("label select")].filter((one) => !one.closest(".controls"));
return {cut: cut.map((box) => box.textContent.trim().slice(0, 40)), broken: broken.map((part) => part.textContent),
        hidden: chosen.filter((one) => getComputedStyle(one).display === "none").length};
"""
PAPER_PX = 739  # a letter less its margins
# Another choice, another colour scheme, then another width of the window: everything is drawn again.
DRAWN_AGAIN = """
for (const one of document.querySelectorAll("label select")) one.dispatchEvent(new Event("change"));
drawAll();
document.querySelector("main").style.width = "700px";
dispatchEvent(new Event("resize"));
await new Promise((done) => setTimeout(done, 1000));
return [...document.querySelectorAll(".plot > div:not([hidden])")].filter((node) => {
  const {width, height} = node.querySelector("svg").getBoundingClientRect();
  return width < node.clientWidth - 1 || node.scrollWidth > node.clientWidth || height < 100 || node.clientHeight < height;
}).map((node) => node.parentElement.id);
"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    pages = {name: folder / f"{name}.html" for name in (*COMMANDS, "preflight", "bad")}
    shutil.copytree(ROOT / "examples" / "data", folder / LONG)
    with contextlib.chdir(folder):
        for name, command in COMMANDS.items():
            done = CliRunner().invoke(app, [*command, str(pages[name])])
            assert done.exit_code == 0, done.output
    report = json.loads((ROOT / "docs/results/smollm2/preflight.json").read_text(encoding="utf-8"))
    write_preflight(report, pages["preflight"])
    pages["bad"].write_text(f"<!doctype html><body>{OVERLAPPING}</body>")
    return pages


@pytest.fixture(scope="module")
def seen(pages):
    wide, narrow = ([(width, scheme, SCRIPT) for scheme in SCHEMES] for width in WIDTHS)
    return looked_at(pages, [*wide, (PAPER_PX, "print", PAPER), *narrow])


@needs_chromium
@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_nothing_overlaps_is_cut_faint_or_empty(case, seen):
    found = seen[case]
    assert found["texts"] > 10
    assert found["cells"] > 10
    assert found["faults"] == []


@needs_chromium
def test_what_is_looked_for_would_be_seen(seen):
    faults = " ".join(seen["bad", 1400, "light"]["faults"])
    for words in (
        '"one" over "two"',
        '"faint" has contrast 2.32',
        "empty: <h2>b",
        '"-.47" has contrast 2.',
    ):
        assert words in faults


@needs_chromium
def test_a_plot_is_drawn_again_in_another_width(pages):
    drawn = {name: page for name, page in pages.items() if name in ("study", "compare")}
    found = looked_at(drawn, [(1400, "light", DRAWN_AGAIN)])
    assert list(found.values()) == [[], []]


@needs_chromium
def test_on_paper_nothing_is_cut_and_what_is_chosen_stands_there(pages, seen):
    for name in pages:
        assert seen[name, PAPER_PX, "print"] == {"cut": [], "broken": [], "hidden": 0}, name
