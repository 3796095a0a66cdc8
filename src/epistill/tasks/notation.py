r"""What models and people write, as LaTeX that can be parsed: the normalisation before comparing.

LaTeX without styles, spaces, currency signs, Unicode look-alikes, decimals with a period; apart
from it, the unit and the percent sign. `notation.json` has the tables. Nothing is evaluated here.
"""

from __future__ import annotations

import json
import unicodedata
from dataclasses import dataclass
from fractions import Fraction
from importlib import resources
from typing import Any

from epistill.tasks.linear_patterns import patterns, rewriter, utf8

_READ = patterns("notation")
_rewrite = rewriter("notation")

_TABLES: dict[str, Any] = json.loads(
    (resources.files("epistill.tasks") / "notation.json").read_text(encoding="utf-8")
)
_SYMBOLS = str.maketrans(_TABLES["symbols"])
NUMBERS: dict[str, str] = {word: str(value) for word, value in _TABLES["numbers"].items()}
_NOT_UNITS = frozenset(_TABLES["not_units"])
_UNITS: dict[str, str] = _TABLES["units"]
_STUCK = "LVWJ"  # units of one letter that also stand right behind a number
_MONEY = ("dollar", "cent", "yuan", "euro", "gbp")
_SCALES: dict[str, int] = _TABLES["scales"]
# Words and symbols without spaces and cases.
SYNONYMS: dict[str, str] = {
    "".join(name.casefold().split()): value for name, value in _TABLES["synonyms"].items()
}
_SHARES: dict[str, int] = _TABLES["shares"]
_MULTIPLES: dict[str, int] = _TABLES["multiples"]
_RAISED = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ"
_LOWERED = "₀₁₂₃₄₅₆₇₈₉₊₋ₙ"
_PLAIN = "0123456789+-n"
_NESTED = 20


@dataclass(frozen=True, slots=True)
class Quantity:
    """A value, its unit where the table knows one, and whether a percent sign stood behind it."""

    latex: str
    unit: str | None = None
    percent: bool = False


def tidy(text: str) -> str:
    r"""One spelling for each symbol: no styles, no dollars, plain digits and minus signs.

    Example:
        >>> tidy("$–３½$"), tidy(r"\boxed{\text{13}\,\mathrm{cm}}"), tidy("1\u202f234,5×10⁻³")
        ('-3\\frac{1}{2}', '13 cm', '1234,5\\times 10^{-3}')
    """
    text = utf8(text)
    text = _READ["moved"].sub(_moved, text)
    if not text.isascii():
        text = "".join(map(_plain_digit, text.translate(_SYMBOLS)))
        if _READ["han"].match(text.strip(" .*")):
            text = _READ["han_digits"].sub(_han_number, text)
    # Two backslashes part the rows of a matrix; elsewhere they are a slip.
    rows = "\x01" if "\\begin{" in text else "\\"
    text = _READ["row_gap"].sub("\x01", text.replace("\\\\", rows).replace("\n", " "))
    for _ in range(_NESTED):
        text, styles = _READ["wrapped"].subn(r" \1 ", text)
        text, old = _READ["old_style"].subn(r"\1", text)
        if not styles + old:
            break
    if system := _READ["system"].match(text):
        rows = _READ["chained"].sub(" =", system[1] or system[2])
        text = rows.strip(" \x01").replace("\x01", ",").replace("&", "")
    text = _rewrite(text).replace("\x01", "\\\\ ").lstrip(" ,;:*_").rstrip(" .,;:*_?\\")
    return _braced_roots(text).strip()


def exact_decimals(latex: str) -> str:
    r"""Decimals, repeating ones too, as fractions; 0.333... goes on as it began.

    Example:
        >>> exact_decimals(r"0.1\overline{6}"), exact_decimals(r"0.333\ldots")
        ('\\frac{1}{6}', '\\frac{1}{3}')
    """
    latex = _READ["repeating"].sub(_repeating, latex)
    latex = _READ["going_on"].sub(_going_on, latex)
    return _READ["decimal"].sub(lambda m: _fraction(Fraction(f"{m[1] or 0}.{m[2]}")), latex)


