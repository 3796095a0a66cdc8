"""Twice the text is at most some three times the work, for every pattern over model text."""

from __future__ import annotations

import time

import pytest

from epistill.tasks.answers import extract_answer, extract_code, frames
from epistill.tasks.clauses import clause_of, letter_in
from epistill.tasks.files import reference_answer
from epistill.tasks.grading import grade_choice, grade_exact
from epistill.tasks.linear_patterns import SOURCE, patterns

UNITS = ("The answer ", "The answer is\t", " ", "\t", "\\boxed{", "}", "<answer>", "```a\n", "####",
         "#### ", "a ", "aa  ", "1,", "1 ", "9", "\\frac{", "$", "**", "(", "Answer:\n", "not ",
         "x = ", "，", "答案", ".", "\\text{a}", "0.", "and ")  # fmt: skip
MOST = 3.5  # linear is 2, quadratic 4; processor time of the fastest of several tries


def work(function, text):
    """Processor seconds; small texts are read often enough to be measured."""
    fastest, calls = float("inf"), 1
    while True:
        started = time.process_time()
        for _ in range(calls):
            function(text)
        spent = time.process_time() - started
        if spent > 0.01:
            break
        calls *= 4
    for _ in range(4):
        started = time.process_time()
        for _ in range(calls):
            function(text)
        fastest = min(fastest, (time.process_time() - started) / calls)
    return fastest


def is_linear(function, unit, size):
    """Whether doubling doubles; tried again, since other programs share the machine's caches."""
    for _ in range(4):
        if work(function, unit * (2 * size)) < MOST * work(function, unit * size):
            return True
    return False


PATTERNS = [
    (module, name) for module, named in SOURCE.items() for name in named if name != "rewrites"
]


@pytest.mark.parametrize(("module", "name"), PATTERNS)
def test_patterns_are_linear(module, name):
    pattern = patterns(module)[name]
    slow = [u for u in UNITS if not is_linear(lambda t: list(pattern.finditer(t)), u, 2_000)]
    assert slow == []


FUNCTIONS = {
    "extract_answer": extract_answer,
    "frames": lambda text: list(frames(text)),
    "extract_code": extract_code,
    "clause_of": clause_of,
    "letter_in": letter_in,
    "reference_answer": lambda text: reference_answer({"question": "", "answer": text}),
    "grade_exact": lambda text: grade_exact("a", text),
    "grade_choice": lambda text: grade_choice("A", text),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_linear(name):
    slow = [unit for unit in UNITS if not is_linear(FUNCTIONS[name], unit, 12_000 // len(unit))]
    assert slow == []
