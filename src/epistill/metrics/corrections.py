r"""Self-correction episodes: a marker after which something was taken back.

An episode is a marker followed, within WINDOW words of the same text, by evidence:

    retraction      a phrase of the retraction lists begins ("that's wrong", "我错了")
    changed result  `left = number` stands where the same left side had another number when it was
                    last written in this text, before the marker

Evidence belongs to the nearest marker before it, so "wait, hmm, that's wrong" is one episode.

A left side is what stands before the equals sign without a break: spaces beside an operator do not
break it, other spaces do ("so 3 * 4 = 12" has the left side "3*4"), and it is ASCII. The number
must be the whole right side: "x = 3 + 4" and "x = 5y" state no number. Numbers are compared as
written, thousands commas dropped: 0.5 and 1/2 differ. A variable that is meant to change (a new
case, a loop) is counted too.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from epistill.metrics.scan import Hits
from epistill.metrics.words import Buffer, Ints

WINDOW = 30
MAX_SIDE = 48  # characters of a left side, digits of a number
_PRIME = np.uint64(0x100000001B3)  # FNV's: sides are compared by a 64-bit hash


def _table(characters: str) -> NDArray[np.bool_]:
    return np.isin(np.arange(256), np.frombuffer(characters.encode(), np.uint8))


_SPACE = _table(" &")  # & aligns equations in LaTeX
_DIGIT = _table("0123456789")
_OPERATOR = _table("+-*/^=")
# What ends a left side: control characters, delimiters, everything beyond ASCII.
_BREAK = (np.arange(256) < 32) | _table("=,;:$<>\"'`?!|") | (np.arange(256) >= 128)
# What makes a number only the beginning of a right side. 0xC2, 0xC3 and 0xE2 begin ·, ×, ÷, √, °.
_GOES_ON = _table("+-*/^(_\\") | np.isin(np.arange(256), [0xC2, 0xC3, 0xE2])
_LETTER = _table("abcdefghijklmnopqrstuvwxyz")
_DOLLAR, _MINUS, _INNER, _CLOSES = _table("$"), _table("-"), _table(".,/"), _table(")],;\\")


def correction_evidence(buffer: Buffer, retractions: Ints) -> tuple[Ints, Ints]:
    """Positions of all evidence, and what a marker must stand after to open the episode.

    That is the earlier equation for a changed result, and -1 (any marker before it will do) for a
    retraction, given by where its phrase begins.
    """
    earlier, later = changed_results(buffer)
    no_side = np.full(retractions.size, -1)
    return np.concatenate([retractions, later]), np.concatenate([no_side, earlier])


def correction_episodes(
    buffer: Buffer, markers: Hits, evidence: tuple[Ints, Ints]
) -> NDArray[np.bool_]:
    """[markers] Which markers of one lexicon, in order, open a self-correction episode."""
    position, after = evidence
    nearest = np.searchsorted(markers.stops, position, side="right") - 1
    position, after, nearest = (a[nearest >= 0] for a in (position, after, nearest))
    same_text = buffer.text_of(position) == markers.texts[nearest]
    words = buffer.words_before(position) - buffer.words_before(markers.stops[nearest])
    opens = np.zeros(markers.starts.size, bool)
    opens[nearest[same_text & (markers.starts[nearest] > after) & (words <= WINDOW)]] = True
    return opens


def changed_results(buffer: Buffer) -> tuple[Ints, Ints]:
    """The equals signs of equations whose left side had another number before in the same text.

    [changes] positions of the earlier equation and of the later one.
    """
    codes = np.frombuffer(buffer.data, np.uint8)
    equals = np.flatnonzero(codes == ord("="))
    number, is_number = _numbers(codes, equals)
    equals, number = equals[is_number], number[is_number]
    side = _left_sides(codes, equals)
    written = side != 0
    equals, number, side = equals[written], number[written], side[written]
    key = side ^ (buffer.text_of(equals).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    order = np.argsort(key, kind="stable")  # stable: positions stay in order within a key
    first, second = order[:-1], order[1:]
    changed = (key[first] == key[second]) & (number[first] != number[second])
    return equals[first[changed]], equals[second[changed]]


def _left_sides(codes: NDArray[np.uint8], equals: Ints) -> NDArray[np.uint64]:
    """Hash of each left side, read backwards; 0 where there is none."""
    side = np.zeros(equals.size, np.uint64)
    active, at, hashed = np.arange(equals.size), equals - 1, side
    beside_operator = np.ones(equals.size, bool)  # the equals sign is one
    for _ in range(MAX_SIDE):
        code = codes.take(at)
        space = _SPACE.take(code)
        on = ~_BREAK.take(code)
        spaces = np.flatnonzero(space)
        if spaces.size:
            on[spaces] = beside_operator[spaces] | _OPERATOR[codes[at[spaces] - 1]]
        if not on.all():
            side[active] = hashed
            kept = np.flatnonzero(on)
            active, at, code, space, hashed, beside_operator = (
                values.take(kept) for values in (active, at, code, space, hashed, beside_operator)
            )
        if not active.size:
            break
        hashed = np.where(space, hashed, (hashed + code + np.uint64(1)) * _PRIME)
        beside_operator = np.where(space, beside_operator, _OPERATOR.take(code))
        at = at - 1
    side[active] = hashed
    return side


def _numbers(
    codes: NDArray[np.uint8], equals: Ints
) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    """Hash of the number after each equals sign, and whether it is the whole right side."""
    at = equals + 1
    for skipped in (_SPACE, _DOLLAR, _MINUS):
        sign = codes.take(at)
        at = at + skipped.take(sign)
    negative = sign == ord("-")
    number = np.where(negative, np.uint64(7), np.uint64(0))
    active = np.flatnonzero(_DIGIT.take(codes.take(at)))
    is_number = np.zeros(equals.size, bool)
    for _ in range(MAX_SIDE):
        here = at.take(active)
        code = codes.take(here)
        on = _DIGIT.take(code)
        on |= _INNER.take(code) & _DIGIT.take(codes.take(here + 1))
        is_number[active] = ~on
        kept = np.flatnonzero(on)
        active, code = active.take(kept), code.take(kept)
        if not active.size:
            break
        read = np.flatnonzero(code != ord(","))
        digits = active.take(read)
        number[digits] = (number.take(digits) + code.take(read) + np.uint64(1)) * _PRIME
        at[active] += 1
    rest = at + _SPACE[codes[at]]
    closes = (codes[rest] == ord("\\")) & _CLOSES[codes[rest + 1]]
    goes_on = _LETTER[codes[at]] | (_GOES_ON[codes[rest]] & ~closes)
    return number, is_number & ~goes_on
