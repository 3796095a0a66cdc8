"""What a model wrote never becomes part of the page: no tag, no script, no way out of the JSON."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from epistill.report.study_page import highlight_markers, write_report
from tests.helpers.browser import needs_chromium, opened
from tests.helpers.committed import committed

RAN = "document.body.dataset.pwned=1"
ATTACKS = {
    "script": f"wait <script>{RAN}</script> maybe",
    "closing the data": f"</script><script>{RAN}</script>",
    "comment": f"<!--<script>{RAN}</script>-->",
    "image": f"<img src=x onerror={RAN}>",
    "vector": f"<svg/onload={RAN}>",
    "frame": f"<iframe srcdoc='<script>parent.{RAN}</script>'>",
    "around a marker": f"<b onmouseover={RAN} autofocus onfocus={RAN} tabindex=1>wait",
    "inside a marker": f"<scr<mark>wait</mark>ipt>{RAN}</script>",
    "attribute": f'" onfocus="{RAN}" autofocus tabindex="1',
    "link": f"<a href='javascript:{RAN}' id=me>wait</a>",
    "entities": f"&lt;script&gt;{RAN}&lt;/script&gt;",
    "template": "{{ 7*7 }}{% raw %}<script>" + RAN + "</script>",
    "line separators": f"\u2028{RAN}\u2029//",
    "style": f"<style>body{{display:none}}</style><base href='http://127.0.0.1:9/{RAN}'>",
}


def hostile_page(path: Path, attack: str) -> str:
    """The lab's report with every text of every trace replaced."""
    report = committed("lab")
    assert report["traces"]
    for entry in report["traces"]:
        entry["problem_id"] = f"{attack} {entry['problem_id']}"
        for response in entry["responses"]:
            response["text"] = f"{attack} hmm {response['text']}"
    return write_report(report, path).read_text()


def tags(html: str) -> list[str]:
    return re.findall(r"<!--|<[/!]?[a-zA-Z][^\s>]*", html)


@pytest.fixture(scope="module")
def calm_tags(tmp_path_factory) -> list[str]:
    return tags(hostile_page(tmp_path_factory.mktemp("calm") / "report.html", "calm"))


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_a_trace_adds_no_tag_to_the_page(attack, tmp_path, calm_tags):
    html = hostile_page(tmp_path / "report.html", attack)
    assert RAN in html  # the text is there
    assert tags(html) == calm_tags  # and changes no tag, in no place


def test_markers_are_the_only_tags_of_a_highlighted_trace():
    for attack in ATTACKS.values():
        shown = str(highlight_markers(attack))
        assert set(re.findall(r"<[^>]*>", shown)) <= {"<mark>", "</mark>"}


@needs_chromium
def test_in_a_browser_no_trace_does_anything(tmp_path):
    path = tmp_path / "report.html"
    hostile_page(path, " ".join(ATTACKS.values()))
    facts, dom = opened(path, tmp_path / "profile")
    assert "pwned" not in facts
    assert facts["requests"] == "0"
    shown = dom[dom.index('id="trace-') :]
    assert "&lt;script&gt;" in shown  # it is there, as text
    assert "<mark>hmm</mark>" in shown
    assert not re.search(r"<(img|svg|iframe|a)\b[^>]*(onerror|onload|srcdoc|javascript)", shown)
