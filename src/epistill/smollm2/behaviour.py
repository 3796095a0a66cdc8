"""What a response to a number-pairs question does, beside its words.

Enters: a response with its question's answer. Leaves: what was tried, and whether the answer had
been calculated before it was given. Read by one pattern from the thinking: "a + b = c".
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from epistill.tasks.grading import grade_expression
from epistill.tasks.written_sums import numbers_and_value
from epistill.thinking import split_thinking

_CALCULATION = re.compile(r"(\d+) ([+-]) (\d+) = (\d+)")
_HASTY = re.compile(r"\bmust be\b")


@dataclass(frozen=True, slots=True)
class Behaviour:
    """Of one response.

    Attributes:
        tried: Different pairs calculated before the answer.
        repeated: Calculations of a pair that had been calculated before (checks included).
        calculations_right: Share of calculations that are right; None without any.
        verified: The pair that is answered had been calculated, with the result asked for; None
            where no pair is answered.
        hasty: It says "must be".
    """

    tried: int
    repeated: int
    calculations_right: float | None
    verified: bool | None
    hasty: bool


def behaviour_of(answer: str, response: str) -> Behaviour:
    r"""Read one response whose thinking the prompt has opened.

    Args:
        answer: The right pair, as an expression.
        response: Its text.

    Example:
        >>> text = "Maybe 4 + 16 = 20. Too small.\nIt must be 15 + 4.\n</think>\nAnswer: 15 + 4"
        >>> behaviour_of("4 + 19", text).verified
        False
    """
    parts = split_thinking(response, opened_in_prompt=True)
    said = _CALCULATION.findall(parts.thinking)
    values = [int(a) + int(b) if sign == "+" else int(a) - int(b) for a, sign, b, _ in said]
    right = [int(c) == value for (*_, c), value in zip(said, values, strict=True)]
    pairs = [tuple(sorted((int(a), int(b)))) for a, _, b, _ in said]
    target = numbers_and_value(answer)[1]
    extracted = grade_expression(answer, parts.answer).extracted
    verified = None
    if extracted is not None:
        given = tuple(numbers_and_value(extracted)[0])
        verified = any(
            pair == given and int(c) == target for pair, (*_, c) in zip(pairs, said, strict=True)
        )
    return Behaviour(
        tried=len(set(pairs)),
        repeated=len(pairs) - len(set(pairs)),
        calculations_right=sum(right) / len(right) if right else None,
        verified=verified,
        hasty=_HASTY.search(parts.thinking) is not None,
    )


def summarise_behaviour(rows: Sequence[Behaviour]) -> dict[str, float | None]:
    """Mean of each number over the responses that have it; None where none has."""
    found: dict[str, float | None] = {}
    for name in Behaviour.__slots__:
        values = [float(v) for row in rows if (v := asdict(row)[name]) is not None]
        found[name] = sum(values) / len(values) if values else None
    return found
