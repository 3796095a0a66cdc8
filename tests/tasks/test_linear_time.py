"""Twice the text is at most some three times the work, for every pattern over model text."""

from __future__ import annotations

import pytest

from epistill.tasks.answers import extract_answer, extract_code, frames
from epistill.tasks.clauses import clause_of, letter_in
from epistill.tasks.files import reference_answer
from epistill.tasks.grading import grade_choice, grade_exact
from epistill.tasks.linear_patterns import SOURCE, patterns
from epistill.tasks.notation import quantity, spoken_number, tidy
from tests.helpers.linear_time import is_linear

UNITS = ("The answer ", "The answer is\t", " ", "\t", "\\boxed{", "}", "<answer>", "```a\n", "####",
         "#### ", "a ", "aa  ", "1,", "1 ", "9", "\\frac{", "$", "**", "(", "Answer:\n", "not ",
         "x = ", "，", "答案", ".", "\\text{a}", "0.", "and ", '"answer": "', "答え", "\nA: ", "two ", "| ",
         "~~", "<!--", "\\cancel{", "Answer: 1\n", "\\boxed{1} is wrong. ", "no, ", "if it ")  # fmt: skip

PATTERNS = [
    (module, name) for module, named in SOURCE.items() for name in named if name != "rewrites"
]


@pytest.mark.parametrize(("module", "name"), PATTERNS)
def test_patterns_are_linear(module, name):
    pattern = patterns(module)[name]
    assert is_linear(lambda text: list(pattern.finditer(text)), UNITS, 2_000)
    assert pattern.programsize < 12_000  # beyond, RE2 runs out of its memory, says so and is slow


FUNCTIONS = {
    "extract_answer": extract_answer,
    "frames": lambda text: list(frames(text)),
    "extract_code": extract_code,
    "clause_of": clause_of,
    "letter_in": letter_in,
    "reference_answer": lambda text: reference_answer({"question": "", "answer": text}),
    "tidy": tidy,
    "quantity": quantity,
    "spoken_number": spoken_number,
    "grade_exact": lambda text: grade_exact("a", text),
    "grade_choice": lambda text: grade_choice("A", text),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_linear(name):
    assert is_linear(FUNCTIONS[name], UNITS, 6_000)
