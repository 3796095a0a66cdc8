"""Written sums and differences of whole numbers: which numbers, and what comes out."""

from __future__ import annotations

import re

MOST_CHARACTERS = 200
_TERM = re.compile(r"\s*([+−-])?\s*(\d+)\s*")


def numbers_and_value(text: str) -> tuple[list[int], int]:
    """The numbers, sorted, and the value; what follows an equals sign must be the value.

    Raises:
        ValueError: It is no sum or difference of whole numbers, or a wrong equation.

    Example:
        >>> numbers_and_value("23 + 15") == numbers_and_value("15 + 23 = 38")
        True
    """
    left, equals, right = text.strip(" .$").partition("=")
    numbers: list[int] = []
    value = place = 0
    while place < len(left) and len(text) <= MOST_CHARACTERS:
        term = _TERM.match(left, place)
        if term is None or (numbers and term[1] is None):
            break
        place = term.end()
        numbers.append(int(term[2]))
        value += -numbers[-1] if term[1] in ("-", "−") else numbers[-1]
    if not numbers or place < len(left):
        raise ValueError(f"expected a sum or difference such as 15 + 23, found {text[:80]!r}")
    if equals and right.strip() != str(value):
        raise ValueError(f"expected {left.strip()[:80]} = {value}, found {right.strip()[:80]!r}")
    return sorted(numbers), value
