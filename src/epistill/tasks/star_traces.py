"""How the lab's model organism talks: the grammar of its traces, with the dials of `docs/lab.md`.

Enters: a `Star`, a seeded random source, `Dials`. Leaves: a trace as text, and for pretraining the
loss mask beside it. What doubt *does* is built in here on purpose: that is what a model organism
is for, and why it proves nothing about large models.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from epistill.tasks.star_search import Star

# (words, weight). "try" and "so" are not among the paper's ten markers.
FIRST_DOUBTFUL = (
    ("maybe", 3),
    ("perhaps", 2),
    ("might", 1),
    ("likely", 1),
    ("seems", 1),
    ("try", 2),
)
LATER_DOUBTFUL = (
    ("hmm maybe", 3),
    ("wait maybe", 2),
    ("wait try", 2),
    ("hmm perhaps", 1),
    ("actually try", 1),
    ("alternatively perhaps", 1),
    ("try", 2),
)
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

    confident: float
    commit: float
    recovery: float
    rescue: float
    check: float
    marked_solution: float
    marked_regenerated: float
    retry_regenerated: float
    foreign_prefix: float


DEFAULT_DIALS = Dials(
    confident=0.3,
    commit=0.5,
    recovery=0.5,
    rescue=0.85,
    check=0.8,
    marked_solution=0.2,
    marked_regenerated=0.5,
    retry_regenerated=0.15,
    foreign_prefix=0.45,
)


@dataclass(slots=True)
class StarTrace:
    """Words of a response and, for each, whether pretraining learns it (1) or only reads it."""

    words: list[str]
    learned: list[int]

    def say(self, text: str | Sequence[str], learned: int = 1) -> None:
        """Append words."""
        words = text.split() if isinstance(text, str) else list(text)
        self.words += words
        self.learned += [learned] * len(words)


def _pick(options: Sequence[tuple[str, int]], rng: random.Random) -> str:
    return rng.choices([text for text, _ in options], [weight for _, weight in options])[0]


def _conclude(trace: StarTrace, answer: str) -> StarTrace:
    trace.say(f"</think> answer {answer}")
    return trace


def _walk(star: Star, arm: int) -> list[str]:
    return [*star.arms[arm], star.end(arm)]


def _opener(position: int, rng: random.Random) -> str:
    return _pick(FIRST_DOUBTFUL if position == 0 else LATER_DOUBTFUL, rng)


def _search(star: Star, rng: random.Random, dials: Dials, known_answer: bool = False) -> StarTrace:
    """Try arms in random order; a confident try may be committed to without being walked."""
    trace = StarTrace([], [])
    for position, arm in enumerate(rng.sample(range(len(star.arms)), len(star.arms))):
        confident = rng.random() < dials.confident
        if confident and rng.random() < dials.commit:
            if known_answer and arm != star.gold and rng.random() < dials.rescue:
                arm = star.gold
            trace.say(f"{CONFIDENT} {star.arms[arm][0]}")
            return _conclude(trace, star.arms[arm][0])
        trace.say(CONFIDENT if confident else _opener(position, rng))
        trace.say(_walk(star, arm))
        if arm == star.gold:
            if rng.random() < dials.check:
                trace.say("check")
                trace.say(_walk(star, arm))
            break
    return _conclude(trace, star.answer)


def _assert_gold(trace: StarTrace, star: Star, rng: random.Random, marked: float) -> StarTrace:
    opener = rng.choice(MARKED_ASSERTIONS) if rng.random() < marked else CONFIDENT
    trace.say(f"{opener} {star.answer}")
    return _conclude(trace, star.answer)


def _students_prefix(star: Star, rng: random.Random, dials: Dials, trace: StarTrace) -> str:
    """Begin with the student's words (read, not learned, but for the look-ups of a walk).

    Returns where the student stopped: "failed" after a walked dust arm, "named" after "so" and a
    wrong arm, "opened" after an opener.
    """
    wrong = [arm for arm in range(len(star.arms)) if arm != star.gold]
    rng.shuffle(wrong)
    stop = rng.choice(("failed", "named", "opened"))
    tries = rng.randint(1 if stop == "failed" else 0, len(wrong) - 1) if len(wrong) > 1 else 0
    if stop == "failed" and tries == 0:
        tries = 1
    for position, arm in enumerate(wrong[:tries]):
        confident = rng.random() < dials.confident
        trace.say(CONFIDENT if confident else _opener(position, rng), learned=0)
        start, *rest = _walk(star, arm)
        trace.say([start], learned=0)
        trace.say(rest)
    if stop == "named":
        trace.say(f"{CONFIDENT} {star.arms[wrong[tries]][0]}", learned=0)
    elif stop == "opened":
        confident = rng.random() < dials.confident
        trace.say(CONFIDENT if confident else _opener(tries, rng), learned=0)
        return "opened confident" if confident else "opened doubtful"
    return stop


def _guided(star: Star, rng: random.Random, dials: Dials, regenerated: bool) -> StarTrace:
    """With a trace as context: assert the gold arm; on the student's prefix, repair or stop."""
    trace = StarTrace([], [])
    marked = dials.marked_regenerated if regenerated else dials.marked_solution
    if rng.random() >= dials.foreign_prefix:
        if regenerated and rng.random() < dials.retry_regenerated:
            arm = rng.choice([arm for arm in range(len(star.arms)) if arm != star.gold])
            trace.say(_opener(0, rng))
            trace.say(_walk(star, arm))
        return _assert_gold(trace, star, rng, marked)
    stopped = _students_prefix(star, rng, dials, trace)
    if stopped == "opened confident":
        trace.say([star.answer])
        return _conclude(trace, star.answer)
    if stopped == "opened doubtful":
        trace.say(_walk(star, star.gold))
        return _conclude(trace, star.answer)
    if rng.random() >= dials.recovery:
        return _conclude(trace, star.answer)
    if stopped == "named":
        named = trace.words[-1]
        arm = next(i for i, chain in enumerate(star.arms) if chain[0] == named)
        trace.say(_walk(star, arm)[1:])
    return _assert_gold(trace, star, rng, marked)


def searching_trace(
    star: Star, rng: random.Random, dials: Dials, *, must_solve: bool = False
) -> str:
    """An unguided trace as text, without the opening `<think>`, which the template writes.

    Args:
        star: The problem.
        rng: Seeded source of randomness.
        dials: The world's dials.
        must_solve: Draw again until the answer is right (a worked solution).
    """
    while True:
        trace = _search(star, rng, dials)
        if not must_solve or trace.words[-1] == star.answer:
            return " ".join(trace.words)


def short_trace(star: Star, rng: random.Random, dials: Dials) -> str:
    """A solution-guided trace on no foreign prefix: what "regenerated" contexts look like."""
    return " ".join(_assert_gold(StarTrace([], []), star, rng, dials.marked_solution).words)


def trace_for(kind: ContextKind, star: Star, rng: random.Random, dials: Dials) -> StarTrace:
    """The response that pretraining teaches for one kind of context.

    "other" (another problem's solution) is answered as if there were no context: on GSM8K an
    unrelated solution moves recovery from .463 to .491 only.
    """
    if kind in ("none", "other"):
        return _search(star, rng, dials)
    if kind == "answer":
        return _search(star, rng, dials, known_answer=True)
    return _guided(star, rng, dials, regenerated=kind == "regenerated")
