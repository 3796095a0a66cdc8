from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epistill.word_rules import WordRule, word_rule


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        ("force", "Wait@start", WordRule("Wait", "start")),
        ("force", "Let me see@line", WordRule("Let me see", "line")),
        ("force", "3*Hmm, wait@before:</think>", WordRule("Hmm, wait", "before", "</think>", 3)),
        ("force", r"so@after:\.\n", WordRule("so", "after", r"\.\n")),
        ("block", "</think>@until:a@b", WordRule("</think>", "until", "a@b")),
        ("block", "me@home", WordRule("me@home", "")),
        ("block", "lexicon:paper-en", WordRule("lexicon:paper-en", "")),
    ],
)
def test_rules_are_read(kind, text, expected):
    assert word_rule(kind, text) == expected


@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [
        ("force", "Wait", "has no place"),
        ("force", "Wait@until:x", "has no place where force can be"),
        ("block", "Wait@before:x", "has no place where block can be"),
        ("block", "</think>@untill:gold", "did you mean 'until'"),
        ("force", "Wait@strat", "did you mean 'start'"),
        ("block", "2*Wait@start", "counts 2 times"),
        ("force", "@start", "no place"),
        ("force", "  @start", "is no rule"),
        ("block", "", "is no rule"),
        ("block", "so@after:(", "no regular expression"),
        ("block", "so@until:.*", "nothing would ever be blocked"),
        ("force", "0*Wait@start", "is for 0 times"),
        ("force", "-1*Wait@start", "is for -1 times"),
    ],
)
def test_what_is_no_rule_is_refused_in_one_line(kind, text, said):
    with pytest.raises(ValueError, match=said) as error:
        word_rule(kind, text)
    assert "\n" not in str(error.value)


@given(st.text(min_size=1).filter(lambda t: t.strip() and "@" not in t and "*" not in t))
def test_any_text_without_signs_is_blocked_as_it_is(text):
    assert word_rule("block", text) == WordRule(text, "")
