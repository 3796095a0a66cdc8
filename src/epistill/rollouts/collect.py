"""From problems to graded rollouts: render, sample, split, grade. Used by every stage that samples.

Enters: problems with the chat to show for each (the student's own, or the teacher's with a
context). Leaves: `GradedRollout`s, groups together, in order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial

from epistill.config import SamplingConfig
from epistill.records import (
    Grade,
    GradedRollout,
    GradeStatus,
    Message,
    Problem,
    Rollout,
    rollout_from_json,
    rollout_to_json,
)
from epistill.rollouts.engine import Drawing, Speaker
from epistill.rollouts.model import LanguageModel
from epistill.rollouts.prompts import render_prompt
from epistill.rollouts.remote_engine import RemoteEngine
from epistill.rollouts.sampler import PromptRequest, sample
from epistill.tasks.grading import Grader
from epistill.thinking import split_thinking
from epistill.world import World, current_world


def sample_and_grade(
    model: LanguageModel | Speaker,
    asked: Sequence[tuple[Problem, Sequence[Message]]],
    grader: Grader,
    *,
    samples: int,
    sampling: SamplingConfig,
    seed: int,
    policy_version: int = 0,
    first_draw: int = 0,
    engine: RemoteEngine | None = None,
) -> list[GradedRollout]:
    """Sample `samples` responses to each chat and grade them against its problem.

    Where several processes train together, all call this alike; each samples and grades its share
    of the chats, and all get everything.

    Args:
        model: In eval mode, or a speaker.
        asked: Problem and chat; repeats make separate groups.
        grader: Grades the answer parts.
        samples: Responses per chat.
        sampling: How they are drawn.
        seed: Names the draws.
        policy_version: Stamped on the rollouts.
        first_draw: Place of the first chat in a larger batch that is sampled in parts.
        engine: Samples on servers instead of in this process.
    """
    prompts = [
        render_prompt(model.tokenizer, messages, thinking=sampling.thinking)
        for _, messages in asked
    ]
    world = current_world()
    own = world.share(range(len(asked)))
    requests = [
        PromptRequest(problem.id, prompt.ids, first_draw + i)
        for i, ((problem, _), prompt) in enumerate(zip(asked, prompts, strict=True))
    ]
    drawing: Drawing = {
        "samples": samples,
        "sampling": sampling,
        "seed": seed,
        "policy_version": policy_version,
    }
    if engine is None:
        draw = partial(sample, model) if isinstance(model, LanguageModel) else model.sample
        rollouts = draw([requests[i] for i in own], **drawing)
    else:
        everything = engine.sample(requests, **drawing)
        rollouts = [everything[i * samples + k] for i in own for k in range(samples)]
    places = [i for i in own for _ in range(samples)]
    grades = grader.grade(
        [
            (problem.grader, problem.answer, split_thinking(r.text, opened_in_prompt=o).answer)
            for problem, r, o in (
                (asked[i][0], r, prompts[i].opens_thinking)
                for i, r in zip(places, rollouts, strict=True)
            )
        ],
        cut=[rollout.stop_reason == "length" for rollout in rollouts],
    )
    found = dict(zip(own, _groups(rollouts, grades, samples), strict=True))
    if world.size > 1:
        found = _from_everyone(found, world)
    return [
        GradedRollout(asked[i][0], rollout, grade, prompts[i].opens_thinking)
        for i in range(len(asked))
        for rollout, grade in found[i]
    ]


Group = list[tuple[Rollout, Grade]]


def _groups(rollouts: Sequence[Rollout], grades: Sequence[Grade], samples: int) -> list[Group]:
    pairs = list(zip(rollouts, grades, strict=True))
    return [pairs[start : start + samples] for start in range(0, len(pairs), samples)]


def _from_everyone(found: dict[int, Group], world: World) -> dict[int, Group]:
    told = {
        i: [(rollout_to_json(rollout), asdict(grade)) for rollout, grade in group]
        for i, group in found.items()
    }
    return {
        int(i): [
            (rollout_from_json(r), Grade(**{**g, "status": GradeStatus(g["status"])}))
            for r, g in group
        ]
        for share in world.gather(told)
        for i, group in share.items()
    }
