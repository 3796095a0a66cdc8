"""What a response shows of one answer; and the readers of the worlds whose traces have a grammar.

Enters: reasoning and the final answer. Leaves: a `Verification`, exact, or None where the text is
not of that world. `verification` asks these before it looks at the words.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

from epistill.metrics.lexicon import PAPER, load_lexicon

# `tasks.star_traces`: names of nodes, how an arm ends.
_NAME = re.compile(r"\d\d")
_ENDS = {"gold", "dust"}
# `tasks.pair_traces`: a pair with what was said of it; bounded, so that any text is read linearly.
_PAIR = re.compile(r"(\d{1,9}) {0,9}([+-]) {0,9}(\d{1,9})")
_TRIED = re.compile(_PAIR.pattern + r" {0,9}= {0,9}\d{1,9}(?P<missed>\. Too (?:small|big)\b)?")
_CHECK = re.compile(r"^Check\b", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Verification:
    """What a response shows of one answer.

    Attributes:
        stated: Where in the reasoning the answer first stands; None where it does not.
        verified: It comes out again before the reasoning ends.
        candidates: Different answers that the reasoning names ("the answer is", a box), the final
            one among them where it is stated; in a world with a reader its arms, or pairs.
        recheck: Where in the reasoning, once the answer is stated, checking begins; None where none
            does.
    """

    stated: int | None
    verified: bool
    candidates: int
    recheck: int | None = None

    def after(self, characters: int) -> Verification:
        """The same, where so much stands before it."""
        stated, recheck = (
            None if place is None else place + characters for place in (self.stated, self.recheck)
        )
        return replace(self, stated=stated, recheck=recheck)


def star_walks(reasoning: str, answer: str) -> Verification | None:
    """Star search: a walk is the names of an arm and then gold or dust; gold verifies its arm."""
    if not _NAME.fullmatch(answer) or not reasoning.strip():
        return None
    names, found, recheck, head = dict[str, int](), False, None, None
    for word in re.finditer(r"\S+", reasoning):
        if _NAME.fullmatch(word[0]):
            if head is None:
                head = word[0]
                names.setdefault(head, word.start())
                recheck = word.start() if found and recheck is None else recheck
        elif word[0] not in _star_words():
            return None
        else:
            recheck = word.start() if found and recheck is None else recheck
            found = found or (word[0] == "gold" and head == answer)
            head = None
    return Verification(names.get(answer), found, len(names), recheck)


@cache
def _star_words() -> frozenset[str]:
    return frozenset({*_ENDS, "so", "try", *load_lexicon(PAPER).words})


def tried_pairs(reasoning: str, answer: str) -> Verification | None:
    """Number pairs: a pair is verified where it was calculated and not said to miss.

    Whether the calculation is right nobody looks: what came out is what the response believed.

    Example:
        >>> tried_pairs("Maybe 4 + 16 = 20. Too small. So 4 + 19 = 23. Yes.", "19 + 4")
        Verification(stated=33, verified=True, candidates=2, recheck=None)
    """
    given = _PAIR.fullmatch(answer.partition("=")[0].strip())
    if given is None or (given[2] == "-" and int(given[1]) < int(given[3])):
        return None  # 3 - 5 is a range
    tried = list(_TRIED.finditer(reasoning))
    if not tried:
        return None
    named = dict[frozenset[int], int]()
    for one in _PAIR.finditer(reasoning):
        if one[2] == given[2]:
            named.setdefault(_numbers(one), one.start())
    found = [m for m in tried if _numbers(m) == _numbers(given) and m["missed"] is None]
    again = _CHECK.search(reasoning, found[0].end()) if found else None
    recheck = again and again.start()
    return Verification(named.get(_numbers(given)), bool(found), len(named), recheck)


def _numbers(pair: re.Match[str]) -> frozenset[int]:
    return frozenset((int(pair[1]), int(pair[3])))


READERS: tuple[Callable[[str, str], Verification | None], ...] = (star_walks, tried_pairs)
