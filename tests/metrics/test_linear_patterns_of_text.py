"""Twice the text is at most some three times the work: metrics over model text, and thinking."""

from __future__ import annotations

import importlib
import pkgutil
import re

import pytest

import epistill.metrics
from epistill import thinking
from epistill.metrics import epistemic, loops, shipped_lexicons, words
from epistill.metrics.lexicon import load_lexicon
from tests.helpers.linear_time import is_linear

UNITS = ("<", "<think>", "</think>", "<think ", "[", "[T", "[THINK]", "<|channel|>", "◁", " ", "\n",
         "a", "a ", "wait ", "wait'", "it's", "等", "等等", "1,", "9", "-", ". ", "\\frac{", "\\frac {a}",
         "{", "x=1 ", "= ", "Thinking Process:\n", "thought", "<reason", "<|start|>assistant", "\\text")  # fmt: skip


def compiled(value):
    """Every pattern in a value of a module."""
    if isinstance(value, re.Pattern):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from compiled(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from compiled(one)


MODULES = [
    thinking,
    *(importlib.import_module(found.name)
      for found in pkgutil.iter_modules(epistill.metrics.__path__, "epistill.metrics.")),
]  # fmt: skip
PATTERNS = {
    pattern.pattern: pattern
    for module in MODULES
    for value in vars(module).values()
    for pattern in compiled(value)
} | {name: epistemic._pattern(load_lexicon(name)) for name in shipped_lexicons()}


def test_there_are_patterns_to_try():
    assert len(PATTERNS) > 15


@pytest.mark.parametrize("name", PATTERNS)
def test_patterns_are_linear(name):
    assert is_linear(lambda text: list(PATTERNS[name].finditer(text)), UNITS, 2_000)


FUNCTIONS = {
    "split_thinking": thinking.split_thinking,
    "split_thinking, opened": lambda text: thinking.split_thinking(text, opened_in_prompt=True),
    "unknown_notation": thinking.unknown_notation,
    "blank_tags": thinking.blank_tags,
    "count_words": words.count_words,
    "make_buffer": lambda text: words.make_buffer([text]),
    "marker_spans": epistemic.marker_spans,
    "official_substring_count": epistemic.official_substring_count,
    "is_looping": loops.is_looping,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_linear(name):
    assert is_linear(FUNCTIONS[name], UNITS, 6_000)
