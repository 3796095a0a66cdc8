"""The warm start's corpus: unguided traces of number pairs, and other tasks with their solution.

Enters: a seed and a size. Leaves: records (question, answer, solution) that `tasks.files` reads.
Number pairs are always asked without a context. That a solution in the prompt is there to be used
is kept alive by *other* tasks, whose solutions are straight and are given back word for word:
nothing here says how a search changes when its solution is known.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from epistill.config import NumberPairsTask
from epistill.seeds import named_random
from epistill.tasks.number_pairs import make_pairs
from epistill.tasks.pair_traces import pair_trace
from epistill.teacher.context import insert_context

OTHER = 0.4  # share of other tasks
# Share of each world among the rest; the wording is always plain.
WORLDS = (
    (NumberPairsTask(), 0.55),
    (NumberPairsTask(numbers=5), 0.15),
    (NumberPairsTask(largest=60), 0.15),
    (NumberPairsTask(operation="difference"), 0.15),
)
_NAMES = ("Ann", "Ben", "Carla", "Dev", "Eva", "Finn", "Grace", "Hugo", "Ines", "Jon", "Kim", "Leo")
_THINGS = ("apples", "books", "coins", "stamps", "pens", "shells", "cards", "plums", "nails")
_WORDS = (
    "river", "cat", "window", "plum", "garden", "ink", "mountain", "bell", "paper", "owl", "stone",
    "lantern", "boat", "sugar", "hat", "bridge", "feather", "salt", "candle", "wolf",
)  # fmt: skip


def warm_start_records(seed: int, size: int) -> list[dict[str, str]]:
    """Records of the warm start: question, answer, solution (the response to learn)."""
    return [_record(named_random("warm_start", seed, index), seed, index) for index in range(size)]


def _record(rng: random.Random, seed: int, index: int) -> dict[str, str]:
    if rng.random() < OTHER:
        question, steps, answer = rng.choice(_OTHER_TASKS)(rng)
        solution = f"<think>\n{steps}\n</think>\nAnswer: {answer}"
        question = insert_context(question, solution, "solution")
        return {"question": question, "answer": answer, "solution": solution}
    world = rng.choices([task for task, _ in WORLDS], [share for _, share in WORLDS])[0]
    pairs = make_pairs(world, "warm_start", seed, index)
    trace = "<think>\n" + pair_trace(pairs, rng)
    # In a box: bare, "19 - 3" reads as a range of answers.
    return {"question": pairs.prompt, "answer": rf"\boxed{{{pairs.answer}}}", "solution": trace}


def _left_over(rng: random.Random) -> tuple[str, str, str]:
    has, buys = rng.randint(5, 40), rng.randint(2, 20)
    gives, things = rng.randint(2, has), rng.choice(_THINGS)
    question = (
        f"{rng.choice(_NAMES)} has {has} {things}, buys {buys} more and gives {gives} away. How "
        "many are left?"
    )
    left = has + buys - gives
    return question, f"{has} + {buys} = {has + buys}.\n{has + buys} - {gives} = {left}.", str(left)


def _hidden(rng: random.Random) -> tuple[str, str, str]:
    """What only the solution says."""
    who, friend = rng.sample(_NAMES, 2)
    place, word = rng.sample(_WORDS, 2)
    steps = f"{who} got the word from {friend}.\n{friend} found it under the {place}: {word}."
    return f"Which secret word does {who} know?", steps, word


def _sorted(rng: random.Random) -> tuple[str, str, str]:
    words = rng.sample(_WORDS, 3)
    first, second, third = sorted(words)
    steps = f"{first} comes before {second}.\n{second} comes before {third}."
    return (
        f"Sort the words {', '.join(words)} by the alphabet.",
        steps,
        f"{first}, {second}, {third}",
    )


def _distance(rng: random.Random) -> tuple[str, str, str]:
    hours, speed, rest = rng.randint(2, 9), rng.randint(2, 12) * 10, rng.randint(2, 30)
    question = (
        f"A train runs {hours} hours at {speed} km per hour and then {rest} km more. How far does "
        "it run?"
    )
    way = hours * speed
    return question, f"{hours} * {speed} = {way}.\n{way} + {rest} = {way + rest}.", str(way + rest)


_OTHER_TASKS: tuple[Callable[[random.Random], tuple[str, str, str]], ...] = (
    _left_over,
    _hidden,
    _sorted,
    _distance,
)
