"""Cutting responses at budgets: so many words or tokens, and what is left of the answer."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from epistill.comparison.budgets import answer_of_prefix, cut_points, default_budgets
from epistill.traces.fields import Trace


def test_default_budgets():
    assert default_budgets(38_912) == (1000, 2000, 4000, 8000, 16000, 32000)
    assert default_budgets(1) == ()


@settings(max_examples=40)
@given(st.text(alphabet="ab 等'\n<", max_size=60), st.integers(1, 20))
def test_a_cut_keeps_so_many_words(text, budget):
    from epistill.metrics import count_words

    (length,), ((stop,),) = cut_points([text], [budget])
    assert length == count_words(text)
    assert count_words(text[:stop]) == min(budget, length)


def test_a_cut_in_tokens_is_that_prefix():
    from epistill.rollouts.load_model import lab_directory
    from epistill.traces.tabulate import token_counter_of

    tokenizer = token_counter_of(Path(lab_directory()))
    text = "maybe 16 13 2 dust hmm try 3 5 38 gold </think> answer 3"
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    (length,), (stops,) = cut_points([text], [1, 5, len(ids), 999], tokenizer)
    assert length == len(ids)
    for budget, stop in zip([1, 5], stops, strict=False):
        assert tokenizer.encode(text[:stop], add_special_tokens=False).ids == ids[:budget]
    assert stops[2:] == [len(text), len(text)]


def test_a_prefix_inside_thinking_has_no_answer():
    opened = Trace("answer 3 or so </think> answer 4", {}, 1)
    assert answer_of_prefix(opened, 14) == ""  # thinking, though no tag says so
    assert answer_of_prefix(opened, 99) == "answer 4"
    paired = Trace("<think>answer 3</think> answer 4", {}, 1)
    assert answer_of_prefix(paired, 15) == ""
    plain = Trace("answer 3. No, answer 4", {}, 1)
    assert answer_of_prefix(plain, 8) == "answer 3"
