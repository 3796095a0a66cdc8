"""What the teacher reads for every row of a step: context, contrasting views, the context alone.

Enters: graded rollouts and a method. Leaves: prompts as ids, None where there is none. The question
is never cut: a context that does not fit into the model is dropped whole, and counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from epistill.config import RunConfig
from epistill.records import GradedRollout, Message
from epistill.rollouts.in_process_engine import InProcessEngine
from epistill.rollouts.model import LanguageModel
from epistill.rollouts.prompts import render_prompt
from epistill.seeds import derive_seed, named_random
from epistill.tasks.grading import Grader
from epistill.teacher.context import (
    context_alone,
    context_texts,
    needs_regeneration,
    negative_texts,
    teacher_messages,
)
from epistill.teacher.guided import contexts_of
from epistill.teacher.weights import Teacher

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TeacherPrompts:
    """Aligned with the rollouts.

    Attributes:
        context: Question and context; None where a row has none.
        negatives: The contrasting views.
        reference: The context without the question.
        too_long: Contexts that were dropped because they did not fit.
    """

    context: tuple[Ids | None, ...]
    negatives: tuple[tuple[Ids, ...], ...]
    reference: tuple[Ids | None, ...]
    too_long: int = 0

    @staticmethod
    def none(count: int) -> TeacherPrompts:
        """No teacher at all."""
        return TeacherPrompts((None,) * count, ((),) * count, (None,) * count)


def teacher_prompts(
    student: LanguageModel,
    teacher: Teacher,
    config: RunConfig,
    graded: Sequence[GradedRollout],
    grader: Grader,
    step: int,
) -> TeacherPrompts:
    """Prompts of every view that the method needs.

    Args:
        student: Its tokenizer, template and length are the teacher's too.
        teacher: Asked only where the context is its own writing.
        config: The run.
        graded: All rollouts of the step.
        grader: For regenerated contexts.
        step: Names the draws.
    """
    context = config.method.context
    seed = derive_seed("step_context", config.seed, step)
    if needs_regeneration(context):
        with teacher.scoring() as model:
            texts = contexts_of(
                InProcessEngine(model),
                context,
                graded,
                grader,
                sampling=config.teacher_sampling,
                seed=seed,
            )
    else:
        texts = context_texts(context, graded, seed=seed)
    render = _Renderer(student, config)
    shown: list[Ids | None] = []
    reference: list[Ids | None] = []
    alone = "context_alone" in config.method.divergence.target.views
    for item, text in zip(graded, texts, strict=True):
        if text is None:
            shown.append(None)
            reference.append(None)
            continue
        shown.append(render(teacher_messages(item.problem, text, context), item))
        reference.append(render(context_alone(text, context), item) if alone else None)
    return TeacherPrompts(
        tuple(shown),
        tuple(_negatives(config, graded, texts, render, seed)),
        tuple(reference),
        sum(s is None and t is not None for s, t in zip(shown, texts, strict=True)),
    )


def _negatives(
    config: RunConfig,
    graded: Sequence[GradedRollout],
    texts: Sequence[str | None],
    render: _Renderer,
    seed: int,
) -> list[tuple[Ids, ...]]:
    """Contrasting prompts: wrong siblings as context, or the same context under other questions."""
    context, needs = config.method.context, config.method.needs
    views: list[list[tuple[Message, ...]]] = [[] for _ in graded]
    if needs.wrong_siblings:
        wrong = negative_texts(context, graded, count=needs.wrong_siblings, seed=seed)
        for i, negatives in enumerate(wrong):
            if texts[i] is not None:
                views[i] += [teacher_messages(graded[i].problem, t, context) for t in negatives]
    if needs.other_questions:
        problems = list({item.problem.id: item.problem for item in graded}.values())
        for i, (item, text) in enumerate(zip(graded, texts, strict=True)):
            others = [p for p in problems if p.id != item.problem.id]
            if text is not None and others:
                rng = named_random("other_inputs", seed, i)
                chosen = rng.sample(others, min(needs.other_questions, len(others)))
                views[i] += [teacher_messages(p, text, context) for p in chosen]
    found: list[tuple[Ids, ...]] = []
    for item, messages in zip(graded, views, strict=True):
        ids = [render(one, item) for one in messages]
        found.append(tuple(one for one in ids if one is not None))
    return found


class _Renderer:
    """Renders each chat once, and drops what leaves no room for the response."""

    def __init__(self, model: LanguageModel, config: RunConfig) -> None:
        self._model, self._thinking = model, config.teacher_sampling.thinking
        self._known: dict[tuple[Message, ...], Ids] = {}

    def __call__(self, messages: tuple[Message, ...], item: GradedRollout) -> Ids | None:
        if messages not in self._known:
            prompt = render_prompt(self._model.tokenizer, messages, thinking=self._thinking)
            self._known[messages] = prompt.ids
        ids, limit = self._known[messages], self._model.max_positions
        if limit is not None and len(ids) + len(item.rollout.completion_ids) > limit:
            return None
        return ids
