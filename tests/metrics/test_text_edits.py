from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epistill.errors import EpistillError
from epistill.metrics import total_markers
from epistill.metrics.text_edits import TextEdits, as_long_as
from epistill.tasks.answers import extract_answer, framed_answer

STAR = (
    "perhaps 13 23 22 dust wait maybe 10 15 33 dust try 24 30 21 dust actually try 28 26 20 gold "
    "check 28 26 20 gold </think> answer 28"
)
PROSE = (
    "<think>Wait, so 3*4 = 12.\n\nHmm. Maybe, maybe it's 13.\nThat is 12. Let me double-check: "
    "3*4 = 12.\n</think>\nMaybe \\boxed{12}."
)


def edited(text, *rules, answer="28", share=1.0, seed=0, opened=True):
    edits = TextEdits(rules, framed_answer, share=share)
    return edits.apply(text, answer, random.Random(seed), opened_in_prompt=opened)


@pytest.mark.parametrize(
    ("rule", "thinking", "count"),
    [
        ("delete lexicon:paper-en",
         "13 23 22 dust 10 15 33 dust try 24 30 21 dust try 28 26 20 gold 28 26 20 gold ", 4),
        ("swap lexicon:paper-en=so",
         "so 13 23 22 dust so 10 15 33 dust try 24 30 21 dust so try 28 26 20 gold so "
         "28 26 20 gold ", 4),
        ("cut-rechecks", STAR.split("check")[0].rstrip() + " ", 1),
        ("cut check.*", STAR.split("check")[0], 1),
        ("inject hmm@after:dust", STAR.split("</think>")[0].replace("dust", "dust hmm"), 3),
        ("inject 1*hmm@after:dust", STAR.split("</think>")[0].replace("dust", "dust hmm", 1), 1),
        ("inject well@start", "well " + STAR.split("</think>")[0], 1),
        ("inject wait@before:</think>", STAR.split("</think>")[0] + "wait", 1),
        ("inject oh@before:check", STAR.split("</think>")[0].replace("check", "oh check"), 1),
    ],
)  # fmt: skip
def test_each_rule_changes_the_thinking_alone(rule, thinking, count):
    assert edited(STAR, rule) == (thinking + "</think> answer 28", [count])


def test_prose_stays_prose():
    text, _ = edited(PROSE, "delete lexicon:paper-en", answer="12", opened=False)
    assert text.startswith("<think>So 3*4 = 12.\n\nIt's 13.\nThat is 12.")
    assert text.endswith("</think>\nMaybe \\boxed{12}.")  # the answer part is nobody's to edit
    text, counts = edited(PROSE, "swap hmm=Well", "swap maybe=so", answer="12", opened=False)
    assert ("\nWell. So it's 13." in text, counts) == (True, [1, 1])
    text, _ = edited(PROSE, "cut-rechecks", answer="12", opened=False)
    assert text.split("</think>")[0] == "<think>Wait, so 3*4 = 12.\n\nHmm. Maybe, maybe it's 13.\n" \
        "That is 12.\n"  # fmt: skip
    text, counts = edited(PROSE, "inject Oh,@line", answer="12", opened=False)
    assert (text.count("Oh, "), counts) == (3, [3])


def test_without_thinking_the_sentence_of_the_answer_ends_the_reasoning():
    text, _ = edited("Maybe 3*4, so 12. Maybe: 12", "delete maybe", answer="12", opened=False)
    assert text == "3*4, so 12. Maybe: 12"
    text, _ = edited("Maybe so. Maybe", "delete maybe", answer=None, opened=False)
    assert text == "So. "


