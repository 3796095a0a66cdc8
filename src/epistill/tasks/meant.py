"""Whether a response means what a frame of it says: itself, of every case, once, and to the end.

No denial, sample, hearsay or supposition stands before the frame, nothing behind takes it back,
and no other value is offered beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from epistill.tasks.linear_patterns import patterns

_READ = patterns("meant")

FrameName = Literal["boxed", "tag", "hashes", "label", "whole", "search"]
MAX_FRAMES = 8  # of one response, from its end
MAX_LINE = 2_000  # characters of a label's line
MAX_BEFORE = 200  # characters of what stands before a frame
MAX_BEHIND = 400
MAX_VERB = 40  # of these, what a verb that governs a box takes
MAX_CLAUSES = 6  # behind a frame, in which *that is wrong* is said of it
_SIGNS = " \t\r\n$*_#`.:|\\()[]{}\"',;?!"  # beside a label and its value


@dataclass(frozen=True, slots=True)
class Framed:
    """A text in which a response states its answer, without its frame; "whole" is all of it."""

    text: str
    frame: FrameName


Place = tuple[int, int, Framed]  # where a frame begins and ends; a label's value is behind it


def meant(
    text: str, strong: Sequence[Place], weak: Sequence[Place]
) -> tuple[list[Place], list[Place]]:
    """The frames of both kinds that are meant, the last first; what is taken back ends both."""
    kept, taken_back = _kept(text, strong, 0)
    said, _ = _kept(text, weak, taken_back)
    if kept and said and said[0][0] > kept[0][1] and _differ(kept[0][2].text, said[0][2].text):
        return [said[0], *kept], said[1:]
    return kept, said


def _differ(one: str, other: str) -> bool:
    """Whether both say one number, and not the same."""
    first, then = (_READ["number"].findall(text) for text in (one, other))
    return len(first) == len(then) == 1 and first != then


def _kept(text: str, places: Sequence[Place], start: int) -> tuple[list[Place], int]:
    """Frames from the last one to the one that is taken back, and where that one ends."""
    kept: list[Place] = []
    until = len(text)
    for place in _joined(text, sorted((p for p in places if p[1] > start), key=lambda p: p[1])):
        if _taken_back(text, place, until):
            return kept, place[1]
        if kept and _one_of_two_cases(text, place, kept[-1]):
            return kept[:-1], place[1]
        if _said_of_all(text, place):
            kept.append(place)
        if len(kept) == MAX_FRAMES:
            break
        until = place[0]
    return kept, start


def _joined(text: str, places: Sequence[Place]) -> list[Place]:
    """The last place first; like frames with nothing between them are one that offers both."""
    joined: list[Place] = []
    for start, end, framed in reversed(places):
        value = framed.text.strip(_SIGNS)
        if joined and framed.frame == joined[-1][2].frame in ("label", "hashes"):
            behind, last, then = joined[-1]
            between = text[end:behind].replace(framed.text, "", 1).strip(_SIGNS)
            label = text[text.rfind("\n", 0, start) + 1 : start].strip(_SIGNS)
            if (
                between == (label if framed.frame == "label" else "")
                and value != then.text.strip(_SIGNS)
                and _READ["valued"].match(value)
            ):
                then = Framed(f"{value} or {then.text.strip(_SIGNS)}", then.frame)
                joined[-1] = start, last, then
                continue
        joined.append((start, end, framed))
    return joined


def _said_of_all(text: str, place: Place) -> bool:
    """Whether the response says it, itself and of every case: no denial, no sample, no hearsay."""
    start, end, framed = place
    before = text[max(0, start - MAX_BEFORE) : start]
    if (
        _READ["of_others"].search(before)
        or _READ["shown"].search(before)
        or (_READ["told"].search(before) and _READ["told"].search(clause_before(before)))
        or (framed.frame == "boxed" and _READ["mentioned"].search(before[-MAX_VERB:]))
    ):
        return False
    sentence = _sentence_before(before)
    if _READ["believed"].search(sentence) or (
        not _READ["concluding"].search(sentence)
        and (
            _READ["supposed"].search(sentence)
            or _is_attributed(sentence)
            or (
                framed.frame == "boxed"
                and _READ["recorded"].search(sentence)
                and _READ["bare_end"].match(text[end : end + MAX_VERB])
            )
        )
    ):
        return False
    said = before
    if framed.frame == "boxed" and (named := _READ["named"].match(sentence)):
        said = named[1]  # "the answer is \boxed{..}"
    if framed.frame == "label" or said is not before:
        link = text[start : end + MAX_BEFORE // 4] if said is before else before[len(said) :]
        if (
            _READ["not_one"].search(said_last := clause_before(said))
            or _READ["reported"].search(said_last)
            or _READ["of_another"].match(link)
            or (
                _READ["would_be"].search(link)
                and _READ["conditional"].search(_sentence_before(said))
            )
            or (_READ["label"].match(link) and not _own_subject(link, said_last, said))
        ):
            return False
    if framed.frame == "label" and (
        _READ["quoted"].search(before)
        or _READ["compared"].match(behind := text[end : end + MAX_BEFORE])
        or _READ["of_whom"].match(behind)
    ):
        return False
    inside = framed.frame in ("label", "hashes")
    behind = framed.text if inside else text[end : line_end(text, end)]
    if not behind.strip(_SIGNS):
        return True
    rest = _READ["sentence_end"].split(behind, 1)[0]
    if _READ["would"].match(rest) and _READ["conditional"].search(sentence):
        return False
    return not (
        _is_attributed(rest) or _READ["conditioned"].search(rest) or _READ["believed"].search(rest)
    )


def _is_attributed(said: str) -> bool:
    """*According to* somebody, and no work of the response's own."""
    source = _READ["attributed"].search(said) if "ccording" in said else None
    return source is not None and not _READ["own_work"].match(source[1] or "")


