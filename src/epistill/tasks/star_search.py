"""Star search: a world in which an answer needs trying, for a model small enough for a laptop.

Enters: knobs (arms, depth, seed, split). Leaves: `Problem`s. A prompt lists the edges of a star in
random order and then its starts; one arm ends in gold, the others in dust; the answer is the start
of the gold arm. Walking an arm forwards is a chain of look-ups, but *choosing* the arm needs
backward chaining over all of it, which a small network cannot do in one pass (Bachmann &
Nagarajan 2024, arXiv 2403.06963), so search is needed. With depth 1 the answer can be read at once.

    edges 13 22 , 23 10 , 27 gold , 10 19 , 16 13 , 22 dust , ... from 23 16 18
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

from epistill.errors import EpistillError
from epistill.records import Message, Problem
from epistill.seeds import named_random

VERSION = 1
NAMES: tuple[str, ...] = tuple(str(number) for number in range(10, 34))


@dataclass(frozen=True, slots=True)
class Star:
    """One star: `arms[i]` is the chain of nodes of arm i, `gold` the index of the good one."""

    arms: tuple[tuple[str, ...], ...]
    gold: int
    prompt: str

    @property
    def answer(self) -> str:
        """The start of the gold arm."""
        return self.arms[self.gold][0]

    def end(self, arm: int) -> str:
        """The word an arm ends in."""
        return "gold" if arm == self.gold else "dust"


def make_star(arms: int, depth: int, *key: object) -> Star:
    """Draw one star from the seed named by (task, version, arms, depth, *key)."""
    if arms < 2 or depth < 1 or arms * depth > len(NAMES):
        raise EpistillError(
            f"star_search with arms={arms}, depth={depth}: expected arms >= 2, depth >= 1 and "
            f"arms * depth <= {len(NAMES)} names; lower one of them"
        )
    rng = named_random("star_search", VERSION, arms, depth, *key)
    names = rng.sample(NAMES, arms * depth)
    chains = tuple(tuple(names[i * depth : (i + 1) * depth]) for i in range(arms))
    gold = rng.randrange(arms)
    edges: list[str] = []
    for index, chain in enumerate(chains):
        following = (*chain[1:], "gold" if index == gold else "dust")
        edges += [f"{a} {b}" for a, b in zip(chain, following, strict=True)]
    rng.shuffle(edges)
    starts = [chain[0] for chain in chains]
    rng.shuffle(starts)
    return Star(chains, gold, f"edges {' , '.join(edges)} from {' '.join(starts)}")


def star_problem(arms: int, depth: int, seed: int, split: str, index: int) -> Problem:
    """Problem `index` of a split; the same five values give the same problem on every machine."""
    from epistill.tasks.star_traces import DEFAULT_DIALS, searching_trace

    star = make_star(arms, depth, split, seed, index)
    rng = named_random("star_solution", VERSION, arms, depth, split, seed, index)
    return Problem(
        id=f"star-{arms}x{depth}-{split}-{seed}-{index}",
        messages=(Message("user", star.prompt),),
        answer=star.answer,
        grader="exact",
        solution="<think> " + searching_trace(star, rng, DEFAULT_DIALS, must_solve=True),
        meta=MappingProxyType({"arms": arms, "depth": depth, "split": split}),
    )
