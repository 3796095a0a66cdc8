r"""Whether an answer has the value of the reference: math-verify, and what it gets wrong.

Texts are tidied (`tasks/notation.py`), parted from units, split into the elements of lists, tuples,
sets and intervals, and compared element by element (`tasks/expressions.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache
from itertools import product
from typing import Any

from epistill.tasks.expressions import NotAValue, same_expression, same_region
from epistill.tasks.linear_patterns import patterns
from epistill.tasks.notation import (
    NUMBERS,
    SYNONYMS,
    Quantity,
    exact_decimals,
    quantity,
    spoken_number,
    tidy,
)

_READ = patterns("equality")

MAX_LENGTH = 2_000
MAX_ELEMENTS = 100
_PARENTHESES = {"(": ")", "[": "]", "\\{": "\\}", "\\langle": "\\rangle"}
_OPENING = (*_PARENTHESES, "{", "\\begin{")
_ALIKE = ({"degree", "°C"}, {"degree", "°F"}, {"lb", "gbp"})  # units of one name
_PREFIXES = {"b": "2", "o": "8", "x": "16"}
_CLOSING = (*_PARENTHESES.values(), "}", "\\end{")


def equal(reference: str, answer: str) -> bool:
    r"""Whether an answer has the reference's value, both without their frames.

    Raises:
        NotAValue: The answer cannot be read.

    Example:
        >>> equal("1/2", ".5"), equal("73", "46 + 27"), equal("5 m", "5 cm")
        (True, False, False)
    """
    if len(answer) > MAX_LENGTH or not (tidied := tidy(answer)):
        raise NotAValue("the answer is empty or too long")
    gold = tidy(reference)
    if _plain(gold) == _plain(tidied):
        return True
    return any(_equal(g, a) for g, a in product(_readings(gold), _readings(tidied)))


@lru_cache(maxsize=65_536)
def value_key(answer: str) -> str:
    r"""A spelling that answers of one value share: rational numbers by value, others as tidy text.

    Example:
        >>> [value_key(text) for text in ("1/2", ".5", r"x = \frac12", "2 1/2", r"\sqrt{2}")]
        ['1/2', '1/2', '1/2', '5/2', '\\sqrt{2}']
    """
    read = quantity(_readings(tidy(answer[:MAX_LENGTH]))[0])
    named = _READ["defined"].match(read.latex)
    latex = _plain(exact_decimals(named[2] if named else read.latex))
    found = _READ["rational"].match(_READ["over"].sub(r"\\frac{\1}{\2}", latex))
    if found and latex.strip("+-") and len(latex) < MAX_ELEMENTS and found[4] != "0":
        part = Fraction(int(found[3] or 0), int(found[4] or 1))
        latex = str((int(found[2] or 0) + part) * (-1 if found[1] == "-" else 1))
    return latex + "%" * read.percent


def _plain(text: str) -> str:
    return _READ["apart"].sub(r"\1\2", text).replace("\\times", "\\cdot")


def _readings(text: str) -> list[str]:
    """What a text may say: 1,234 is a number, and a list."""
    if _READ["spaced"].match(text):
        return [text.replace(" ", "")]
    if _READ["european"].match(text):
        return [text.replace(".", "").replace(",", ".")]
    named = _READ["named"].match(text)
    if named and not _READ["judged"].search(text):
        return [text, *_readings(named[1])]
    if optioned := _READ["optioned"].match(text):
        return [text, *_readings(optioned[1])]
    if short := _READ["magnitude"].match(text):
        power = {"k": 3, "K": 3, "M": 6, "B": 9}[short[2]]
        return [text, f"{short[1].replace(',', '')}\\times 10^{{{power}}}"]
    if found := _READ["builder"].match(text):
        freed = _READ["names"].sub(lambda m: "x" if m[0] == found[1] else m[0], found[2])
        return [found[2], freed]
    if point := _READ["point"].match(text):
        chosen = _READ["choose"].sub(r"\\binom{\1}{\2}", text)
        return [text, *_readings(point[1]), chosen]
    bare = quantity(text).latex
    return [text.replace(",", ""), text] if _READ["grouped"].match(bare) else [text]


def _equal(gold: str, answer: str) -> bool:
    if _words(gold) is not None or (_words(answer) or "").replace(" ", "") in SYNONYMS:
        return _same_words(gold, answer)
    one, other = _ratio(gold), _ratio(answer)
    if one and other and (one, other) != (gold, answer):
        return _same_shape(one, other)
    if _READ["clock"].match(gold) or _READ["clock"].match(answer):
        ours, theirs = _clock(gold), _clock(answer)
        return ours == theirs or f"{ours}am" == theirs or f"{ours}pm" == theirs
    if _digits_in_base(gold) or _digits_in_base(answer):
        return _same_base(gold, answer)
    ours, theirs = quantity(gold), quantity(answer)
    units = {ours.unit, theirs.unit} - {None}
    if len(units) == 2 and units not in _ALIKE:
        return False
    if ours.percent or theirs.percent:
        return _same_percent(ours, theirs)
    letters = _READ["command"].sub("", ours.latex)
    if theirs.unit and len(theirs.unit) == 1 and theirs.unit in letters and not ours.unit:
        theirs = Quantity(answer)  # the reference has a variable of that name
    return _same_shape(
        _undefined(ours.latex, theirs.latex, computed=False),
        _undefined(theirs.latex, ours.latex, computed=True),
    )


def _words(text: str) -> str | None:
    """The words of an answer in prose, and what has a synonym; None for mathematics."""
    for words in (text.casefold(), _READ["article"].sub("", text.casefold().strip(" .()"))):
        if words.replace(" ", "") in SYNONYMS:
            return words
    return words if is_prose(text) and not any(c in text for c in "\\=^_<>+*/{[|,") else None


def is_prose(text: str) -> bool:
    """Words, and no number."""
    said = any(c.isdecimal() for c in text) or spoken_number(text.strip(" .")) is not None
    return not said and bool(_READ["prose"].search(_READ["command"].sub("", text)))


def is_bare(text: str) -> bool:
    """A value and its unit, or words without a number; no sentence around a number."""
    if _READ["introduced"].match(text):
        return False
    latex = quantity(tidy(text)).latex
    return is_prose(latex) or not _READ["word"].search(_READ["command"].sub("", latex))


def _same_words(gold: str, answer: str) -> bool:
    one, other = ((_words(t) or t.casefold()).replace(" ", "") for t in (gold, answer))
    return SYNONYMS.get(one, one.replace("-", "")) == SYNONYMS.get(other, other.replace("-", ""))


def _ratio(text: str) -> str | None:
    """3:4 as the fraction that it is, and a fraction; 3:45 is a time."""
    if found := _READ["ratio"].match(text):
        timely = len(found[2]) == 2 and found[2] < "60"
        return None if timely else f"\\frac{{{found[1]}}}{{{found[2]}}}"
    return text if "/" in text or "frac" in text else None


def _clock(text: str) -> str:
    text = text.lower().replace(" ", "").replace(".", "")
    return text.lstrip("0") if not text.startswith("0:") else text


def _digits_in_base(text: str) -> tuple[str, str] | None:
    found = _READ["based"].match(text) or _READ["base_words"].match(text)
    if found is None:
        return None
    digits, base = found.groups()[:2] if found[1] else (found[3][1:], _PREFIXES[found[3][0]])
    return digits.upper(), NUMBERS.get(base, base)


def _same_base(gold: str, answer: str) -> bool:
    ours, theirs = _digits_in_base(gold), _digits_in_base(answer)
    if ours and theirs:
        return ours == theirs
    # One of them leaves the base to the question; a reference does only where it looks like it.
    digits, bare = (ours or theirs or ("", ""))[0], (answer if ours else gold)
    stated = ours or _READ["undecimal"].match(gold)
    return bool(stated) and digits == bare.replace(" ", "").upper()


def _same_percent(ours: Quantity, theirs: Quantity) -> bool:
    if ours.percent == theirs.percent:
        return _same_shape(ours.latex, theirs.latex)
    share, other = (ours, theirs) if ours.percent else (theirs, ours)
    part = f"\\frac{{{share.latex}}}{{100}}"
    if _same_shape(*((part, other.latex) if ours.percent else (other.latex, part))):
        return True
    # "What percent": the number alone; but .5 is not meant by .5 %, which is .005.
    whole = _same_shape(ours.latex, theirs.latex)
    return whole and (ours.percent or not _below_one(theirs.latex))


def _below_one(latex: str) -> bool:
    try:
        return abs(Fraction(value_key(latex))) < 1
    except ValueError:
        return False


def _undefined(text: str, other: str, *, computed: bool) -> str:
    """The value behind `x =`; of an answer also behind `2 + 3 =`, and before `= x`."""
    theirs = _READ["defined"].match(other)
    if theirs is None and _READ["equals"].search(other):
        return text  # an equation is compared as one
    found = _READ["defined"].match(text)
    if found and not _READ["equals"].search(found[2]):
        names = {_plain(f[1]) for f in (found, theirs) if f}
        same_name = len(names) == 1 or ("y" in names and any(map(_READ["function"].match, names)))
        return found[2] if same_name else text
    found = _READ["computed"].match(text)
    if found and theirs is None:
        left = _READ["subscript"].sub("", found[1]).replace(" degrees", "")
        named = _READ["letter"].search(left)
        if not named and _READ["number"].match(left):
            if not _READ["number"].match(found[2]):
                return left  # 12 = 3 * 4, 5 = x
            return left if _plain(left) == _plain(found[2]) else text  # 72 = 73
        if not named or (computed and not _READ["unknown"].search(left)):
            return found[2]
    return text


def _depths(text: str) -> Iterator[tuple[Any, int]]:
    """Parentheses and separators, with the depth of parentheses behind each."""
    depth = 0
    for token in _READ["token"].finditer(text):
        depth += (token[0] in _OPENING) - (token[0] in _CLOSING)
        yield token, depth


def _split(text: str) -> list[str]:
    r"""Elements between the separators that stand in no parentheses; `\pm 7` is two."""
    start, elements = 0, list[str]()
    for token, depth in _depths(text):
        if depth == 0 and token[0] in (",", ";", " and ", " or "):
            elements.append(text[start : token.start()])
            start = token.end()
    elements.append(text[start:])
    return [
        element.strip().replace("\\pm", sign)
        for element in elements
        if element.strip()
        for sign in (("+", "-") if "\\pm" in element else ("",))
    ]


def _enclosed(text: str) -> tuple[str, str, str] | None:
    """(opening, content, closing) where one pair holds everything."""
    opening = next((o for o in _PARENTHESES if text.startswith(o)), None)
    closing = next((c for c in _PARENTHESES.values() if text.endswith(c)), None)
    if opening is None or closing is None or len(text) < len(opening) + len(closing):
        return None
    if any(depth == 0 and token.end() < len(text) for token, depth in _depths(text)):
        return None
    return opening, text[len(opening) : len(text) - len(closing)].strip(), closing


def _same_shape(gold: str, answer: str) -> bool:
    """Compare lists, tuples, sets and intervals by their elements; else one element."""
    ours, theirs = _enclosed(gold), _enclosed(answer)
    alone = _split(theirs[1]) if theirs and theirs[0] == "\\{" else []
    if len(alone) == 1 and not gold.startswith("\\{"):
        return _same_shape(gold, alone[0])
    if ours and theirs:
        left, right = _split(ours[1]), _split(theirs[1])
        same = {"\\langle": "(", "\\rangle": ")"}
        if [same.get(x, x) for x in ours[::2]] != [same.get(x, x) for x in theirs[::2]]:
            return False
        return _same_elements(left, right, ordered=ours[0] != "\\{")
    if ours and (len(left := _split(ours[1])) == 1 or ours[0] in ("\\{", "(")):
        found = [(_READ["defined"].match(e), e) for e in _split(answer)]
        right = [name[2] if name else element for name, element in found]
        if len(left) == len(right) and not any(map(_READ["relation"].search, right)):
            return _same_elements(left, right, ordered=ours[0] != "\\{")
    elif theirs and (len(right := _split(theirs[1])) == 1 or len(_split(gold)) > 1):
        if theirs[0] == "[" and len(right) == 2:
            return False  # an interval
        left = _split(gold)
        return _same_elements(left, right, ordered=theirs[0] != "\\{")
    several = ours and _split(ours[1])[1:], theirs and _split(theirs[1])[1:]
    if any(several) and not _READ["relation"].search(gold + answer) and "cup" not in gold + answer:
        return False
    listed = theirs[1] if theirs and theirs[0] == "\\{" else answer
    if "\\cup" in gold and all(map(_enclosed, parts := _split(listed))) and parts[1:]:
        return same_expression(gold, "\\cup ".join(parts))
    left, right = _named(_split(gold)), _named(_split(answer))
    if (len(left) > 1 or len(right) > 1) and _READ["order"].search(gold + answer):
        both = " and " in gold, " and " in answer
        if len(left) == len(right) and _same_elements(left, right, ordered=False):
            return not (any(both) and any(" or " in text for text in (gold, answer)))
        return same_region(left, right, both=both)
    if len(left) > 1 or len(right) > 1:
        return _same_elements(left, right, ordered=False)
    return same_expression(gold, answer)


def _named(elements: list[str]) -> list[str]:
    """`n = 3, 4, 5` without its name."""
    found = _READ["defined"].match(elements[0]) if elements[1:] else None
    if found is None or any("=" in element for element in elements[1:]):
        return elements
    return [found[2], *elements[1:]]


def _same_elements(gold: list[str], answer: list[str], *, ordered: bool) -> bool:
    if len(gold) != len(answer) or len(gold) > MAX_ELEMENTS:
        return False
    if ordered:
        return all(_same_part(g, a) for g, a in zip(gold, answer, strict=True))
    left = list(answer)
    for one in gold:
        place = next((i for i, other in enumerate(left) if _same_part(one, other)), None)
        if place is None:
            return False
        del left[place]
    return True


def _same_part(gold: str, answer: str) -> bool:
    if gold.startswith("\\{") != answer.startswith("\\{"):
        return False  # {2} is no element of {2}
    return _plain(gold) == _plain(answer) or _equal(gold.strip(), answer.strip())
