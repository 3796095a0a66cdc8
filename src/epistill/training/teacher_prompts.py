"""What the teacher reads for every row of a step: context, contrasting views, the context alone.

Enters: rows, the graded rollouts behind them and a method. Leaves: the rows with prompts as ids,
None where there is none. The question is never cut: a context that does not fit into the model is
dropped whole, and counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

from epistill.config import RunConfig
from epistill.metrics.epistemic import marker_spans
from epistill.records import GradedRollout, Message
from epistill.rollouts.in_process_engine import InProcessEngine
from epistill.rollouts.model import LanguageModel
from epistill.rollouts.offsets import tokens_in_spans
from epistill.rollouts.prompts import render_prompt
from epistill.seeds import derive_seed, named_random
from epistill.tasks.grading import Grader
from epistill.teacher.context import context_alone, negative_texts, teacher_messages
from epistill.teacher.guided import contexts_of
from epistill.teacher.weights import Teacher
from epistill.training_rows import TrainingRow

Ids = tuple[int, ...]
Messages = tuple[Message, ...]


def with_teacher_prompts(
    rows: Sequence[TrainingRow],
    graded: Sequence[GradedRollout],
    student: LanguageModel,
    teacher: Teacher,
    config: RunConfig,
    grader: Grader,
    step: int,
) -> tuple[list[TrainingRow], int]:
    """The rows with the prompts of every view that the method needs, and where markers are.

    Args:
        rows: Of the step.
        graded: The rollouts behind them.
        student: Its tokenizer, template and length are the teacher's too.
        teacher: Asked only where the context is its own writing.
        config: The run.
        grader: For regenerated contexts.
        step: Names the draws.

    Returns:
        The rows, and how many contexts were dropped because they did not fit.
    """
    context, needs = config.method.context, config.method.needs
    seed = derive_seed("step_context", config.seed, step)
    with teacher.scoring() as model:
        texts = contexts_of(
            InProcessEngine(model),
            context,
            graded,
            grader,
            sampling=config.teacher_sampling,
            seed=seed,
        )

    @cache
    def rendered(messages: Messages) -> Ids:
        thinking = config.teacher_sampling.thinking
        return render_prompt(student.tokenizer, messages, thinking=thinking).ids

    def fitting(messages: Messages, row: TrainingRow) -> Ids | None:
        ids, limit = rendered(messages), student.max_positions
        fits = limit is None or len(ids) + len(row.completion_ids) <= limit
        return ids if fits else None

    wrong: Sequence[tuple[str, ...]] = [()] * len(rows)
    views = config.method.divergence.target.views if config.method.blend.distils else ()
    contrasts = "wrong_sibling" in views
    if siblings := max(needs.wrong_siblings, contrasts):
        wrong = negative_texts(context, graded, count=siblings, seed=seed)
    problems = list({item.problem.id: item.problem for item in graded}.values())
    alone = "context_alone" in views
    found, too_long = list(rows), 0
    for i, (row, item, text) in enumerate(zip(rows, graded, texts, strict=True)):
        if text is None:
            continue
        contrasting = [teacher_messages(item.problem, other, context) for other in wrong[i]]
        others = [p for p in problems if p.id != item.problem.id]
        if needs.other_questions and others:
            rng = named_random("other_inputs", seed, i)
            chosen = rng.sample(others, min(needs.other_questions, len(others)))
            contrasting += [teacher_messages(p, text, context) for p in chosen]
        ids = fitting(teacher_messages(item.problem, text, context), row)
        fitted = (fitting(messages, row) for messages in contrasting)
        negatives = tuple(view for view in fitted if view is not None)
        too_long += ids is None
        if contrasts and not negatives:
            ids = None  # nothing to contrast with: the row is not distilled
        found[i] = replace(
            row,
            teacher_prompt_ids=ids,
            negative_prompt_ids=negatives,
            reference_prompt_ids=fitting(context_alone(text, context), row) if alone else None,
            markers=None
            if ids is None
            else tokens_in_spans(student.tokenizer, row.completion_ids, marker_spans),
        )
    return found, too_long
