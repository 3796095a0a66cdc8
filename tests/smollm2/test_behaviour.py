from __future__ import annotations

from epistill.smollm2.behaviour import behaviour_of, summarise_behaviour

FOUND = "Maybe 4 + 16 = 20. Too small.\nTry 4 + 19 = 23. Yes.\nCheck: 19 + 4 = 23.\n</think>\n"


def test_what_was_tried_and_verified():
    found = behaviour_of("4 + 19", FOUND + "Answer: 4 + 19")
    assert (found.tried, found.repeated, found.verified, found.hasty) == (2, 1, True, False)
    assert found.calculations_right == 1.0


def test_a_wrong_calculation_that_comes_out_as_asked_verifies_the_pair_it_names():
    found = behaviour_of("4 + 19", "Try 16 + 8 = 23. Yes.\n</think>\nAnswer: 8 + 16")
    assert found.verified is True
    assert found.calculations_right == 0.0


def test_an_unchecked_or_missing_answer():
    hasty = behaviour_of("4 + 19", "It must be 4 + 16.\n</think>\nAnswer: 4 + 16")
    assert (hasty.tried, hasty.calculations_right, hasty.verified) == (0, None, False)
    assert hasty.hasty
    assert behaviour_of("4 + 19", "Maybe 4 + 16 = 20.").verified is None
    means = summarise_behaviour([hasty, behaviour_of("4 + 19", FOUND + "Answer: 4 + 19")])
    assert means["verified"] == 0.5
    assert means["calculations_right"] == 1.0
    assert summarise_behaviour([])["tried"] is None
