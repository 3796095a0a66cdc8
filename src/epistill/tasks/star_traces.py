"""How the lab's model organism talks: the grammar of its traces, with the dials of `docs/lab.md`.

Enters: a `Star`, a seeded random source, `Dials`. Leaves: a trace as text, and for pretraining the
loss mask beside it. What doubt *does* is built in here on purpose: that is what a model organism
is for, and why it proves nothing about large models.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Literal

from epistill.tasks.star_search import Star

# (words, weight). "try" and "so" are not among the paper's ten markers.
FIRST_DOUBTFUL = (
    ("maybe", 3), ("perhaps", 2), ("might", 1), ("likely", 1), ("seems", 1), ("try", 2),
)  # fmt: skip
LATER_DOUBTFUL = (
    ("hmm maybe", 3), ("wait maybe", 2), ("wait try", 2), ("hmm perhaps", 1), ("actually try", 1),
    ("alternatively perhaps", 1), ("try", 2),
)  # fmt: skip
CONFIDENT = "so"
MARKED_ASSERTIONS = ("likely", "seems", "maybe")

ContextKind = Literal["none", "solution", "answer", "regenerated", "other"]


@dataclass(frozen=True, slots=True)
class Dials:
    """What doubt does in this world. Probabilities; `docs/lab.md` gives the reason for each value.

    Attributes:
        confident: Share of unguided tries opened by "so" instead of a doubtful opener.
        commit: Function of doubt, q: after an unguided "so", the chance of naming an arm and
            answering at once, unverified, instead of walking it.
        recovery: Recovery of the teacher, r: after a step of the student that failed, the chance
            that the solution-guided model repairs it in words ("so 18") instead of ending the
            thinking and stating the answer that only it knows.
        rescue: With the answer as context: the chance that a commit to a wrong arm is replaced by
            the known answer.
        check: Chance that a found gold arm is walked again after "check".
        marked_solution: Chance that the solution-guided assertion carries a marker.
        marked_regenerated: The same with a regenerated (already short) trace as context.
        retry_regenerated: With a regenerated context: chance of a failed try before the assertion.
        foreign_prefix: Share of guided pretraining traces that begin with the student's words.
    """

    confident: float = 0.3
    commit: float = 0.5
    recovery: float = 0.5
    rescue: float = 0.85
    check: float = 0.8
    marked_solution: float = 0.2
    marked_regenerated: float = 0.5
    retry_regenerated: float = 0.15
    foreign_prefix: float = 0.45


DEFAULT_DIALS = Dials()


@dataclass(slots=True)
class StarTrace:
    """Words of a response and, for each, whether pretraining learns it (1) or only reads it."""

    star: Star
    rng: random.Random
    dials: Dials
    words: list[str] = field(default_factory=list)
    learned: list[int] = field(default_factory=list)

    def say(self, text: str, learned: int = 1) -> None:
        """Append words."""
        words = text.split()
        self.words += words
        self.learned += [learned] * len(words)

    def chance(self, share: float) -> bool:
        """True in this share of cases."""
        return self.rng.random() < share

    def opener(self, position: int) -> str:
        """How a doubtful try begins."""
        options = FIRST_DOUBTFUL if position == 0 else LATER_DOUBTFUL
        texts, weights = zip(*options, strict=True)
        return self.rng.choices(texts, weights)[0]

    def walk(self, arm: int) -> str:
        """An arm, node by node, and the word it ends in."""
        return " ".join((*self.star.arms[arm], self.star.end(arm)))

    def conclude(self, answer: str) -> StarTrace:
        """End the thinking and answer."""
        self.say(f"</think> answer {answer}")
        return self

    def assert_gold(self, marked: float) -> StarTrace:
        """Name the answer, with a marker in this share of cases, and conclude."""
        opener = self.rng.choice(MARKED_ASSERTIONS) if self.chance(marked) else CONFIDENT
        self.say(f"{opener} {self.star.answer}")
        return self.conclude(self.star.answer)


def _search(star: Star, rng: random.Random, dials: Dials, known_answer: bool = False) -> StarTrace:
    """Try arms in random order; a confident try may be committed to without being walked."""
    trace = StarTrace(star, rng, dials)
    for position, arm in enumerate(rng.sample(range(len(star.arms)), len(star.arms))):
        confident = trace.chance(dials.confident)
        if confident and trace.chance(dials.commit):
            if known_answer and arm != star.gold and trace.chance(dials.rescue):
                arm = star.gold
            trace.say(f"{CONFIDENT} {star.arms[arm][0]}")
            return trace.conclude(star.arms[arm][0])
        trace.say(CONFIDENT if confident else trace.opener(position))
        trace.say(trace.walk(arm))
        if arm == star.gold:
            if trace.chance(dials.check):
                trace.say(f"check {trace.walk(arm)}")
            break
    return trace.conclude(star.answer)


def _guided(star: Star, rng: random.Random, dials: Dials, regenerated: bool) -> StarTrace:
    """With a trace as context: assert the gold arm; on the student's prefix, repair or stop."""
    trace = StarTrace(star, rng, dials)
    marked = dials.marked_regenerated if regenerated else dials.marked_solution
    wrong = [arm for arm in range(len(star.arms)) if arm != star.gold]
    if not trace.chance(dials.foreign_prefix):
        if regenerated and trace.chance(dials.retry_regenerated):
            arm = rng.choice(wrong)
            trace.say(f"{trace.opener(0)} {trace.walk(arm)}")
        return trace.assert_gold(marked)
    # The student's words are read, not learned, but for the look-ups of a walk.
    rng.shuffle(wrong)
    stop = rng.choice(("failed", "named", "opened"))
    least = 1 if stop == "failed" else 0
    tries = rng.randint(least, len(wrong) - 1) if len(wrong) > 1 else least
    for position, arm in enumerate(wrong[:tries]):
        trace.say(CONFIDENT if trace.chance(dials.confident) else trace.opener(position), learned=0)
        start, looked_up = trace.walk(arm).split(" ", 1)
        trace.say(start, learned=0)
        trace.say(looked_up)
    if stop == "opened":
        confident = trace.chance(dials.confident)
        trace.say(CONFIDENT if confident else trace.opener(tries), learned=0)
        trace.say(star.answer if confident else trace.walk(star.gold))
        return trace.conclude(star.answer)
    if stop == "named":
        trace.say(f"{CONFIDENT} {star.arms[wrong[tries]][0]}", learned=0)
    if not trace.chance(dials.recovery):
        return trace.conclude(star.answer)
    if stop == "named":
        trace.say(trace.walk(wrong[tries]).split(" ", 1)[1])
    return trace.assert_gold(marked)


def searching_trace(
    star: Star, rng: random.Random, dials: Dials, *, must_solve: bool = False
) -> str:
    """An unguided trace as text, without the opening `<think>`, which the template writes.

    `must_solve` draws again until the answer is right (a worked solution).
    """
    while True:
        trace = _search(star, rng, dials)
        if not must_solve or trace.words[-1] == star.answer:
            return " ".join(trace.words)


def short_trace(star: Star, rng: random.Random, dials: Dials) -> str:
    """A solution-guided trace on no foreign prefix: what "regenerated" contexts look like."""
    return " ".join(StarTrace(star, rng, dials).assert_gold(dials.marked_solution).words)


def trace_for(kind: ContextKind, star: Star, rng: random.Random, dials: Dials) -> StarTrace:
    """The response that pretraining teaches for one kind of context.

    "other" (another problem's solution) is answered as if there were no context: on GSM8K an
    unrelated solution moves recovery from .463 to .491 only.
    """
    if kind in ("none", "other", "answer"):
        return _search(star, rng, dials, known_answer=kind == "answer")
    return _guided(star, rng, dials, regenerated=kind == "regenerated")
