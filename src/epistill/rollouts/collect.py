"""From problems to graded rollouts: render, sample, split, grade. Used by every stage that samples.

Enters: problems with the chat to show for each (the student's own, or the teacher's with a
context). Leaves: `GradedRollout`s, groups together, in order.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Protocol

from epistill.config import SamplingConfig
from epistill.records import GradedRollout, Message, Problem, Rollout
from epistill.rollouts.model import LanguageModel
from epistill.rollouts.prompts import render_prompt, split_thinking
from epistill.rollouts.sampler import PromptRequest, sample
from epistill.tasks.grading import Grader

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Speaker(Protocol):
    """Whatever answers prompts beside a model in this process: a server, or a cache before one."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer, which renders the prompts."""
        ...

    def sample(
        self,
        requests: Sequence[PromptRequest],
        *,
        samples: int,
        sampling: SamplingConfig,
        seed: int,
        policy_version: int = 0,
    ) -> list[Rollout]:
        """As `rollouts.sampler.sample`."""
        ...


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
) -> list[GradedRollout]:
    """Sample `samples` responses to each chat and grade them against its problem.

    Args:
        model: In eval mode, or a speaker.
        asked: Problem and chat; repeats make separate groups.
        grader: Grades the answer parts.
        samples: Responses per chat.
        sampling: How they are drawn.
        seed: Names the draws.
        policy_version: Stamped on the rollouts.
        first_draw: Place of the first chat in a larger batch that is sampled in parts.
    """
    prompts = [
        render_prompt(model.tokenizer, messages, thinking=sampling.thinking)
        for _, messages in asked
    ]
    requests = [
        PromptRequest(problem.id, prompt.ids, first_draw + i)
        for i, ((problem, _), prompt) in enumerate(zip(asked, prompts, strict=True))
    ]
    draw = partial(sample, model) if isinstance(model, LanguageModel) else model.sample
    rollouts = draw(
        requests, samples=samples, sampling=sampling, seed=seed, policy_version=policy_version
    )
    problems = [problem for problem, _ in asked for _ in range(samples)]
    opened = [prompt.opens_thinking for prompt in prompts for _ in range(samples)]
    grades = grader.grade(
        [
            (problem.grader, problem.answer, split_thinking(r.text, opened_in_prompt=o).answer)
            for problem, r, o in zip(problems, rollouts, opened, strict=True)
        ]
    )
    return [GradedRollout(*parts) for parts in zip(problems, rollouts, grades, opened, strict=True)]
