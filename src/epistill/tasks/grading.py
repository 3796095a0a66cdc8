r"""Grading, by the grader a problem names; it never takes a run down.

Enters: problems and the answer part of responses. Leaves: a `Grade` each, in order. "exact",
"expression" and "choice" are decided here and now; "math" goes to worker processes with a limit of
processor time (sympy can hang inside one C call, where no signal reaches it); "code" runs in the
sandbox (`tasks/code.py`). Only an answer in a frame counts (`tasks/answers.py`), or a response that
is nothing but its answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace

from epistill.records import Grade, GraderName, GradeStatus
from epistill.tasks.answers import (
    Framed,
    choice_said,
    clean,
    complete,
    frames,
    frames_in,
    readable,
    short_line,
)
from epistill.tasks.clauses import letter_in
from epistill.tasks.code import grade_code
from epistill.tasks.equality import is_bare
from epistill.tasks.linear_patterns import patterns
from epistill.tasks.math_grading import Question, read_reference
from epistill.tasks.notation import tidy
from epistill.tasks.workers import Lost, Workers
from epistill.tasks.written_sums import numbers_and_value
from epistill.thinking import split_thinking

_READ = patterns("grading")

NO_ANSWER = "the response has no answer part"
NO_FRAME = r"no answer in a frame (\boxed{}, `Answer:`, ####, <answer>)"
CUT = "the response was cut before an answer was complete"
_QUOTES = " *_`\"'“”‘’"
SEARCHED = 2_000  # characters at the end of a response without a frame, where that is asked for


def grade_exact(answer: str, response: str, *, cut: bool = False) -> Grade:
    """Equal after collapsing white space and case; of a cut response, what was completed."""
    text = readable(response)
    lines = [m[1] for m in _READ["answer_line"].finditer(complete(text) if cut else text)]
    lines = [line for line in lines if not _READ["empty_line"].match(line)]
    stated = list(frames_in(text, cut=cut))
    found = [f for f in stated if f.frame != "label"]
    found += [Framed(lines[-1], "label")] if lines else stated
    found += [Framed(line, "whole")] if not cut and (line := short_line(text)) else []
    read = next(((f, text) for f in found if (text := clean(f.text))), None)
    if read is None:
        return _unreadable(response, cut)
    same = any(_same_text(read[1], gold) for gold in (answer, clean(answer) or answer))
    same = same or ("\\" in read[1] and _same_text(tidy(read[1]), tidy(answer)))
    status = GradeStatus.CORRECT if same else GradeStatus.WRONG
    return Grade(status, read[1], frame=read[0].frame)


def _same_text(left: str, right: str) -> bool:
    one, other = (" ".join(text.casefold().split()) for text in (left, right))
    return one == other or one.strip(_QUOTES) == other.strip(_QUOTES)


def grade_expression(answer: str, response: str, *, cut: bool = False) -> Grade:
    """The reference's numbers, each as often, in any order, with its value."""
    grade = grade_exact(answer, response, cut=cut)
    if grade.extracted is None:
        return grade
    try:
        same = numbers_and_value(grade.extracted) == numbers_and_value(answer)
    except ValueError as error:
        return Grade(GradeStatus.UNREADABLE, None, str(error))
    return replace(grade, status=GradeStatus.CORRECT if same else GradeStatus.WRONG)


def grade_choice(answer: str, response: str, *, cut: bool = False) -> Grade:
    r"""The letter of a multiple-choice answer.

    Example:
        >>> grade_choice("B", "<answer>\nB\n</answer>").status.value
        'correct'
        >>> grade_choice("B", "Answer: (C) 3.5").extracted
        'C'
    """
    text = readable(response)
    found = list(frames_in(text, cut=cut))
    text = text.strip()
    if not found and not cut and len(text) < SEARCHED:
        reply = short_line(text)
        if reply is not None and _READ["lone_letter"].match(reply):  # `A: C` is a reply, C
            found = [Framed(reply, "whole")]
        elif _READ["option_line"].match(text) and not _READ["remarked"].search(text):
            found = [Framed(text, "whole")]
    gold = letter_in(read_reference(answer)) or letter_in(read_reference(answer), several=True)
    several = gold is not None and len(gold) > 1
    for framed in found or ([] if cut else choice_said(text)):
        inner = [*frames(framed.text)] if framed.frame == "tag" else []
        for one in (*inner, framed):
            if letter := letter_in(one.text.split("\n")[0] or one.text, several=several):
                same = letter == (gold or answer.strip())
                status = GradeStatus.CORRECT if same else GradeStatus.WRONG
                return Grade(status, letter, frame=framed.frame)
    if found:
        reason = f"expected one letter, found {found[0].text.strip()[:80]!r}"
        return Grade(GradeStatus.UNREADABLE, None, reason)
    return _unreadable(response, cut)