def _own_subject(link: str, clause: str, before: str) -> bool:
    """Whether *the answer is* heads a clause of the response's own, and is no part of another."""
    part = _READ["part_of"].search(clause)
    if _READ["nobody"].search(clause) or (part and not part[1]):
        return False
    if _READ["would_have"].search(link) or (
        _READ["was"].match(link) and _READ["narrated"].match(_sentence_before(before))
    ):
        return False
    return bool(_READ["led"].search(clause))


def _taken_back(text: str, place: Place, until: int) -> bool:
    """Whether what follows a frame says that its value is wrong, or not the response's own."""
    _, end, framed = place
    behind = text[end : min(until, end + MAX_BEHIND)]
    if not any(map(str.isalpha, behind)):
        return False
    value = _READ["remark_end"].split(framed.text, 1)[0].strip(_SIGNS)
    for i, clause in enumerate(_READ["remark_end"].split(behind, MAX_CLAUSES)[:MAX_CLAUSES]):
        if i == 0 and framed.frame in ("label", "hashes"):
            continue  # the value
        words = [word.strip(_SIGNS) for word in clause.split()]
        if value in words:
            said = " ".join("■" if word == value else word for word in words)
            if _READ["refuted"].search(said) or _READ["untrue"].match(said.rpartition("■ ")[2]):
                return True
        if _is_withdrawal(clause) or (i == 0 and _is_withdrawal(f"it {' '.join(words)}")):
            return True
        if i and any(map(str.isdecimal, clause)) and clause.strip(_SIGNS) not in value:
            break  # it speaks of another value
    if _READ["retracted"].search(behind):
        return True
    inside = framed.frame in ("label", "hashes")
    after = behind.replace(value, "", 1) if inside else behind
    return len(behind) < MAX_BEHIND and _corrected(value, after)


def _corrected(value: str, behind: str) -> bool:
    """*Wait, .. so it is 9* at the end, behind another number that is not named again."""
    if _READ["doubting"].search(behind):
        return True
    values = _READ["number"].findall(value)
    if len(values) == 1 and (found := _READ["instead"].search(behind)) and found[1] != values[0]:
        return True
    opened = _READ["interrupted"].search(behind)
    rest = behind[opened.end() :] if opened else _READ["first"].sub("", behind, 1)
    if not _READ["restated" if opened else "concluded"].search(rest):
        return False
    return (
        len(values) == 1
        and values[0] not in _READ["number"].findall(rest)
        and not _READ["content"].search(rest)
    )


def _is_withdrawal(clause: str) -> bool:
    """*But that is wrong*, *this was in the prompt*, *sorry, I was mistaken*."""
    said = _READ["opening"].sub("", clause, 1)
    if _READ["taken_back"].match(said) or _READ["taken_back_elsewhere"].match(said):
        return True
    subjects = {m.end() for name in ("about_it", "it") if (m := _READ[name].match(said))}
    rests = [said[end:] for end in subjects]
    return any(_READ["untrue"].match(r) or _READ["of_others_after"].match(r) for r in rests)


def _one_of_two_cases(text: str, place: Place, then: Place) -> bool:
    """Whether two frames with different values are the results of two ways to read or to reckon."""
    values = place[2].text.strip(_SIGNS), then[2].text.strip(_SIGNS)
    return values[0] != values[1] and all(
        _READ["case"].search(text[max(0, start - MAX_BEFORE) : start])
        for start, *_ in (place, then)
    )


def line_end(text: str, start: int) -> int:
    """End of the line, or of what is read of it."""
    limit = min(len(text), start + MAX_LINE)
    end = text.find("\n", start, limit)
    return limit if end < 0 else end


def clause_before(before: str) -> str:
    """The last clause of what stands before a frame, on its line."""
    return _READ["clause_end"].split(before.rsplit("\n", 1)[-1])[-1]


def _sentence_before(before: str) -> str:
    return _READ["sentence_end"].split(before.rsplit("\n", 1)[-1])[-1]
