r"""Words that are forced into responses, or kept out of them: the grammar of the rules. Torch-free.

    force   [N*]WORDS@PLACE    at each such place, at most N times in a response
    block   TEXT[@PLACE]       TEXT is never written (there)

    PLACE   start              the response begins
            line               a line begins
            after:PATTERN      what is written so far ends in a match of this regular expression
            before:TOKEN       force only: instead of this token, when the model would write it
            until:PATTERN      block only: as long as nothing written before it matches

`<end>` stands for the model's end tokens, and `lexicon:NAME` in a block for every word of a lexicon
of `epistill.metrics`. Enters: a rule as text. Leaves: a `WordRule`; `rollouts.ruled_draws` applies
it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator

from epistill.errors import did_you_mean

END = "<end>"
_PLACES = {"force": "start, line, after:PATTERN or before:TOKEN",
           "block": "start, line, after:PATTERN or until:PATTERN"}  # fmt: skip
_RULE = re.compile(
    r"(?:(?P<most>[-+]?\d+)\*)?(?P<words>.+?)(?:@(?P<place>start|line|(?:after|before|until):.+))?",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class WordRule:
    """One rule.

    Attributes:
        words: What is forced or blocked.
        place: "" for everywhere.
        argument: Of after, before and until.
        most: Times per response; None for every time.
    """

    words: str
    place: Literal["", "start", "line", "after", "before", "until"]
    argument: str = ""
    most: int | None = None


def word_rule(kind: Literal["force", "inject", "block"], text: str) -> WordRule:
    """Read a rule; `inject` (`metrics.text_edits`) has the grammar of force.

    Raises:
        ValueError: It is none; the message says what was expected.

    Example:
        >>> word_rule("force", "2*Wait@before:</think>")
        WordRule(words='Wait', place='before', argument='</think>', most=2)
        >>> word_rule("block", "</think>@until:gold").argument
        'gold'
    """
    found = _RULE.fullmatch(text)
    blocks = kind == "block"
    expected = "TEXT or TEXT@PLACE" if blocks else "[N*]WORDS@PLACE"
    expected = f"expected {expected}, PLACE one of {_PLACES['block' if blocks else 'force']}"
    if found is None or not found["words"].strip():
        raise ValueError(f"{kind} {text!r} is no rule; {expected}")
    place, _, argument = (found["place"] or "").partition(":")
    here = ("start", "line", "after", "until" if blocks else "before")
    odd = None if place else re.search(r"@(\w+)(?::.*)?$", text, re.DOTALL)
    near = did_you_mean(odd[1], here) if odd else ""  # else a misspelt place would be text to block
    if near or (place not in here and not (blocks and not place)):
        raise ValueError(f"{kind} {text!r} has no place where {kind} can be; {expected}{near}")
    if blocks and found["most"] is not None:
        raise ValueError(f"block {text!r} counts {found['most']} times; {expected}")
    if place in ("after", "until"):
        try:
            pattern = re.compile(argument)
        except re.error as error:
            raise ValueError(
                f"{kind} {text!r}: {argument!r} is no regular expression ({error}); "
                "write \\ before a sign that is meant as it is"
            ) from error
        if place == "until" and pattern.search(""):
            raise ValueError(
                f"block {text!r}: {argument!r} matches where nothing is written yet, so nothing "
                "would ever be blocked; expected a pattern of something that is written"
            )
    most = None if found["most"] is None else int(found["most"])
    if most is not None and most < 1:
        raise ValueError(f"{kind} {text!r} is for {most} times; expected 1* or more, or no number")
    return WordRule(found["words"], place, argument, most)  # pyright: ignore[reportArgumentType]


def _read(kind: Literal["force", "block"]) -> AfterValidator:
    return AfterValidator(lambda text: text if word_rule(kind, text) else "")


# A rule as text, in a record of settings.
Force = Annotated[str, _read("force")]
Block = Annotated[str, _read("block")]