def _question(answer: str, response: str, cut: bool, lenient: bool) -> Question:
    text = readable(response)
    found = tuple(frames_in(text, cut=cut))
    line = None
    if not found and not cut:
        line = short_line(text) or short_line(" ".join(text.split()))
    if line is not None and is_bare(line):
        found = (Framed(line, "whole"),)
    return Question(answer, found, response[-SEARCHED:] if lenient and not cut else "")


def _unreadable(response: str, cut: bool) -> Grade:
    reason = NO_ANSWER if not response.strip() else CUT if cut else NO_FRAME
    return Grade(GradeStatus.UNREADABLE, None, reason)


_IN_PROCESS = {"exact": grade_exact, "expression": grade_expression, "choice": grade_choice}


class Grader:
    """Grades batches; its worker processes start with the first math problem.

    Args:
        time_limit_s: Seconds of processor time of a math answer; at the limit the worker is killed
            and replaced, and the answer tried once more, alone.
        workers: Worker processes.
    """

    def __init__(self, *, time_limit_s: float = 5.0, workers: int = 2) -> None:
        self.workers = workers
        name = "epistill.tasks.math_grading:grade_asked"
        self._math = Workers(name, limit_s=time_limit_s, workers=workers)

    def __enter__(self) -> Grader:
        return self

    def __exit__(self, *_: object) -> None:
        self._math.close()

    def grade(
        self,
        items: Sequence[tuple[GraderName, str, str]],
        *,
        cut: Sequence[bool] | None = None,
        lenient: bool = False,
    ) -> list[Grade]:
        """Grade (grader, reference answer, answer part of the response) triples, in order.

        Args:
            items: What to grade; thinking that its tags mark gives no answer.
            cut: Whether each response ended at a limit; then an answer must have been complete.
            lenient: Search a response of "math" that has no frame; its grade says "search".
        """
        grades: dict[int, Grade] = {}
        asked: dict[int, tuple[str, Question, bool]] = {}
        programs: dict[int, tuple[str, str]] = {}
        cuts = [False] * len(items) if cut is None else cut
        for i, ((grader, answer, response), is_cut) in enumerate(zip(items, cuts, strict=True)):
            if grader == "code":
                programs[i] = answer, response
                continue
            # White space behind a cut answer says that it was complete.
            response = split_thinking(response).answer + response[len(response.rstrip()) :]
            if grader == "math":
                asked[i] = response, _question(answer, response, is_cut, lenient), is_cut
            else:
                grades[i] = _IN_PROCESS[grader](answer, response, cut=is_cut)
        verdicts = self._answers([question for _, question, _ in asked.values()])
        for (i, (response, question, is_cut)), grade in zip(asked.items(), verdicts, strict=True):
            nothing = grade.status is GradeStatus.UNREADABLE and not question.found
            grades[i] = _unreadable(response, is_cut) if nothing else grade
        if programs:
            with ThreadPoolExecutor(self.workers) as threads:  # each waits for its own process
                found = threads.map(lambda one: grade_code(*one), programs.values())
                grades.update(zip(programs, found, strict=True))
        return [grades[i] for i in range(len(items))]

    def _answers(self, asked: Sequence[Question]) -> list[Grade]:
        # Responses that give one answer to one problem get one verdict, whatever stands before it.
        keys = [replace(one, text="") if one.found else one for one in asked]
        distinct = dict(zip(keys, asked, strict=True))
        grades: dict[Question, Grade] = {}
        found = self._math.map([asdict(question) for question in distinct.values()])
        for key, grade in zip(distinct, found, strict=True):
            if isinstance(grade, Lost):
                status = GradeStatus.TIMEOUT if grade.timeout else GradeStatus.UNREADABLE
                grades[key] = Grade(status, None, f"grading failed: {grade.reason}")
            else:
                grades[key] = Grade(**{**grade, "status": GradeStatus(grade["status"])})
        return [grades[key] for key in keys]


def grade_responses(
    items: Sequence[tuple[GraderName, str, str]], *, time_limit_s: float = 5.0, workers: int = 2
) -> list[Grade]:
    r"""Grade (grader, reference, answer part of the response) triples, once; see `Grader`.

    Returns:
        A `Grade` for each item, in order. No answer raises an error.

    Example:
        >>> items = [("math", "1/2", r"so \boxed{0.5}"), ("exact", "up", "Answer: down")]
        >>> found = grade_responses(items)
        >>> [(one.status.value, one.extracted) for one in found]
        [('correct', '0.5'), ('wrong', 'down')]
    """
    with Grader(time_limit_s=time_limit_s, workers=workers) as grader:
        return grader.grade(items)
