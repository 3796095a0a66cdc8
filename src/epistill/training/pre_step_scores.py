"""What must be known about the sampled tokens before the step: teachers' log-probs and entropies.

Enters: rows and a method. Leaves: `PreStepScores` per row. Only what the method needs is computed,
one no-gradient pass per view; most methods need none of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from epistill.axes import Method
from epistill.rollouts.engine import TokenScores
from epistill.rollouts.model import LanguageModel
from epistill.rollouts.scoring import score_completions
from epistill.teacher.weights import LiveTeacher, Teacher
from epistill.training_rows import PreStepScores, TrainingRow

Score = Callable[[LanguageModel, Sequence[tuple[int, Sequence[int]]]], list[TokenScores]]


def gather_scores(
    rows: Sequence[TrainingRow],
    method: Method,
    student: LanguageModel,
    teacher: Teacher | None,
    base: Teacher | None,
    *,
    temperature: float,
    microbatch_tokens: int,
) -> list[PreStepScores]:
    """Score the rows under every view the method needs.

    Args:
        rows: All rows of the rollout batch.
        method: Where on the five axes.
        student: For its own entropies where the sampler did not record them.
        teacher: The method's teacher.
        base: The weights at the start, for a reference term.
        temperature, microbatch_tokens: As in the step.
    """

    def score(
        model: LanguageModel, views: Sequence[tuple[int, Sequence[int]]]
    ) -> list[TokenScores]:
        return score_completions(
            model,
            [prompt for _, prompt in views],
            [rows[i].completion_ids for i, _ in views],
            temperature=temperature,
            microbatch_tokens=microbatch_tokens,
        )

    needs = method.needs
    found = [PreStepScores() for _ in rows]
    if needs.asks_teacher:
        assert teacher is not None
        with teacher.scoring() as model:
            _teacher_scores(rows, found, model, score)
            _negative_scores(rows, found, model, score)
    if needs.start_log_probs:
        assert base is not None
        with base.scoring() as model:
            scores = score(model, [(i, row.prompt_ids) for i, row in enumerate(rows)])
        for mine, one in zip(found, scores, strict=True):
            mine.start_log_probs = one.log_probs
    if needs.student_entropies:
        with LiveTeacher(student).scoring() as model:  # without dropout, as it sampled
            _student_entropies(rows, found, model, score)
    return found


def _teacher_scores(
    rows: Sequence[TrainingRow], found: Sequence[PreStepScores], model: LanguageModel, score: Score
) -> None:
    views = [
        (i, row.teacher_prompt_ids)
        for i, row in enumerate(rows)
        if row.teacher_prompt_ids is not None
    ]
    for (i, _), one in zip(views, score(model, views), strict=True):
        found[i].teacher_log_probs, found[i].teacher_entropies = one.log_probs, one.entropies


def _negative_scores(
    rows: Sequence[TrainingRow], found: Sequence[PreStepScores], model: LanguageModel, score: Score
) -> None:
    views = [(i, prompt) for i, row in enumerate(rows) for prompt in row.negative_prompt_ids]
    collected: dict[int, list[Tensor]] = {}
    for (i, _), one in zip(views, score(model, views), strict=True):
        collected.setdefault(i, []).append(one.log_probs)
    for i, log_probs in collected.items():
        found[i].negatives = torch.stack(log_probs)


def _student_entropies(
    rows: Sequence[TrainingRow], found: Sequence[PreStepScores], model: LanguageModel, score: Score
) -> None:
    """From the rollout where it recorded them (then the step is on policy), else one more pass."""
    for i, row in enumerate(rows):
        if row.entropies is not None:
            found[i].student_entropies = torch.tensor(row.entropies)
    unknown = [(i, row.prompt_ids) for i, row in enumerate(rows) if row.entropies is None]
    for (i, _), one in zip(unknown, score(model, unknown), strict=True):
        found[i].student_entropies = one.entropies
