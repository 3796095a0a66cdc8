"""What must be known about the sampled tokens before the step: teachers' log-probs and entropies.

Enters: rows and a method. Leaves: an `Evidence` per row. Only what the method's blend and weights
ask for is computed, one no-gradient pass per view; most methods need none of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from epistill.axes import Method, TeacherConfidence
from epistill.blends import EntropyDirectedShape, Regularised
from epistill.rollouts.model import LanguageModel
from epistill.rollouts.scoring import TokenScores, score_completions
from epistill.teacher.weights import Teacher
from epistill.training.step_records import Evidence, TrainingRow

Score = Callable[
    [LanguageModel, Sequence[Sequence[int]], Sequence[Sequence[int]]], list[TokenScores]
]


def gather_evidence(
    rows: Sequence[TrainingRow],
    method: Method,
    student: LanguageModel,
    teacher: Teacher | None,
    base: Teacher | None,
    *,
    temperature: float,
    microbatch_tokens: int,
) -> list[Evidence]:
    """Score the rows under every view the method needs.

    Args:
        rows: All rows of the optimiser step.
        method: Where on the five axes.
        student: For its own entropies where the sampler did not record them.
        teacher: The method's teacher.
        base: The weights at the start, for a reference term.
        temperature, microbatch_tokens: As in the step.
    """

    def score(
        model: LanguageModel, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]
    ) -> list[TokenScores]:
        return score_completions(
            model,
            prompts,
            completions,
            temperature=temperature,
            microbatch_tokens=microbatch_tokens,
        )

    found = [Evidence() for _ in rows]
    confident = any(isinstance(weight, TeacherConfidence) for weight in method.token_weights)
    if teacher is not None and (method.shape is not None or confident):
        with teacher.scoring() as model:
            _teacher_scores(rows, found, model, score)
            _negative_scores(rows, found, model, score)
    if isinstance(method.blend, Regularised) and method.blend.reference > 0:
        assert base is not None
        with base.scoring() as model:
            scores = score(
                model, [row.prompt_ids for row in rows], [row.completion_ids for row in rows]
            )
        for evidence, one in zip(found, scores, strict=True):
            evidence.start_log_probs = one.log_probs
    if isinstance(method.shape, EntropyDirectedShape):
        _student_entropies(rows, found, student, score)
    return found


def _teacher_scores(
    rows: Sequence[TrainingRow], found: Sequence[Evidence], model: LanguageModel, score: Score
) -> None:
    chosen = [i for i, row in enumerate(rows) if row.teacher_prompt_ids is not None]
    prompts = [rows[i].teacher_prompt_ids or () for i in chosen]
    for i, one in zip(
        chosen, score(model, prompts, [rows[i].completion_ids for i in chosen]), strict=True
    ):
        found[i].teacher = one


def _negative_scores(
    rows: Sequence[TrainingRow], found: Sequence[Evidence], model: LanguageModel, score: Score
) -> None:
    pairs = [(i, prompt) for i, row in enumerate(rows) for prompt in row.negative_prompt_ids]
    scores = score(
        model, [prompt for _, prompt in pairs], [rows[i].completion_ids for i, _ in pairs]
    )
    collected: dict[int, list[Tensor]] = {}
    for (i, _), one in zip(pairs, scores, strict=True):
        collected.setdefault(i, []).append(one.log_probs)
    for i, log_probs in collected.items():
        found[i].negatives = torch.stack(log_probs)


def _student_entropies(
    rows: Sequence[TrainingRow], found: Sequence[Evidence], student: LanguageModel, score: Score
) -> None:
    """From the rollout where it recorded them (then the step is on policy), else one more pass."""
    unknown = [i for i, row in enumerate(rows) if row.entropies is None]
    for i, row in enumerate(rows):
        if row.entropies is not None:
            found[i].student_entropies = torch.tensor(row.entropies)
    scores = score(
        student,
        [rows[i].prompt_ids for i in unknown],
        [rows[i].completion_ids for i in unknown],
    )
    for i, one in zip(unknown, scores, strict=True):
        found[i].student_entropies = one.entropies
