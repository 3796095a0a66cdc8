r"""This package's graders as reward functions of TRL, verl and verifiers (prime-rl's environments).

Enters: completions as text or as lists of messages, and reference answers. Leaves: 1.0 where the
answer is right, else 0.0. The grader is chosen by the answer (a letter: choice, else math), or
named: TRL's column `grader`, verl's `extra_info`, verifiers' `info`. Grading happens in worker
processes with a limit of processor time, one call after the other.

    GRPOTrainer(reward_funcs=correct_answers, ...)              # TRL; a column `answer`
    reward.custom_reward_function.path=pkg://epistill.integrations.rewards  # verl; compute_score
    vf.Rubric(funcs=[correct_answer])                           # verifiers
"""

from __future__ import annotations

import atexit
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import zip_longest
from typing import Any, cast, get_args

from epistill.errors import EpistillError, did_you_mean
from epistill.metrics.epistemic import total_markers
from epistill.metrics.loops import is_looping
from epistill.records import GraderName
from epistill.tasks.files import answer_of_solution, grader_of, reference_answer
from epistill.tasks.grading import Grader

_ONE_AT_A_TIME = threading.Lock()  # verl calls from several threads


@cache
def _grader() -> Grader:
    grader = Grader()
    atexit.register(grader.__exit__)
    return grader


def correct_answers(
    completions: Sequence[Any],
    answer: Sequence[str | None] = (),
    grader: Sequence[str | None] = (),
    solution: Sequence[str | None] = (),
    **_: Any,
) -> list[float | None]:
    r"""As TRL calls it: a batch, with the data set's columns. None where a row has no answer.

    Without an `answer` the column `solution` is read, as TRL's own `accuracy_reward` does.

    Example:
        >>> correct_answers([r"\boxed{1/2}", r"\boxed{3}"], ["0.5", "#### 4"])
        [1.0, 0.0]
    """
    asked: dict[int, tuple[GraderName, str, str]] = {}
    rows = zip_longest(completions, answer, solution, grader)
    for place, (completion, given, worked, name) in enumerate(rows):
        reference = reference_answer({"question": "", "answer": given})[0]
        reference = answer_of_solution(worked or "") if reference is None else reference
        if reference is not None:
            chosen = _known(name or grader_of([reference]))
            asked[place] = chosen, reference, completion_text(completion)
    with _ONE_AT_A_TIME:
        grades = dict(zip(asked, _grader().grade(list(asked.values())), strict=True))
    return [grades[i].score if i in grades else None for i in range(len(completions))]


def correct_answer(
    completion: Any, answer: str, info: Mapping[str, Any] | None = None, **_: Any
) -> float:
    """As verifiers calls it: one completion, a list of messages."""
    (score,) = correct_answers([completion], [answer], [(info or {}).get("grader")])
    if score is None:
        raise EpistillError("a problem has no `answer`; expected one to grade against")
    return score


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: Mapping[str, Any] | None = None,
    **_: Any,
) -> dict[str, float]:
    """As verl calls it. It reports every number beside `score` in validation and rollout files.

    Returns:
        `score` and `acc`, 1.0 or 0.0; `markers`, epistemic markers of the response; `looping`,
        1.0 where its end only repeats itself.
    """
    score = correct_answer(solution_str, ground_truth, extra_info)
    markers, looping = float(total_markers(solution_str)), float(is_looping(solution_str))
    return {"score": score, "acc": score, "markers": markers, "looping": looping}


def completion_text(completion: Any) -> str:
    """Text of a completion that is a text or a list of messages."""
    if isinstance(completion, str):
        return completion
    return "\n".join(str(message.get("content") or "") for message in completion)


def _known(name: str) -> GraderName:
    if name not in (names := get_args(GraderName)):
        near = did_you_mean(name, names)
        raise EpistillError(f"grader is {name!r}; expected one of {', '.join(names)}{near}")
    return cast("GraderName", name)
