"""Thinking and answer are told apart in every notation of the data file, whole and cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epistill.thinking import (
    begins_inside,
    blank_tags,
    notations,
    opens_thinking,
    split_thinking,
    thinking_mode,
    unknown_notation,
)


@pytest.mark.parametrize(
    ("text", "opened", "form", "thinking", "answer"),
    [
        ("<think> a </think> b", False, "paired", " a ", "b"),
        ("a </think> b", True, "opened", "a ", "b"),
        ("a </think> b", False, "opened", "a ", "b"),  # nobody told us: the tag does
        ("<think> a", False, "unclosed", " a", ""),
        ("a b c", True, "unclosed", "a b c", ""),
        ("a b c", False, "absent", "", "a b c"),
        ("well <think>a</think> b", False, "paired", "a", "well\nb"),
        ("4<think>no</think>2", False, "paired", "no", "4\n2"),  # not 42
        ("<think>a</think> <think>b", False, "unclosed", "a b", ""),
        ("so 5. <think>b", False, "unclosed", "so 5. b", ""),
        ("a</think> b <think>c", True, "unclosed", "a b c", ""),
        ("x </think> y </think> z", True, "opened", "x </think> y ", "z"),
        ("", False, "absent", "", ""),
    ],
)
def test_splitting_in_every_case(text, opened, form, thinking, answer):
    found = split_thinking(text, opened_in_prompt=opened)
    assert (found.form, found.thinking, found.answer) == (form, thinking, answer)


@given(st.text(alphabet="ab ", max_size=20), st.text(alphabet="ab ", max_size=20))
def test_a_template_that_opened_the_tag_loses_no_thinking(thinking, answer):
    found = split_thinking(f"{thinking}</think>{answer}", opened_in_prompt=True)
    assert found.thinking == thinking
    assert found.answer == answer.strip()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<assistant><think>\n", True),
        ("<assistant>", False),
        ("<assistant><think>\n\n</think>\n\n", False),
        ("solution: <think> a </think> b <assistant>", False),
        ("solution: <think> a </think> b <assistant><think>", True),
    ],
)
def test_whether_the_prompt_opens_thinking(text, expected):
    assert opens_thinking(text) is expected


TAGS = [
    (n.name, opening, closing)
    for n in notations()
    if not n.prose
    for opening, closing in zip(n.open, n.close, strict=False)
]


@pytest.mark.parametrize(("name", "opening", "closing"), TAGS)
def test_every_notation_is_cut_alike(name, opening, closing):
    whole = split_thinking(f"{opening}Hmm, 12?{closing}It is 13.")
    assert (whole.form, whole.thinking, whole.answer) == ("paired", "Hmm, 12?", "It is 13.")
    cut = split_thinking(f"{opening}Hmm, 12?")
    assert (cut.form, cut.thinking, cut.answer) == ("unclosed", "Hmm, 12?", "")
    inside = split_thinking(f"Hmm, 12?{closing}It is 13.")
    assert (inside.form, inside.thinking, inside.answer) == ("opened", "Hmm, 12?", "It is 13.")
    assert opens_thinking(f"<user>12?<assistant>{opening}\n")
    assert thinking_mode(f"<assistant>{opening}{closing}\n\n") == "closed"
    assert begins_inside(f"a{closing}")
    assert not begins_inside(f"{opening}a{closing}", opened_in_prompt=True)
    assert blank_tags(f"{opening}a") == " " * len(opening) + "a"


@pytest.mark.parametrize(
    ("text", "thinking", "answer", "form"),
    [
        ("<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>"
         "12<|return|>", "Hm.", "12", "paired"),
        ("<|channel|>analysis<|message|>Hm.<|end|>", "Hm.", "", "unclosed"),
        ("<|channel|>final<|message|>12<|return|>", "", "12", "absent"),
        ("analysisWe add.assistantfinalIt is 12", "We add.", "It is 12", "paired"),
        ("analysisWe add", "We add", "", "unclosed"),
        ("analysis of 12", "", "analysis of 12", "absent"),
        ("Here's my thought process: hm\nHere is my response: 12", " hm\n", "12", "paired"),
        ("Here is my thought process: hm", " hm", "", "unclosed"),
        ("<|START_THINKING|>a<|END_THINKING|><|START_RESPONSE|>b<|END_RESPONSE|>", "a", "b",
         "paired"),
        ("<|open|>think<|sep|>a<|close|>think<|sep|><|open|>response<|sep|>b<|close|>response<|sep|>"
         "<|close|>message<|sep|>", "a", "b", "paired"),
        ("<|message_model|><|content_thinking|>a<|end_message|><|message_model|><|content_text|>b"
         "<|end_message|><|content_model_end_sampling|>", "a", "b", "paired"),
        (" to=self<|message|>a<|eom|><|start|>assistant to=user<|message|>b<|eot|>", "a", "b", "paired"),
        ("to=self<|message|>a<|eom|>", "a<|eom|>", "", "unclosed"),
        ("<think>a</think>b<reflection>c</reflection>d", "a\nc", "b\nd", "paired"),
        ("<think>a</think>b<reflection>c", "a\nbc", "", "unclosed"),
    ],
)  # fmt: skip
def test_notations_of_their_own_kind(text, thinking, answer, form):
    found = split_thinking(text)
    assert (found.thinking, found.answer, found.form) == (thinking, answer, form)


@pytest.mark.parametrize(
    ("text", "tag"),
    [
        ("<ponder>a</ponder>b", "<ponder>"),
        ("<|my_thoughts|>a", "<|my_thoughts|>"),
        ("[INNER_MONOLOGUE]a[/INNER_MONOLOGUE] b", "[INNER_MONOLOGUE]"),
        ("<plan>a</plan> b", "<plan>"),
        ("<plan>a</plan>", None),
        ("<answer>12</answer> so", None),
        ("x < 3 and [1, 2] > y", None),
        ("I think 12.", None),
    ],
)
def test_what_looks_like_an_unknown_notation(text, tag):
    assert unknown_notation(text) == tag


def test_cutting_is_linear():
    """Work for a text twice as long, counted where it is done: in tags, of which none is lost."""
    for unit in ("<think>", "</think>", "<", "[THINK]x", "<|channel|>analysis<|message|>a"):
        found = split_thinking(unit * 40_000)
        assert len(found.thinking) + len(found.answer) <= len(unit) * 40_000
