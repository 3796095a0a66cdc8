r"""What a frame's text says: the value, or the letter, without the sentence around it.

*81 (see step 2)* is 81, *82, not 81* is 82, *not 81* nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

from epistill.tasks.answers import Framed, frames
from epistill.tasks.linear_patterns import patterns
from epistill.tasks.notation import tidy

_READ = patterns("clauses")


def values_in(framed: Framed) -> Iterator[str]:
    r"""Texts that may be the value, the likeliest first.

    Example:
        >>> from epistill.tasks.answers import Framed
        >>> list(values_in(Framed(" $x = 81$ cm, since $80+1=81$.", "label")))
        ['$x = 81$ cm']
        >>> [list(values_in(Framed(t, "label"))) for t in ("not 82 but 81.", "not 81")]
        [['81'], []]
    """
    text = tidy(framed.text) if framed.frame == "boxed" else framed.text
    if framed.frame in ("boxed", "tag", "hashes"):
        for inner in frames(text):
            yield from values_in(inner)
    if framed.frame != "label" and not _READ["sentence"].match(framed.text):
        yield framed.text
    # A box, and a response that is nothing else, are taken as they are.
    clause = clause_of(framed.text) if framed.frame in ("label", "hashes") else text
    if clause and "boxed{" not in clause:
        if framed.frame in ("label", "hashes") and not _READ["sentence"].match(clause):
            yield clause
        if stated := _READ["stated"].match(clause):
            yield stated[1]


def clause_of(text: str) -> str | None:
    """A sentence's first clause without fillers; None where it denies what it says."""
    text = _READ["currency"].sub(r"\1", _undenied(text.strip(" \t\n*_`#\"'“")))
    if (end := _READ["end"].search(text)) is not None:
        text = text[: end.start()]
    remark = _READ["remark"].search(text, 1) if text else None
    if remark is not None:
        text = text[: remark.start()]
    return _without_fillers(text).strip(" *_`,;:\"'”") or None


def _undenied(text: str) -> str:
    """What stands behind *not .. but*; nothing where the text only denies."""
    if not _READ["denied"].match(text):
        return text
    found = _READ["not_but"].match(text)
    return found[1] if found else ""


def _without_fillers(text: str) -> str:
    for _ in range(4):
        text = _READ["filler"].sub("", text, 1)
    return text


def letter_in(text: str) -> str | None:
    r"""The letter of a multiple-choice answer, upper case; None for none or several.

    Example:
        >>> [letter_in(t) for t in ("(E) 14", "D, not A", "a", r"\Delta E", "Vitamin C", "A or B")]
        ['E', 'D', 'A', None, None, None]
    """
    text = _READ["option"].sub("", _without_fillers(_undenied(tidy(text))), 1)
    if whole := _READ["letter"].match(text):
        return whole[1].upper()
    if _READ["several"].match(text):
        return None
    if leading := _READ["leading"].match(text):
        return next(letter for letter in leading.groups() if letter).upper()
    pointed = {m[1] for m in _READ["pointed"].finditer(text)}
    return pointed.pop() if len(pointed) == 1 else None
