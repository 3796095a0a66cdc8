"""Number pairs: a task in English that needs trying, for a real pretrained model on a laptop.

Enters: knobs (numbers, largest, operation, wording, seed, split). Leaves: `Problem`s with one right
pair each. Which pair it is cannot be read off; each try is one calculation, so that a response is
short enough for two cores. Traces are in `tasks.pair_traces`.

    Which two of the numbers 8, 15, 31, 23 have the sum 38?
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from types import MappingProxyType

from epistill.config import NumberPairsTask
from epistill.errors import EpistillError
from epistill.records import Message, Problem
from epistill.seeds import named_random

VERSION = 1
SMALLEST = 2
MOST_DRAWS = 1000
_QUESTIONS = {
    ("sum", "plain"): "Which two of the numbers {listed} have the sum {target}?",
    ("difference", "plain"): "Which two of the numbers {listed} have the difference {target}?",
    ("sum", "story"): "There are boxes of {listed} kilos. Two of them together weigh {target} "
    "kilos. Which two?",
    ("difference", "story"): "There are boxes of {listed} kilos. One of them weighs {target} kilos "
    "more than another. Which two?",
}


@dataclass(frozen=True, slots=True)
class Pairs:
    """One question: `right` is the only pair of `numbers` whose result is `target`."""

    numbers: tuple[int, ...]
    operation: str
    right: tuple[int, int]
    wording: str = "plain"

    @property
    def target(self) -> int:
        """The result asked for."""
        return self.result(self.right)

    @property
    def answer(self) -> str:
        """The pair as an expression: "15 + 23", "31 - 8"."""
        return self.expression(self.right)

    @property
    def prompt(self) -> str:
        """The question."""
        listed = ", ".join(map(str, self.numbers))
        return _QUESTIONS[self.operation, self.wording].format(listed=listed, target=self.target)

    def candidates(self) -> list[tuple[int, int]]:
        """Every pair; for a difference the larger number first."""
        pairs = list(itertools.combinations(self.numbers, 2))
        if self.operation == "sum":
            return pairs
        return [(max(pair), min(pair)) for pair in pairs]

    def result(self, pair: tuple[int, int]) -> int:
        """Sum or difference."""
        return pair[0] + pair[1] if self.operation == "sum" else pair[0] - pair[1]

    def expression(self, pair: tuple[int, int]) -> str:
        """A pair as it is written."""
        return f"{pair[0]} {'+' if self.operation == 'sum' else '-'} {pair[1]}"


def make_pairs(task: NumberPairsTask, *key: object) -> Pairs:
    """Draw one question from the seed named by the task's knobs and the key.

    Raises:
        EpistillError: Too few numbers to draw from, or so many that no result is of one pair only.
    """
    knobs = (task.numbers, task.largest, task.operation, task.wording)
    rng = named_random("number_pairs", VERSION, *knobs, *key)
    choices = range(SMALLEST, task.largest + 1)
    for _ in range(MOST_DRAWS if task.numbers <= len(choices) else 0):
        drawn = Pairs(tuple(rng.sample(choices, task.numbers)), task.operation, (0, 0))
        right = rng.choice(drawn.candidates())
        results = [drawn.result(pair) for pair in drawn.candidates()]
        if results.count(drawn.result(right)) == 1:
            return Pairs(drawn.numbers, task.operation, right, task.wording)
    raise EpistillError(
        f"number_pairs with numbers={task.numbers}, largest={task.largest}: found no question with "
        "one right pair; lower numbers, or raise largest"
    )


def pair_problem(task: NumberPairsTask, seed: int, index: int) -> Problem:
    """Problem `index` of the task's split; equal arguments give equal problems everywhere."""
    from epistill.tasks.pair_traces import pair_trace

    knobs = (task.numbers, task.largest, task.operation, task.wording, task.split, seed, index)
    pairs = make_pairs(task, task.split, seed, index)
    rng = named_random("pair_solution", VERSION, *knobs)
    return Problem(
        id="pairs-" + "-".join(map(str, knobs)),
        messages=(Message("user", pairs.prompt),),
        answer=pairs.answer,
        grader="expression",
        solution="<think>\n" + pair_trace(pairs, rng, must_solve=True),
        meta=MappingProxyType({"numbers": task.numbers, "operation": task.operation}),
    )