def quantity(latex: str) -> Quantity:
    r"""Part a tidy answer from its unit, percent sign and remark; *million* is a power of ten.

    Example:
        >>> quantity("18 dollars"), quantity("34 (units)").latex, quantity("1.5 million").latex
        (Quantity(latex='18', unit='dollar', percent=False), '34', '1.5\\times 10^{6}')
        >>> quantity("3 more than 4").unit is None, quantity("50%").percent
        (True, True)
    """
    if (twice := _READ["twice"].match(latex)) and spoken_number(twice[1]) == twice[2]:
        latex = twice[2]
    latex = spoken_number(latex) or latex
    if remark := _READ["remark"].match(latex):
        latex = remark[1]
    latex = _READ["mixed_sum"].sub(_mixed, latex)
    latex = _READ["mixed"].sub(r"\1\2\\frac{\3}{\4}\5", latex)
    latex = _READ["scaled"].sub(_scaled, latex).strip()
    unit = None
    found = _READ["unit"].match(_READ["over_unit"].sub(r"\1 \2/(\3)", latex))
    if found and _is_unit(found[3], bool(found[2])):
        unit, latex = _unit(found[3]), found[1].strip()
    percent = latex.endswith("%")
    latex = latex.removesuffix("%").strip(" ,;:")
    return Quantity(latex, unit or None, percent)


def _factors(unit: str) -> list[tuple[str, str, str]]:
    """What divides, or a word and its power, in order."""
    for name, symbol in (("\\cdot", " "), ("\\mu ", "µ"), ("\\mu", "µ"), ("\\Omega", "Ω")):
        unit = unit.replace(name, symbol)
    return [(m[1] or "", m[2] or "", m[3] or "1") for m in _READ["factor"].finditer(unit)]


def _unit(text: str) -> str:
    """Known units and their powers, whatever way they are written; money without its *per*."""
    powers: dict[str, int] = {}
    sign = 1
    for over, word, power in _factors(text):
        sign = -1 if over else sign
        for place, name in enumerate((_known(word) or "").split("/")):
            powers[name] = powers.get(name, 0) + sign * int(power) * (-1 if place else 1)
    powers.pop("", None)
    if money := next((name for name in powers if name in _MONEY), None):
        return money
    if first := next(iter(powers), None):
        cubic = _READ["cubed"].search(text)
        powers[first] *= 3 if cubic else 2 if _READ["squared"].search(text) else 1
    return " ".join(f"{n}^{p}" if p != 1 else n for n, p in sorted(powers.items()))


def _is_unit(text: str, apart: bool) -> bool:
    found = [word for _, word, _ in _factors(text) if word]
    if not found or len(found) > 6:
        return False
    if any(w.lower() in _NOT_UNITS and (i == 0 or w != "of") for i, w in enumerate(found)):
        return False
    if not found[0].isascii():
        return bool(_known(found[0])) or not _READ["no_unit"].search(text)
    if found[0].lower() in _TABLES["functions"]:
        return False
    if _READ["joined"].search(text) and not all(map(_known, found)):
        return False
    return (apart and len(found[0]) > 1) or bool(
        _known(found[0]) and (apart or len(found[0]) > 1 or found[0] in _STUCK)
    )


def _known(word: str) -> str | None:
    low = word.lower()
    spellings = word, low, low.removesuffix("s"), low.removesuffix("es")
    return next((_UNITS[spelled] for spelled in spellings if spelled in _UNITS), None)


def _moved(found: Any) -> str:
    raised = found[0][0] in _RAISED
    plain = "".join(_PLAIN[(_RAISED if raised else _LOWERED).index(c)] for c in found[0])
    return ("^{" if raised else "_{") + plain + "}"


def _han_number(found: Any) -> str:
    """三十六 as 36."""
    if found[0] == "百分之":
        return found[0]
    whole = part = digit = 0
    for character in found[0].replace("两", "二"):
        value = int(unicodedata.numeric(character))
        if value >= 10_000:
            whole, part, digit = (whole + part + digit) * value, 0, 0
        elif value >= 10:
            part, digit = part + (digit or 1) * value, 0
        else:
            digit = value
    return str(whole + part + digit)


def _plain_digit(character: str) -> str:
    """Digits of every script, vulgar fractions, full-width letters; what else there is stays."""
    if character.isascii():
        return character
    if (digit := unicodedata.decimal(character, None)) is not None:
        return str(digit)
    parts = unicodedata.normalize("NFKC", character).split("⁄")
    if len(parts) == 2 and all(parts):
        return f"\\frac{{{parts[0]}}}{{{parts[1]}}}"
    return parts[0] if "\uff00" <= character <= "\uffef" or "𝐀" <= character <= "𝟿" else character


