"""Grading, by the grader a problem names, with a hard time limit; it never takes a run down.

Enters: problems and the answer part of responses. Leaves: a `Grade` each, in order. "exact" and
"choice" are decided here and now; "math" goes to math-verify in worker processes that are killed
at the time limit (sympy can hang inside one C call, where no signal reaches it); "code" runs in the
sandbox (`tasks/code.py`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from types import TracebackType
from typing import TYPE_CHECKING

from epistill.records import Grade, GraderName, GradeStatus
from epistill.tasks.answers import extract_answer
from epistill.tasks.code import grade_code

if TYPE_CHECKING:
    from pebble import ProcessPool

NO_ANSWER = "the response has no answer part"
UNREAD = "no answer was found in the response"
# Two words and a number: "the value is 5", but not "5 apples", "sqrt 5" or "x in [0, 1]".
_SENTENCE = re.compile(r"(?<![\\A-Za-z])[A-Za-z]+\s+(?!(?:in|or|and)\b)[A-Za-z]{2,}\s+\W{0,3}\d")
_LEADING_LETTER = re.compile(r"\(([A-Z])\)|([A-Z])(?:[:.)]|$)")
_LETTER = re.compile(r"(?<![A-Za-z0-9'])[A-Z](?![A-Za-z0-9'])")


def grade_exact(answer: str, response: str) -> Grade:
    """Equal after collapsing white space and case."""
    extracted = extract_answer(response)
    if extracted is None:
        return _unreadable(response)
    same = " ".join(extracted.casefold().split()) == " ".join(answer.casefold().split())
    return Grade(GradeStatus.CORRECT if same else GradeStatus.WRONG, extracted)


def grade_choice(answer: str, response: str) -> Grade:
    r"""The letter of a multiple-choice answer.

    Example:
        >>> grade_choice("B", "<answer>\nB\n</answer>").status.value
        'correct'
        >>> grade_choice("B", "Answer: (C) 3.5").extracted
        'C'
    """
    extracted = extract_answer(response)
    if extracted is None:
        return _unreadable(response)
    leading = _LEADING_LETTER.match(extracted)
    letters = {leading[1] or leading[2]} if leading else set(_LETTER.findall(extracted))
    if len(letters) != 1:
        reason = f"expected one letter, found {sorted(letters)} in {extracted[:80]!r}"
        return Grade(GradeStatus.UNREADABLE, None, reason)
    letter = letters.pop()
    same = letter == answer.strip().strip("()").upper()
    return Grade(GradeStatus.CORRECT if same else GradeStatus.WRONG, letter)


def grade_math(answer: str, response: str) -> Grade:
    """Mathematical equality by math-verify. Runs in a worker process; see `Grader`."""
    from math_verify import parse, verify

    extracted = extract_answer(response)
    # A frame we recognise is handed over boxed, so that math-verify reads exactly that; without
    # one, or where it holds a sentence, math-verify searches the text itself.
    if extracted is None:
        text = response[-2000:]
    elif _SENTENCE.search(extracted):
        text, extracted = extracted, None
    else:
        text = _boxed(extracted)
    found = parse(text, parsing_timeout=None)  # pyright: ignore[reportArgumentType]
    if not found:
        return _unreadable(response)
    gold = parse(_boxed(answer), parsing_timeout=None)  # pyright: ignore[reportArgumentType]
    same = verify(gold, found, timeout_seconds=None)
    shown = extracted if extracted is not None else str(found[-1])
    return Grade(GradeStatus.CORRECT if same else GradeStatus.WRONG, shown[:200])


def _boxed(text: str) -> str:
    return "\\boxed{" + text + "}"


def _unreadable(response: str) -> Grade:
    return Grade(GradeStatus.UNREADABLE, None, UNREAD if response.strip() else NO_ANSWER)


_IN_PROCESS = {"exact": grade_exact, "choice": grade_choice}


def _grade_math_quietly(answer: str, response: str) -> Grade:
    import logging

    logging.getLogger("math_verify").setLevel(logging.ERROR)
    try:
        return grade_math(answer, response)
    except RecursionError:
        return Grade(GradeStatus.UNREADABLE, None, "the answer is nested too deeply to parse")


class Grader:
    """Grades batches; its worker processes start with the first math problem.

    Args:
        time_limit_s: Per response; the worker is killed and replaced.
        workers: Worker processes.

    Use as a context manager, so that workers end with it.
    """

    def __init__(self, *, time_limit_s: float = 5.0, workers: int = 2) -> None:
        self.time_limit_s = time_limit_s
        self.workers = workers
        self._pool: ProcessPool | None = None

    def __enter__(self) -> Grader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._pool is not None:
            self._pool.stop()
            self._pool.join()
            self._pool = None

    def grade(self, items: Sequence[tuple[GraderName, str, str]]) -> list[Grade]:
        """Grade (grader, reference answer, answer part of the response) triples, in order."""
        grades = {
            i: _IN_PROCESS[grader](answer, response)
            for i, (grader, answer, response) in enumerate(items)
            if grader in _IN_PROCESS
        }
        for name, grade_all in (("math", self._grade_in_pool), ("code", self._grade_programs)):
            chosen = [i for i, (grader, _, _) in enumerate(items) if grader == name]
            if chosen:
                pairs = [items[i][1:] for i in chosen]
                grades.update(zip(chosen, grade_all(pairs), strict=True))
        return [grades[i] for i in range(len(items))]

    def _grade_programs(self, pairs: Sequence[tuple[str, str]]) -> list[Grade]:
        with ThreadPoolExecutor(self.workers) as threads:  # each waits for a process of its own
            return list(threads.map(lambda pair: grade_code(*pair), pairs))

    def _grade_in_pool(self, pairs: Sequence[tuple[str, str]]) -> list[Grade]:
        from pebble import ProcessExpired, ProcessPool

        if self._pool is None:
            import multiprocessing

            # Importing sympy takes longer than grading; it must not count against a response, nor
            # against the next one where a worker was killed and another takes its place.
            self._pool = ProcessPool(
                max_workers=self.workers,
                context=multiprocessing.get_context("spawn"),
                initializer=_warm_up,
            )
        # Responses that give one answer to one problem get one verdict, whatever stands before it.
        read = [extract_answer(response) for _, response in pairs]
        keys = [
            (answer, response if found is None else found, found is None)
            for (answer, response), found in zip(pairs, read, strict=True)
        ]
        futures = {
            key: self._pool.schedule(_grade_math_quietly, args=pair, timeout=self.time_limit_s)
            for key, pair in dict(zip(keys, pairs, strict=True)).items()
        }
        verdicts: dict[tuple[str, str, bool], Grade] = {}
        for key, future in futures.items():
            try:
                verdicts[key] = future.result()
            except FutureTimeout:
                reason = f"grading took longer than {self.time_limit_s:g} s"
                verdicts[key] = Grade(GradeStatus.TIMEOUT, None, reason)
            except (ProcessExpired, MemoryError, ValueError, ArithmeticError, TypeError) as error:
                reason = f"grading failed: {type(error).__name__}"
                verdicts[key] = Grade(GradeStatus.UNREADABLE, None, reason)
        return [verdicts[key] for key in keys]


def grade_responses(
    items: Sequence[tuple[GraderName, str, str]], *, time_limit_s: float = 5.0, workers: int = 2
) -> list[Grade]:
    r"""Grade responses, once; for batch after batch keep a `Grader`, whose workers start once.

    Args:
        items: (grader, reference answer, answer part of the response) triples. "math" is
            mathematical equality by math-verify, in worker processes (a script that asks for it
            needs the usual `if __name__ == "__main__":`); "choice" a letter; "exact" equal text.
        time_limit_s: Per response of "math", after which its status is "timeout".
        workers: Processes.

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


def _warm_up() -> None:
    import math_verify  # pyright: ignore[reportUnusedImport]

    math_verify.verify(math_verify.parse("$1$"), math_verify.parse("$1$"))
