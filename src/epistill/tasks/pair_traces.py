"""Unguided traces of number pairs, in words: search, doubt, verification. All of it synthetic.

Enters: a question, a seeded random source. Leaves: a response without its opening `<think>`. What
the traces say about doubt, and what they leave open, is in `docs/smollm2.md`. Nothing here sees a
solution: what a model does with one it does not learn from these.
"""

from __future__ import annotations

import random

from epistill.tasks.number_pairs import Pairs

FIRST = ("Let me try", "Maybe", "Perhaps", "Try")
LATER = ("Hmm, maybe", "Wait, maybe", "Alternatively,", "Perhaps", "Actually, try", "Try", "Maybe")
HASTY = 0.07  # of tries: an answer without a calculation, "It must be"
CHECKED = 0.5  # of found pairs: calculated once more


def pair_trace(pairs: Pairs, rng: random.Random, *, must_solve: bool = False) -> str:
    """Try the pairs in random order, saying of each how it misses; now and then answer unchecked.

    Args:
        pairs: The question.
        rng: Seeded source of randomness.
        must_solve: Without unchecked answers, so that it ends right.
    """
    candidates = pairs.candidates()
    said: list[str] = []
    for position, pair in enumerate(rng.sample(candidates, len(candidates))):
        if not must_solve and rng.random() < HASTY:
            return _concluded([*said, f"It must be {pairs.expression(pair)}."], pairs, pair)
        opener, result = rng.choice(LATER if position else FIRST), pairs.result(pair)
        tried = f"{opener} {pairs.expression(pair)} = {result}."
        if result == pairs.target:
            said.append(f"{tried} Yes.")
            if rng.random() < CHECKED:
                said.append(f"Check: {_again(pairs, pair)}.")
            return _concluded(said, pairs, pair)
        said.append(f"{tried} Too {'small' if result < pairs.target else 'big'}.")
    raise AssertionError("the right pair is among the candidates")


def _again(pairs: Pairs, pair: tuple[int, int]) -> str:
    """The same calculation from its other side."""
    if pairs.operation == "sum":
        return f"{pair[1]} + {pair[0]} = {pairs.target}"
    return f"{pair[1]} + {pairs.target} = {pair[0]}"


def _concluded(said: list[str], pairs: Pairs, pair: tuple[int, int]) -> str:
    return "\n".join([*said, "</think>", f"Answer: {pairs.expression(pair)}"])
