from __future__ import annotations

import json
from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epistill.metrics import load_lexicon, total_markers
from epistill.metrics.verification import (
    Checked,
    Verification,
    checked_response,
    reasoning_span,
    verification,
    verification_means,
)
from epistill.seeds import named_random
from epistill.tasks.answers import extract_answer, extract_code
from epistill.tasks.star_search import make_star
from epistill.tasks.star_traces import DEFAULT_DIALS, trace_for
from epistill.thinking import split_thinking


@pytest.mark.parametrize("kind", ["none", "answer", "solution", "regenerated"])
def test_in_the_lab_it_is_exact(kind):
    """Against the world's own record of the arms, not against the words' grammar."""
    for i in range(300):
        star = make_star(5, 3, "verification", i)
        words = trace_for(kind, star, named_random("verification", kind, i), DEFAULT_DIALS).words
        text, answer = " ".join(words), words[-1]
        part = split_thinking(text, opened_in_prompt=True)
        found = verification(text[slice(*reasoning_span(text, part, answer))], answer)
        thinking = words[: words.index("</think>")]
        gold = [*star.arms[star.gold], "gold"]
        walked = any(thinking[j : j + 4] == gold for j in range(len(thinking)))
        heads = {arm[0] for arm in star.arms} & set(thinking)
        first = thinking.index(answer) if answer in heads else None
        before = None if first is None else len(" ".join(["", *thinking[:first], ""])) - 1
        assert found.stated == (before or first)
        whole = len(text[slice(*reasoning_span(text, part, answer))])
        assert checked_response(text, part, answer) == Checked(
            found.verified,
            not found.verified,
            found.candidates,
            None if found.stated is None else found.stated / whole,
        )
        assert found.verified == (walked and answer == star.answer)
        assert found.candidates == len(heads)
        if found.recheck is not None:
            assert text[found.recheck :].startswith("check")


@pytest.mark.parametrize(
    ("reasoning", "answer", "stated", "verified"),
    [
        ("so the total is 18.", "18", True, False),
        ("3*6 = 18. So 18.", "18", True, False),
        ("3*6 = 18. Again 9+9 = 18.", "18", True, True),
        ("I get 18. Let me verify: half of 18 is 9.", "18", True, True),
        ("Let me verify that. So 18 it is, 18.", "18", True, False),  # before it is stated
        ("it is 1,234.0, check: 1234", "1234", True, True),
        ("180 and 3.18 and 18.5 and 118", "18", False, False),
        ("x = 1/2, check \\frac{1}{2} + 1/2 = 1", "\\frac{1}{2}", True, True),
        ("so x+1. Double-check: x + 1 at 0 is 1", "x+1", True, True),
        ("得到18。验证一下：18成立", "18", True, True),
        ("nothing", "18", False, False),
    ],
)
def test_an_answer_that_comes_out_again_is_verified(reasoning, answer, stated, verified):
    found = verification(reasoning, answer)
    assert (found.stated is not None, found.verified) == (stated, verified)


@pytest.mark.parametrize("answer", ["B", "(B)", "B.", "**B**", "\\text{(B)}", "（B）", "[B]:"])
def test_one_letter_stands_in_any_prose(answer):
    assert verification("a triangle A, so B", answer) is None
    text = f"So it is B. The answer is {answer}"
    assert checked_response(text, split_thinking(text), answer) == Checked(None, None)


@pytest.mark.parametrize("thought", ["", "<think>so print(1), check print(1)</think>"])
@pytest.mark.parametrize("program", ["print(1)", "a = 1\nprint(a)"])
def test_of_a_program_text_cannot_tell(program, thought):
    text = f"{thought}Here:\n```python\n{program}\n```\nIt prints 1."
    answer = extract_code(text)
    assert checked_response(text, split_thinking(text), answer) == Checked(None, None)


def test_far_from_the_check_it_is_not_beside_it():
    far = "one " * 90
    assert not verification(f"18. Let me check {far} 18 then", "18").verified
    assert verification(f"18. Let me check {'one ' * 60} 18 then", "18").verified


def test_candidates_are_answers_that_were_named():
    found = verification("The answer is 12? No, the answer would be 1,300, \\boxed{7}. So 9", "9")
    assert found.candidates == 4


@given(st.text(max_size=200), st.text(min_size=1, max_size=12))
def test_any_text_can_be_asked(reasoning, answer):
    found = verification(reasoning, answer)
    assert found is None or found.stated is not None or not found.verified
    assert found is None or found.recheck is None or 0 <= found.recheck <= len(reasoning)


def test_reasoning_is_the_thinking_or_what_precedes_the_answer():
    text = "<think>so 18</think> 18"
    span = reasoning_span(text, split_thinking(text), "18")
    assert text[slice(*span)] == "so 18"
    text = "3*6 = 18, so the answer is 18."
    assert text[slice(*reasoning_span(text, split_thinking(text), "18"))].endswith("is ")
    cut = "<think>so 18"
    assert checked_response(cut, split_thinking(cut), "18") == Checked(False, False, None)
    assert checked_response(text, split_thinking(text), None) == Checked(False, False, None)
    letter = "so it is B. (B)"
    assert checked_response(letter, split_thinking(letter), "B") == Checked(None, None, None)


def test_long_reasoning_is_looked_at_from_its_end():
    text = "18 = 18 " + "x " * 300_000 + "so 18, check 18"
    found = verification(text, "18")
    assert found == Verification(text.rindex("18,"), True, 1, text.index("check"))


def test_means_are_over_what_is_known():
    said = [
        Checked(True, False, 2),
        Checked(False, True, 1),
        Checked(False, False),
        Checked(None, None),
    ]
    expected = {"verified_share": 1 / 3, "committed_share": 1 / 3, "candidates": 1.5}
    assert verification_means(said) == pytest.approx(expected)
    unknown = dict.fromkeys(expected)
    assert verification_means([Checked(None, None)]) == verification_means([]) == unknown


def test_against_labelled_sentences(shared_data):
    """The numbers of docs/metrics.md: sentences labelled self-checking, and whole responses."""
    lines = (shared_data / "traces" / "labelled_sentences.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    checking = load_lexicon("checking-en")
    marked = [total_markers(row["sentence"], checking) > 0 for row in rows]
    labelled = ["self_checking" in row["tags"] for row in rows]
    both = sum(m and t for m, t in zip(marked, labelled, strict=True))
    assert (both, sum(marked), sum(labelled)) == SENTENCES
    by_response = defaultdict(list)
    for row in sorted(rows, key=lambda r: (r["file"], r["position"])):
        by_response[row["file"]].append(row)
    table = defaultdict(int)
    for sentences in by_response.values():
        ends = [i for i, row in enumerate(sentences) if "Final Answer" in row["sentence"]]
        final = " ".join(row["sentence"] for row in sentences[ends[0] :]) if ends else None
        answer = None if final is None else extract_answer(final)
        if answer is None:
            continue
        before = sentences[: ends[0]]
        stated = [
            i for i, row in enumerate(before)
            if (one := verification(row["sentence"], answer)) is not None and one.stated is not None
        ]  # fmt: skip
        checked = bool(stated) and any(
            "self_checking" in row["tags"] for row in before[stated[0] + 1 :]
        )
        found = verification(" ".join(row["sentence"] for row in before), answer)
        table[checked, found.verified] += 1
    assert dict(table) == RESPONSES


SENTENCES = (67, 154, 165)
RESPONSES = {(True, True): 8, (False, True): 3, (False, False): 1}
