"""The teacher's own generations: what the model says when it sees a context.

Enters: problems and unguided rollouts of them. Leaves: graded rollouts under a context. This is
section 3 of the paper, the source of SFT traces, and where "regenerated" contexts come from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from epistill.axes import Context
from epistill.config import SamplingConfig
from epistill.records import GradedRollout, Message, Problem
from epistill.rollouts.collect import sample_and_grade
from epistill.rollouts.engine import Engine
from epistill.seeds import derive_seed
from epistill.tasks.grading import Grader
from epistill.teacher.context import (
    NAMED_CONTEXTS,
    SUCCESS_THRESHOLD,
    context_texts,
    rollout_as_context,
    teacher_messages,
)


def guided_rollouts(
    engine: Engine,
    context: Context,
    unguided: Sequence[GradedRollout],
    grader: Grader,
    *,
    samples: int,
    sampling: SamplingConfig,
    seed: int,
) -> list[GradedRollout]:
    """Sample under a context, one context per problem: the first that any of its rollouts has.

    Args:
        engine: The teacher.
        context: What it sees; source "none" samples the bare question again.
        unguided: Rollouts without context; siblings, wrong answers and feedback come from them.
        grader, samples, sampling, seed: As in `sample_and_grade`.

    Returns:
        Rollouts of the problems that have a context, in order of first appearance.
    """
    texts = contexts_of(
        engine, context, unguided, grader, sampling=sampling, seed=derive_seed("context", seed)
    )
    asked = guided_chats(context, unguided, texts)
    return sample_and_grade(engine, asked, grader, samples=samples, sampling=sampling, seed=seed)


def guided_chats(
    context: Context, unguided: Sequence[GradedRollout], texts: Sequence[str | None]
) -> list[tuple[Problem, tuple[Message, ...]]]:
    """The chats of guided sampling: one per problem that has a context, the first it has.

    Source "none" leaves the bare question; `texts` are the `contexts_of` the rollouts.
    """
    chosen: dict[str, str] = {}
    for item, text in zip(unguided, texts, strict=True):
        if text is not None:
            chosen.setdefault(item.problem.id, text)
    bare = context.source == "none"
    return [
        (problem, teacher_messages(problem, None if bare else chosen[problem.id], context))
        for problem in {item.problem.id: item.problem for item in unguided}.values()
        if bare or problem.id in chosen
    ]


def contexts_of(
    engine: Engine,
    context: Context,
    graded: Sequence[GradedRollout],
    grader: Grader,
    *,
    sampling: SamplingConfig,
    seed: int,
) -> list[str | None]:
    """`context_texts`, with the guided model asked first where the context is its own writing."""
    regenerated: Mapping[str, str] = {}
    if context.source == "regenerated":
        first_round = guided_rollouts(
            engine,
            NAMED_CONTEXTS["sibling"],
            graded,
            grader,
            samples=2,
            sampling=sampling,
            seed=derive_seed("regenerate", seed),
        )
        regenerated = {
            item.problem.id: rollout_as_context(item)
            for item in reversed(first_round)
            if item.grade.score > SUCCESS_THRESHOLD
        }
    return context_texts(context, graded, regenerated=regenerated, seed=seed)