RULES = (
    "cut-rechecks",
    "inject wait@before:</think>",
    "inject hmm@line",
    "inject maybe@start",
    "delete answer",
    "delete final",
    "swap the=so",
    r"cut \d+",
    r"cut [.\\<#{}>*]",
)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("work", ["", "First, 3*6 = 18. Wait, let me verify: 18/6=3. So yes."])
@pytest.mark.parametrize(
    "frame",
    [
        "Final answer: \\boxed{18}",
        "\\boxed{\n18}",
        "#### 18",
        "<answer>18</answer>",
        "<answer>\n18\n</answer>",
        "The answer is 18.",
        "The answer is:\n\n$$18$$",
        "**Answer:**\n18",
        "The answer is 18. Let me check: 3*6 = 18, so it is right.",
        "The answer is (B). That is what was asked.",
        "x = \\boxed{5}\nor \\boxed{8}",
        "答案：18。",
    ],
)
def test_no_rule_touches_the_frame_of_an_answer_without_thinking(frame, work, rule):
    text = f"{work}\n\n{frame}".lstrip()
    answer = extract_answer(text)
    changed, (count,) = edited(text, rule, answer=answer, opened=False)
    assert extract_answer(changed) == answer
    assert changed.endswith(frame)
    assert (changed != text) == (count > 0)
    assert count or not work or not rule.startswith("inject")


def test_rechecks_end_where_the_sentence_of_the_answer_begins():
    text = "First, 3*6 = 18. Wait, let me verify: 18/6=3. So yes.\n\nFinal answer: \\boxed{18}"
    changed, _ = edited(text, "cut-rechecks", answer="18", opened=False)
    assert changed == "First, 3*6 = 18.\n\nFinal answer: \\boxed{18}"


def test_a_response_whose_answer_has_no_place_is_left_as_it_is():
    for text, answer in (
        ("Maybe so. I choose option B.", "B"),  # in no frame, and a letter stands anywhere
        ("Maybe so.\n```python\nprint(1)\nprint(2)\n```", "print(1)\nprint(2)\n"),
        ("<think>maybe</think>hm<reasoning>maybe</reasoning> 18", "18"),  # thought in two places
    ):
        assert edited(text, "delete maybe", answer=answer, opened=False) == (text, [0])


def test_a_share_of_the_places_is_drawn_by_the_source_of_randomness():
    text = "a\n" * 400 + "</think> 1"
    first, second = (edited(text, "inject hmm@line", share=0.5, seed=s)[1][0] for s in (0, 1))
    assert 150 < first < 250
    assert edited(text, "inject hmm@line", share=0.5, seed=0)[1] == [first]
    assert first != second or edited(text, "inject hmm@line", share=0.5)[0] != text


@given(st.text(alphabet="Wait,. maybe\nhm</think>1", max_size=80))
def test_deleting_leaves_no_marker_and_swapping_no_old_one(text):
    before = total_markers(text)
    plain, _ = edited(text, "delete lexicon:paper-en", answer=None)
    swapped, _ = edited(text, "swap lexicon:paper-en=so", answer=None)
    thinking = text.rpartition("</think>")[0] if "</think>" in text else text
    left = before - total_markers(thinking) if "<think>" not in text else before
    assert total_markers(plain) <= before
    assert total_markers(swapped) <= max(left, before)
    assert edited(text, answer=None) == (text, [])


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("remove wait", "is no edit"),
        ("delte wait", "is no edit; .* did you mean 'delete'"),
        ("delete", "is no edit; .* or cut-rechecks$"),
        ("cut-rechecks now", "is no edit"),
        ("swap wait", "does not say what comes instead"),
        ("cut (", "no regular expression"),
        ("inject hmm@until:x", "no place where inject can be"),
        ("delete lexicon:mine", "no lexicon 'mine'"),
    ],
)
def test_what_is_no_rule_is_refused_in_one_line(rule, said):
    with pytest.raises(EpistillError, match=said) as error:
        TextEdits([rule], framed_answer)
    assert "\n" not in str(error.value)


@given(
    have=st.lists(st.integers(1, 60), max_size=40),
    wanted=st.lists(st.integers(1, 60), max_size=20),
    seed=st.integers(0, 3),
)
def test_texts_as_long_as_others(have, wanted, seed):
    """Each is taken once, and pairs off with another that is as long within a tenth."""
    taken = as_long_as(have, wanted, random.Random(seed))
    assert sorted(set(taken)) == taken
    left = list(wanted)
    for length in sorted(have[i] for i in taken):
        partner = next(one for one in sorted(left) if abs(one - length) <= 0.1 * one)
        left.remove(partner)
    if have == wanted:
        assert len(taken) == len(have)
