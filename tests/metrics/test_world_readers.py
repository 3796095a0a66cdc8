from __future__ import annotations

import re

import pytest

from epistill.config import NumberPairsTask
from epistill.metrics.verification import Checked, checked_response
from epistill.metrics.world_readers import Verification, tried_pairs
from epistill.seeds import named_random
from epistill.tasks.number_pairs import make_pairs
from epistill.tasks.pair_traces import pair_trace
from epistill.thinking import split_thinking


@pytest.mark.parametrize("operation", ["sum", "difference"])
def test_number_pairs_are_read_exactly(operation):
    """Against the words of the world's own traces: an unchecked answer says "must be"."""
    verified = 0
    for i in range(300):
        pairs = make_pairs(NumberPairsTask(numbers=5, operation=operation), "reader", i)
        text = pair_trace(pairs, named_random("reader", i))
        part = split_thinking(text, opened_in_prompt=True)
        answer = part.answer.removeprefix("Answer: ").strip()
        tries = [line for line in part.thinking.splitlines() if not line.startswith("Check")]
        hasty = "must be" in text
        first = re.search(rf"\b{re.escape(answer)}\b", part.thinking).start() / len(part.thinking)
        assert checked_response(text, part, answer) == Checked(not hasty, hasty, len(tries), first)
        verified += not hasty
    assert 0 < verified < 300


FOUND = "Maybe 4 + 16 = 20. Too small.\nTry 4 + 19 = 23. Yes.\nCheck: 19 + 4 = 23."


@pytest.mark.parametrize(
    ("reasoning", "answer", "expected"),
    [
        (FOUND, "4 + 19", Verification(FOUND.index("4 + 19"), True, 2, FOUND.index("Check"))),
        (FOUND, "19+4 = 23", Verification(FOUND.index("4 + 19"), True, 2, FOUND.index("Check"))),
        (FOUND, "4 + 16", Verification(6, False, 2)),  # it was said to miss
        (FOUND, "16 + 19", Verification(None, False, 2)),
        ("Try 16 + 8 = 23.", "8 + 16", Verification(4, True, 1)),  # wrong, and believed
        ("Try 9 - 4 = 5. Too big.\nMaybe 9 - 7 = 2. Yes.\nCheck: 7 + 2 = 9.", "9 - 7",
         Verification(30, True, 2, 46)),
        ("It must be 4 + 19.", "4 + 19", None),  # nothing was calculated: the words must tell
        (FOUND, "23", None),
        ("As 1 + 2 = 3, take 3 - 5.", "3 - 5", None),
    ],
)  # fmt: skip
def test_what_was_tried_and_believed(reasoning, answer, expected):
    assert tried_pairs(reasoning, answer) == expected


def test_without_a_calculation_an_answer_is_committed_to():
    text = "It must be 4 + 16.\n</think>\nAnswer: 4 + 16"
    part = split_thinking(text, opened_in_prompt=True)
    assert checked_response(text, part, "4 + 16") == Checked(
        False, True, 1, 11 / len(part.thinking)
    )
