"""Self-correction episodes: what counts, and the whole-array code against a plain one."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epistill.metrics.corrections import WINDOW, correction_episodes, correction_evidence
from epistill.metrics.epistemic import marker_spans
from epistill.metrics.lexicon import load_lexicon
from epistill.metrics.scan import Scanner
from epistill.metrics.words import WORD, fold, make_buffer

NAMES = ("paper-en", "epistemic-zh", "retractions-en", "retractions-zh")
SCANNER = Scanner(tuple(load_lexicon(name) for name in NAMES))


def episodes(text, lexicon=0, retractions=2):
    buffer = make_buffer([text])
    found = SCANNER.scan(buffer)
    evidence = correction_evidence(buffer, found[retractions].markers.starts)
    return int(correction_episodes(buffer, found[lexicon].markers, evidence).sum())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("So 3*4 = 11. Wait, 3 * 4 = 12.", 1),
        ("x = 5, hmm, x = 7", 1),
        ("area = 12 cm. Wait, the area = 14 cm", 1),
        (r"we get \(x = 5\). Actually \(x = 6\).", 1),
        ("x &= 5 \\\\ wait, x &= 6", 1),
        ("it is 1,200 = 1,200; wait", 0),
        ("n = 1,200 wait n = 1200", 0),  # the same number
        ("x = 5. Wait, x = 5.", 0),  # said again
        ("x = 5, x = 7, wait", 0),  # changed before the marker
        ("wait, x = 5, x = 7", 0),  # the marker stands before both
        ("x = 5. Wait. " + "so " * (WINDOW + 1) + "x = 7", 0),  # too far
        ("x = 5. Wait. " + "so " * (WINDOW - 2) + "x = 7", 1),
        ("2 * 4 = 8. Wait, 3 * 4 = 12.", 0),  # another left side
        ("x = 5 + 1. Wait, x = 6.", 0),  # 5 + 1 is no number
        ("x = 5y. Wait, x = 6.", 0),
        ("x = 5 × 2, wait, x = 10", 0),
        ("n = 1,200 wait n = 1,200 (a+b) = 3", 0),  # 1,200 (a+b) is no number, and 1 is not in it
        ("Wait, that's wrong.", 1),
        ("Wait, that’s wrong.", 1),
        ("Wait, hmm, that's wrong, I made a mistake.", 1),  # one correction, not two
        ("That's wrong. Wait.", 0),
        ("I made a mistake.", 0),  # no marker: not an episode
        ("", 0),
    ],
)
def test_what_counts(text, expected):
    assert episodes(text) == expected


def test_chinese():
    assert episodes("3 * 4 = 11。等等，不对，应该是 12", 1, 3) == 1
    assert episodes("x = 5，好像，x = 7", 1, 3) == 1
    assert episodes("等等，两边不对称", 1, 3) == 0


def test_a_text_does_not_correct_its_neighbour():
    buffer = make_buffer(["x = 5. wait", "x = 7", "that's wrong"])
    found = SCANNER.scan(buffer)
    evidence = correction_evidence(buffer, found[2].markers.starts)
    assert evidence[0].size == 1
    assert not correction_episodes(buffer, found[0].markers, evidence).any()


def plain_episodes(text):
    """The definition of the module's docstring, one text and one equation at a time."""
    text = fold(text)
    markers = marker_spans(text, load_lexicon("paper-en"))
    evidence = [(start, -1) for start, _ in marker_spans(text, load_lexicon("retractions-en"))]
    last = {}
    for match in re.finditer("=", text):
        left = re.sub(r"[ &]?([-+*/^])[ &]?", r"\1", text[: match.start()].removesuffix(" "))
        left = re.search(r"""[^\s&=,;:$<>"'`?!|\x80-\U0010ffff]*$""", left)[0]
        right = re.match(r" ?\$?(-?\d(?:[.,/]?\d)*+)(?![a-z0-9]| ?(?:[-+*/^(_×]|\\(?![)\],;\\])))", text[match.end() :])  # fmt: skip
        if not left or not right:
            continue
        number = right[1].replace(",", "")
        if last.get(left, (number,))[0] != number:
            evidence.append((match.start(), last[left][1]))
        last[left] = (number, match.start())
    opened = set()
    for position, after in evidence:
        before = [span for span in markers if span[1] <= position]
        if before and before[-1][0] > after:
            between = WORD.findall(text[before[-1][1] : position])
            if len(between) <= WINDOW:
                opened.add(before[-1])
    return len(opened)


tokens = st.sampled_from(
    ["x = 5", "x=6", "y = 7", "3 * 4 = 12", "3*4=11", "total = $1,200", "x = 2/3", "x = -6", "(a+b) = 3",
     "y = 7 \\)", "y = 8 \\quad", "z = 1.5.", "x = 4x", "x = 3 + 1", "wait", "maybe,", "that's wrong", "oops",
     "so " * 12, "and", "\n", ".", "= 5", "y =", "a = b = 2", "9 × 3 = 27", "9 × 3 = 26", "，x = 8"]
)  # fmt: skip


@given(st.lists(tokens, max_size=14).map(" ".join))
def test_the_whole_array_code_is_the_plain_definition(text):
    assert episodes(text) == plain_episodes(text)
