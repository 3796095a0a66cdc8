"""The verdict of "math": the first frame that holds a value decides. Runs in worker processes.

`tasks/clauses.py` reads a frame, `tasks/equality.py` compares.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from epistill.errors import EpistillError
from epistill.records import Grade, GradeStatus
from epistill.tasks.answers import Framed, frames
from epistill.tasks.clauses import clause_of, values_in
from epistill.tasks.equality import NotAValue, equal, is_prose
from epistill.tasks.linear_patterns import patterns
from epistill.tasks.notation import tidy

_READ = patterns("math_grading")
# Of an object, the member that is the answer.
_MEMBERS = ("answer", "final_answer", "target", "ground_truth", "expected_answer", "value", "gold")
MAX_SHOWN = 200
UNREADABLE = "no frame of the response holds a value"


@dataclass(frozen=True, slots=True)
class Question:
    """What a worker is asked: the reference, frames and all, and the response's frames.

    `text` is searched by math-verify where no frame holds a value; "" where that is not wanted.
    """

    reference: str
    found: tuple[Framed, ...]
    text: str = ""


def grade_asked(asked: Mapping[str, Any]) -> dict[str, Any]:
    """`grade_question` for a worker: a question and its grade as JSON."""
    found = tuple(Framed(**one) for one in asked["found"])
    return asdict(grade_question(Question(asked["reference"], found, asked["text"])))


def grade_question(question: Question) -> Grade:
    """Compare the first frame that holds a value with the reference."""
    reference = _one_value(read_reference(question.reference))
    worded = is_prose(tidy(reference))
    for framed, value in _values(question):
        if framed.frame in ("label", "whole", "hashes") and is_prose(tidy(value)) and not worded:
            continue  # "the answer is obvious"
        try:
            same = equal(reference, _one_value(value))
            if same and framed.frame != "boxed" and _READ["product"].match(tidy(value)):
                same = tidy(value) == tidy(reference)  # a question may have asked for the product
        except NotAValue:
            continue
        status = GradeStatus.CORRECT if same else GradeStatus.WRONG
        return Grade(status, value.strip()[:MAX_SHOWN], frame=framed.frame)
    return Grade(GradeStatus.UNREADABLE, None, UNREADABLE)


def _values(question: Question) -> Iterator[tuple[Framed, str]]:
    for framed in question.found:
        for value in values_in(framed):
            yield framed, value
    if question.text:
        from math_verify import parse

        found = parse(question.text, parsing_timeout=None)  # pyright: ignore[reportArgumentType]
        for text in reversed([one for one in found if isinstance(one, str)]):
            yield Framed(text, "search"), text


def read_reference(reference: str) -> str:
    r"""A reference without its frame: it is read as a response is.

    Example:
        >>> [read_reference(r) for r in (r"It is \boxed{34}.", "The answer is 34", "#### 34")]
        ['34', '34', '34']
    """
    framed = next(frames(reference), None)
    if framed is None:
        return reference
    return framed.text if framed.frame != "label" else clause_of(framed.text) or reference


def _one_value(text: str) -> str:
    """*3/4 or .75* is one value, said twice."""
    first, *others = tidy(text).split(" or ") if "or" in text else (text,)
    try:
        return first if others and all(equal(first, one) for one in others) else text
    except NotAValue:
        return text


def reference_text(value: Any) -> str:
    r"""A reference answer as text, out of the lists and objects that files keep it in.

    Raises:
        EpistillError: It is ambiguous: several answers, a truth value, not a number.

    Example:
        >>> reference_text('["34"]'), reference_text({"target": 34.0}), reference_text("[0, 1]")
        ('34', '34.0', '[0, 1]')
    """
    if isinstance(value, str):
        text = value.strip()
        if _READ["quoted"].match(text) and (listed := _literal(text)):
            return reference_text(listed)
        several = _READ["several"].match(text) and not _READ["grouped"].match(text)
        if several or text.lower() in ("nan", "null", "n/a"):
            raise EpistillError("the reference is ambiguous: several values, or none")
        return value
    if isinstance(value, Mapping):
        named = [value[n] for n in _MEMBERS if value.get(n) is not None]
        value = named[:1] or list(value.values())
    if isinstance(value, list | tuple):
        distinct = list(dict.fromkeys(map(reference_text, value)))
        if len(distinct) != 1:
            raise EpistillError(f"the reference is ambiguous: a list of {len(distinct)} answers")
        return distinct[0]
    if isinstance(value, bool) or value is None or value != value:
        raise EpistillError(f"the reference is ambiguous: {value}, which is no answer")
    return str(value)


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


def warm_up() -> None:
    """Import what takes longer than grading; it must not count against an answer."""
    import logging

    logging.disable(logging.ERROR)
    equal("1/3", "0.25")
    equal("x", "x+1")