def _braced_roots(text: str) -> str:
    r"""`\sqrt(..)` as `\sqrt{..}`, parentheses balanced."""
    place = len(text)
    for _ in range(_NESTED):
        place = text.rfind("\\sqrt(", 0, place)
        if place < 0:
            break
        depth = 0
        for end in range(place + 5, len(text)):
            depth += (text[end] == "(") - (text[end] == ")")
            if depth == 0:
                text = f"{text[: place + 5]}{{{text[place + 6 : end]}}}{text[end + 1 :]}"
                break
    return text


def _fraction(value: Fraction) -> str:
    numerator, denominator = value.as_integer_ratio()
    return str(numerator) if denominator == 1 else f"\\frac{{{numerator}}}{{{denominator}}}"


def _repeating(found: Any) -> str:
    period = found[6] or found[3] + (found[4] or "") + (found[5] or "")
    start = Fraction(f"{found[1] or 0}.{found[2] or 0}")
    return _fraction(start + Fraction(int(period), 10 ** len(found[2]) * (10 ** len(period) - 1)))


def _going_on(found: Any) -> str:
    whole, _, digits = found[1].partition(".")
    for length in range(1, 7):
        period = digits[-length:]
        if len(digits) >= 2 * length + (length == 1) and digits.endswith(period * 2):
            return exact_decimals(f"{whole}.{digits[:-length]}({period})")
    return found[0]


def _mixed(found: Any) -> str:
    part, whole = found[2] or found[4], found[3] or found[5]
    proper = len(part) <= len(whole) < 10 and int(part) < int(whole)
    return f"{found[1]}\\frac{{{part}}}{{{whole}}}" if proper else found[0]


def spoken_number(text: str) -> str | None:
    r"""A number in words, and the unit behind it, as LaTeX; None where it is none.

    Example:
        >>> [spoken_number(t) for t in ("two thirds", "Forty-two cups", "two and a half", "third")]
        ['\\frac{2}{3}', '42 cups', '\\frac{5}{2}', None]
    """
    if text in NUMBERS:
        return NUMBERS[text]
    words = text.lower().replace("-", " ").replace("per cent", "percent").split()
    if words[:1] in (["minus"], ["negative"]):
        size = spoken_number(" ".join(words[1:]))
        return None if size is None else f"-{size}"
    words = ["a", *words] if words[:1] == ["half"] else words
    if not 0 < len(words) <= 12:
        return None
    whole, part, share, read = 0, None, Fraction(0), 0
    for at, word in enumerate(words):
        ends = at + 1 == len(words)
        if word == "and" and at and not ends:
            if any(_share(later) for later in words[at + 1 :]):
                whole, part = whole + (part or 0), None
            continue
        if word in ("a", "an") and not ends and words[at + 1] in (*_SHARES, *_MULTIPLES):
            part = 1
        elif word in NUMBERS and _joins(int(NUMBERS[word]), part):
            part = (part or 0) + int(NUMBERS[word])
        elif word in ("hundred", "dozen") and part is not None and 0 < part < 100:
            part *= _MULTIPLES[word]
        elif word in _MULTIPLES and part:
            whole, part = whole + part * _MULTIPLES[word], None
        elif part and (parts := _share(word)):
            if (part == 1) != (word in _SHARES) or part >= parts:
                return None
            share, part = Fraction(part, parts), None
        else:
            break
        read = at + 1
    rest = " ".join(words[read:])
    if rest == "percent" and read:
        return f"{_fraction(whole + (part or 0) + share)}%"
    if not read or (rest and not (_is_unit(rest, True) and (rest in _UNITS or rest[-1] == "s"))):
        return None
    return f"{_fraction(whole + (part or 0) + share)} {rest}".strip()


def _share(word: str) -> int | None:
    return 2 if word == "halves" else _SHARES.get(word) or _SHARES.get(word.removesuffix("s"))


def _joins(number: int, before: int | None) -> bool:
    """Whether a number may be said behind another: five behind twenty, not behind ten."""
    if before is None:
        return True
    tens = before % 100
    return number > 0 and (tens == 0 or (number < 10 and tens >= 20 and tens % 10 == 0))


def _scaled(found: Any) -> str:
    if found[2] == "dozen":
        return f"{found[1]}\\cdot 12"
    rest = found[0][found.end(2) - found.start() :].removeprefix("s")
    return f"{found[1]}\\times 10^{{{_SCALES[found[2]]}}}{rest}"
