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
    said = framed.text.strip()
    text = tidy(framed.text) if framed.frame == "boxed" else said
    if framed.frame in ("boxed", "tag", "hashes"):
        for inner in frames(text):
            yield from values_in(inner)
    judgement = _READ["judgement"].match(text)
    if judgement and not _READ["judgement"].match(judgement[2]):  # "yes, no, ..."
        yield judgement[1]
    if framed.frame != "label" and not _READ["sentence"].match(said):
        yield framed.text
    # A box, and a response that is nothing else, are taken as they are.
    if framed.frame not in ("label", "hashes"):
        yield from _stated(text)
    elif (sentence := _sentence(framed.text)) and (clause := _clause(sentence)):
        before, *bold = _READ["bold"].split(sentence)
        if len(bold) == 2 and not _READ["beside"].search(before):
            yield bold[0]
        if not _READ["value"].match(clause) or _READ["unfinished"].search(clause):
            *_, last = "", *_READ["conclusion"].split(sentence)[1:]
            if told := _clause(last):
                result = _READ["resulting"].match(told)
                told = result[1] if result else told
                yield from [told] if _READ["value"].match(told) else _stated(told)
        if not _READ["sentence"].match(clause):
            yield clause
        yield from _stated(clause)
        if (alone := _READ["alone"].match(clause)) and not _READ["beside"].search(alone[1]):
            yield alone[2]


def _stated(clause: str) -> Iterator[str]:
    """The value behind a verb."""
    stated = _READ["stated"].match(clause) if "boxed{" not in clause else None
    if stated and not _READ["of_another"].search(clause[: stated.start(1)]):
        yield stated[1]


def clause_of(text: str) -> str | None:
    """A sentence's first clause without fillers; None where it denies or asks what it says."""
    return _clause(_sentence(text))


def _sentence(text: str) -> str:
    """The first sentence; "" of a question after which the text goes on."""
    text = _READ["currency"].sub(r"\1", _undenied(text.strip(" \t\n*_`#\"'“")))
    text = _READ["hedged"].sub(r" or \1", text)
    end = _READ["end"].search(text, max(0, text.rfind("\\end{")))
    if end and end[0].startswith("..") and _READ["decimals"].search(text[: end.start()]):
        end = _READ["end"].search(text, end.end())  # 0.333...
    if end is None:
        return text
    asked = end[0][0] == "?" and text[end.end() :].strip()
    return "" if asked else text[: end.start()]


def _clause(text: str) -> str | None:
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


def letter_in(text: str, *, several: bool = False) -> str | None:
    r"""The letter of a multiple-choice answer, upper case; None for none or several.

    Where the question asks for `several`, all of them, in order.

    Example:
        >>> [letter_in(t) for t in ("(E) 14", "D, not A", "a", r"\Delta E", "Vitamin C", "A or B")]
        ['E', 'D', 'A', None, None, None]
    """
    text = _READ["hedged"].sub(r" or \1", _undenied(tidy(text)))
    text = _without_fillers(_READ["refuted"].sub("", text, 1))
    text = _READ["decoration"].sub("", _READ["option"].sub("", text, 1))
    if several and _READ["letters"].match(text):
        return "".join(sorted({letter for letter in text if letter.isupper()}))
    if whole := _READ["letter"].match(text):
        return whole[1].upper()
    if _READ["several"].match(text):
        return None
    if leading := _READ["leading"].match(text):
        return next(letter for letter in leading.groups() if letter).upper()
    pointed = {m[1] for m in _READ["pointed"].finditer(text)}
    return pointed.pop() if len(pointed) == 1 else None
