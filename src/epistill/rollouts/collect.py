"""From problems to graded rollouts: render, sample, split, grade; for every stage that samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Unpack

from epistill.config import SamplingConfig
from epistill.records import Grade, GradedRollout, GraderName, GradeStatus, Message, Problem
from epistill.rollouts.engine import Drawing, Engine, PromptRequest
from epistill.rollouts.prompts import RenderedPrompt, render_prompt
from epistill.tasks.grading import Grader
from epistill.thinking import split_thinking
from epistill.world import current_world


def sample_and_grade(
    engine: Engine,
    asked: Sequence[tuple[Problem, Sequence[Message]]],
    grader: Grader,
    **drawing: Unpack[Drawing],
) -> list[GradedRollout]:
    """Sample `samples` responses to each chat and grade them against its problem.

    Where several processes train together, all call this alike and all get everything.

    Args:
        engine: Samples the responses.
        asked: Problem and chat (the student's own, or the teacher's with a context); repeats make
            separate groups, which stay together, in order.
        grader: Grades the answer parts.
        **drawing: How they are drawn; its `sampling.thinking` is the mode of the prompts.
    """
    prompts, requests = rendered(engine, asked, drawing["sampling"])
    rollouts = engine.sample(requests, **drawing)
    places = [i for i in range(len(asked)) for _ in range(drawing["samples"])]
    answers = [
        split_thinking(rollout.text, opened_in_prompt=prompts[i].opens_thinking).answer
        for i, rollout in zip(places, rollouts, strict=True)
    ]
    problems = [asked[i][0] for i in places]
    grades = _grade_together(
        [(one.grader, one.answer, said) for one, said in zip(problems, answers, strict=True)],
        grader,
        cut=[rollout.stop_reason == "length" for rollout in rollouts],
    )
    opened = [prompts[i].opens_thinking for i in places]
    return list(map(GradedRollout, problems, rollouts, grades, opened))


def rendered(
    engine: Engine, asked: Sequence[tuple[Problem, Sequence[Message]]], sampling: SamplingConfig
) -> tuple[list[RenderedPrompt], list[PromptRequest]]:
    """The prompts of chats, and what an engine is asked to write to them."""
    prompts = [
        render_prompt(engine.tokenizer, messages, thinking=sampling.thinking)
        for _, messages in asked
    ]
    requests = [
        PromptRequest(problem.id, prompt.ids, i)
        for i, ((problem, _), prompt) in enumerate(zip(asked, prompts, strict=True))
    ]
    return prompts, requests


def _grade_together(
    answers: Sequence[tuple[GraderName, str, str]], grader: Grader, *, cut: Sequence[bool]
) -> list[Grade]:
    """Each process grades a share."""
    world = current_world()
    grades = grader.grade(world.share(answers), cut=world.share(cut))
    if world.size == 1:
        return grades
    told = world.gather([asdict(grade) for grade in grades])
    return world.deal_back(
        [[Grade(**{**g, "status": GradeStatus(g["status"])}) for g in share] for share in told]
    )
