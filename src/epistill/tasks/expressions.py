r"""Whether two expressions are equal: math-verify, and a check of its yes.

Numbers must be equal exactly, or to six decimals where one is a decimal; expressions must agree at
points; equations be multiples of each other. A sum that is left to the reader is no value.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from epistill.tasks.linear_patterns import patterns
from epistill.tasks.notation import exact_decimals

_READ = patterns("expressions")
_DECIMALS, _SHARE = 5e-7, 1e-4  # of two numbers one of which is rounded: absolute, and relative
_NOISE = 1e-12  # of floating point, between two decimals that end
_DIGITS = 120  # of irrational numbers that are compared
_POINTS = ("0.7310585786", "2.2360679774", "1.6180339887")  # where expressions are compared


class NotAValue(ValueError):
    """The text holds nothing that could be compared."""


def same_expression(gold: str, answer: str) -> bool:
    r"""Whether two elements, without units and separators, have one value.

    Raises:
        NotAValue: The answer cannot be parsed.

    Example:
        >>> same_expression(r"\frac{1}{1500!}", r"\frac{1}{1502!}"), same_expression("7", "3+4")
        (False, False)
    """
    from math_verify import verify

    if "\\approx" in answer:
        return any(same_expression(gold, part) for part in answer.split("\\approx"))
    if _READ["digits_apart"].search(answer):
        raise NotAValue("digits with a space between them")
    if "\\ldots" in exact_decimals(gold + answer):
        return False  # equal text has been found equal before
    ours, theirs = (_parsed(exact_decimals(text)) for text in _cased(gold, answer))
    if theirs is None:
        raise NotAValue("the answer cannot be parsed")
    if ours is None:
        return False
    ours, theirs = _imaginary(ours, theirs), _imaginary(theirs, ours)
    if any((sign in answer) != (sign in gold) for sign in ("mod", "'")):
        return False  # which the parser passes over
    asked = _READ["operation"].search
    if _is_number(ours) and asked(answer) and not asked(gold):
        return False
    if _is_number(ours) and _is_number(theirs):
        left = _is_left_to_do(theirs) or _READ["chain"].search(answer)
        if left and not (_is_left_to_do(ours) or _READ["chain"].search(gold)):
            return False
        rounded = ("." in gold) != ("." in answer) or "." in gold
        return _same_number(ours, theirs, rounded=rounded)
    equations = _is_equation(ours), _is_equation(theirs)
    if any(equations):
        return all(equations) and _same_equation(ours, theirs)
    same = verify(ours, theirs, allow_set_relation_comp=True, timeout_seconds=None)
    return same and _agree_at_points(ours, theirs)


def _cased(gold: str, answer: str) -> list[str]:
    """Both with capitals that the parser, blind to case, cannot take for the small letters."""
    if all(map(_READ["constant"].search, (gold, answer))):
        gold, answer = (_READ["constant"].sub("+C", text) for text in (gold, answer))
    letters = {m[0] for m in _READ["name"].finditer(f"{gold} {answer}") if len(m[0]) == 1}
    twice = {c for c in letters if c.isupper() and c.lower() in letters}

    def apart(found: Any) -> str:
        return f"{found[0]}_{{9}}" if found[0] in twice else found[0]

    return [_READ["name"].sub(apart, text) if twice else text for text in (gold, answer)]


def same_region(gold: list[str], answer: list[str], *, both: tuple[bool, bool]) -> bool:
    r"""Whether inequalities and intervals are one set of numbers.

    Args:
        gold: The reference's; where not `both` of them hold, one or the other does.
        answer: The answer's.
        both: Whether *and* joins the reference's, and the answer's.

    Example:
        >>> region = [r"(-\infty,-2)\cup(2,\infty)"]
        >>> [same_region(region, ["x<-2", "x>2"], both=(False, both)) for both in (False, True)]
        [True, False]
    """
    import sympy

    regions: list[Any] = []
    for texts, all_hold in zip((gold, answer), both, strict=True):
        parsed = [_parsed(exact_decimals(text)) for text in texts]
        if not all(isinstance(one, sympy.Set | sympy.logic.boolalg.Boolean) for one in parsed):
            return False
        sets = [one if isinstance(one, sympy.Set) else one.as_set() for one in parsed]
        regions.append((sympy.Intersection if all_hold else sympy.Union)(*sets))
    return regions[0].symmetric_difference(regions[1]).is_empty is True


@lru_cache(maxsize=4096)
def _parsed(latex: str) -> Any:
    """math-verify's parser on one element; None where it fails."""
    from latex2sympy2_extended.latex2sympy2 import latex2sympy
    from math_verify.grader import should_treat_as_complex

    try:
        return latex2sympy(
            latex,
            is_real=not should_treat_as_complex(latex),
            convert_degrees=False,
            normalization_config=None,
        )
    except RecursionError:
        raise
    except Exception:  # noqa: BLE001 - a parser generated from a grammar raises anything
        return None


