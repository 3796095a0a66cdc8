"""What is passed over for speed changes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epistill.tasks.answers import frames
from epistill.tasks.linear_patterns import SOURCE, linear_pattern, rewriter, utf8

CASES = Path(__file__).parents[1] / "data" / "verdict_cases.jsonl"
RESPONSES = [json.loads(line)[2] for line in CASES.read_text(encoding="utf-8").splitlines()]
REWRITERS = {module: rewriter(module) for module in ("answers", "notation")}

pieces = st.one_of(
    st.sampled_from(RESPONSES).flatmap(lambda text: st.sampled_from(text.split() or [""])),
    st.sampled_from(["\\", "{", "}", "$", "**", "\n", " ", "√", "1", "\\frac", "or ", "(or ", "</s>"]),
    st.text(max_size=3),
)  # fmt: skip


def one_after_the_other(module, text):
    given = f"\n{text}"
    for pattern, new, *literals in SOURCE[module]["rewrites"]:
        if not literals or any(one in given for one in literals):
            text = linear_pattern(pattern).sub(new, text)
    return text


@pytest.mark.parametrize("module", REWRITERS)
def test_every_case_is_rewritten_as_by_all_rules_one_after_the_other(module):
    changed = 0
    for text in map(utf8, RESPONSES):
        expected = one_after_the_other(module, text)
        changed += expected != text
        assert REWRITERS[module](text) == expected
    assert changed > 20


@given(st.lists(pieces, max_size=12).map("".join))
def test_any_text_is_rewritten_so(text):
    text = utf8(text)
    for module, rewrite in REWRITERS.items():
        assert rewrite(text) == one_after_the_other(module, text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"{ {x} { \boxed{5}", ["5"]),
        (r"a box \{ \fbox {\{5\}} }", [r"\{5\}"]),
        (r"a \\boxed{5}", []),  # a new line, and a word
        (r"a \\\boxed{5}", ["5"]),
        (r"\framebox{5}", ["5"]),
        (r"\\\\\framebox{7}", ["7"]),
        (r"\\\\framebox{7}", []),
        ("\bboxed{6}", ["6"]),
    ],
)
def test_boxes_are_found_whatever_stands_before_the_first(text, expected):
    assert [framed.text for framed in frames(text)] == expected