def _is_number(value: Any) -> bool:
    return bool(getattr(value, "is_number", False)) and getattr(value, "is_commutative", False)


def _imaginary(value: Any, other: Any) -> Any:
    r"""The letter i as the imaginary unit, where the other side is a number like `\sqrt{-25}`."""
    import sympy

    if not (_is_number(other) and other.is_real is False):
        return value
    letters = [s for s in getattr(value, "free_symbols", ()) if str(s) == "i"]
    return value.subs(dict.fromkeys(letters, sympy.I)) if letters else value


def _is_left_to_do(value: Any) -> bool:
    """A sum, or a product of numbers that are no prime factors: arithmetic, not its result."""
    import sympy

    for part in sympy.preorder_traversal(value):
        if isinstance(part, sympy.Sum | sympy.Product | sympy.Integral | sympy.Limit):
            return True
        if not isinstance(part, sympy.Add | sympy.Mul):
            continue
        known = [a for a in part.args if a.is_number and a.doit().is_rational]
        factors = [a for a in known if a.is_Rational or a.has(sympy.factorial)]
        composite = any(not (a.is_Integer and sympy.isprime(abs(a))) for a in factors)
        several = len(known) == len(part.args) and len(factors) > 1
        if len(known) > 1 if isinstance(part, sympy.Add) else several and composite:
            return True
    return False


def _same_number(ours: Any, theirs: Any, *, rounded: bool) -> bool:
    import sympy

    ours, theirs = ours.doit(), theirs.doit()
    undefined = (sympy.nan, sympy.zoo, sympy.oo, -sympy.oo)
    if ours in undefined or theirs in undefined:
        return ours == theirs
    if ours.is_Rational and theirs.is_Rational and not rounded:
        return ours == theirs
    difference = abs((ours - theirs).evalf(_DIGITS))
    size = max(abs(ours.evalf(_DIGITS)), abs(theirs.evalf(_DIGITS)))
    if rounded and not (_ends(ours) and _ends(theirs)):
        return bool(difference <= _DECIMALS and difference <= _SHARE * size)
    if rounded:
        return bool(difference <= _NOISE * size)
    return bool(size == 0 or difference <= size * sympy.Float(10) ** (20 - _DIGITS))


def _ends(value: Any) -> bool:
    """Whether its decimals do: the denominator divides a power of ten."""
    return bool(value.is_Rational) and 10 ** int(value.q).bit_length() % int(value.q) == 0


def _is_equation(value: Any) -> bool:
    import sympy

    return isinstance(value, sympy.Eq) and not isinstance(value.rhs, sympy.Set)


def _same_equation(ours: Any, theirs: Any) -> bool:
    """One is a constant multiple of the other."""
    import sympy

    left, right = (sympy.expand((e.lhs - e.rhs).doit()) for e in (ours, theirs))
    if left == 0 or right == 0:
        return left == right
    ratio = sympy.simplify(left / right)
    return bool(ratio.is_number and ratio.is_nonzero)


def _agree_at_points(ours: Any, theirs: Any) -> bool:
    """math-verify drops what is small; expressions with letters are compared at points too."""
    import sympy

    if not (isinstance(ours, sympy.Expr) and isinstance(theirs, sympy.Expr)):
        return True
    letters = sorted(ours.free_symbols | theirs.free_symbols, key=str)
    if not letters:
        return True
    for shift, _ in enumerate(_POINTS):
        values = [(s, sympy.Rational(_POINTS[(i + shift) % 3]) + i) for i, s in enumerate(letters)]
        left, right = (e.subs(values).doit().evalf(50) for e in (ours, theirs))
        if not (left.is_number and right.is_number):
            continue
        if abs(left - right) > sympy.Float("1e-9") * max(abs(left), abs(right)):
            return False
    return True
