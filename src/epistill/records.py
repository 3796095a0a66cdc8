"""The records that stages hand to each other. Frozen; ids as tuples; imports no torch.

Each docstring states what is aligned with what and what None means; `__post_init__` checks it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Literal

GraderName = Literal["math", "choice", "exact", "expression", "code"]
StopReason = Literal["eos", "length"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Problem:
    """One question with the answer it is graded against.

    Attributes:
        id: Unique within its task; the cluster of every bootstrap.
        messages: The chat the student sees.
        answer: The reference answer, as the grader expects it.
        grader: Which grader reads the response.
        solution: A worked solution, thinking included where it has one; None where the source has
            none (contexts that need one then refuse).
        meta: What the source says besides (difficulty, origin), for grouping only.
    """

    id: str
    messages: tuple[Message, ...]
    answer: str
    grader: GraderName
    solution: str | None = None
    meta: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    def __post_init__(self) -> None:
        if not self.messages:
            raise ValueError(f"problem {self.id!r} has no messages")


class GradeStatus(StrEnum):
    """How grading a response ended."""

    CORRECT = "correct"
    WRONG = "wrong"
    UNREADABLE = "unreadable"
    TIMEOUT = "timeout"


@dataclass(frozen=True, slots=True)
class Grade:
    """The verdict on one response.

    Attributes:
        status: Correct, wrong, or why no verdict could be reached.
        extracted: The answer that was read; None where none could be.
        reason: One line for a person; empty for a plain correct or wrong.
        frame: What the answer stood in ("boxed", "label", ...; see `tasks.answers`); "whole" where
            it is all of the response, "search" where it had to be searched for, "" without one.
    """

    status: GradeStatus
    extracted: str | None
    reason: str = ""
    frame: str = ""

    def __post_init__(self) -> None:
        if self.extracted is None and self.status in (GradeStatus.CORRECT, GradeStatus.WRONG):
            raise ValueError(f"a grade of {self.status.value!r} must say which answer it read")

    @property
    def score(self) -> float:
        """1.0 for a correct answer, else 0.0: an answer nobody can read earns nothing."""
        return 1.0 if self.status is GradeStatus.CORRECT else 0.0


@dataclass(frozen=True, slots=True)
class Rollout:
    """One sampled response.

    Attributes:
        problem_id: The problem it answers.
        sample: Index within the problem's group, from 0.
        prompt_ids: What the model read.
        completion_ids: What it wrote, the end token included if it wrote one.
        logprobs: log-probability (nats) of each completion token at the sampling temperature,
            before top-p and top-k; aligned with completion_ids.
        stop_reason: "eos", or "length" for a truncated response.
        text: completion_ids decoded without the end token, `<think>` tags kept.
        policy_version: Optimiser steps the weights had seen when it was sampled.
        entropies: Entropy (nats) of the distribution each token was drawn from, before top-p and
            top-k; None where the engine cannot tell.
        forced: Tokens that a rule decided (`word_rules`); nobody sampled them, so nothing trains on
            them. None where there was no rule.
    """

    problem_id: str
    sample: int
    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    stop_reason: StopReason
    text: str
    policy_version: int = 0
    entropies: tuple[float, ...] | None = None
    forced: tuple[bool, ...] | None = None

    def __post_init__(self) -> None:
        for name, values in (("entropies", self.entropies), ("forced marks", self.forced)):
            if values is not None and len(values) != len(self.completion_ids):
                raise ValueError(
                    f"{len(self.completion_ids)} completion ids but {len(values)} {name}"
                )
        if len(self.completion_ids) != len(self.logprobs):
            raise ValueError(
                f"{len(self.completion_ids)} completion ids but {len(self.logprobs)} log-probs"
            )
        if not self.completion_ids:
            raise ValueError(f"rollout of problem {self.problem_id!r} is empty")


def rollout_to_json(rollout: Rollout) -> dict[str, Any]:
    """A rollout as a JSON object; numbers survive exactly."""
    return {field.name: getattr(rollout, field.name) for field in fields(rollout)}


def rollout_from_json(row: Mapping[str, Any]) -> Rollout:
    """What `rollout_to_json` wrote."""
    values = dict(row)
    for name in ("prompt_ids", "completion_ids", "logprobs", "entropies", "forced"):
        values[name] = None if values.get(name) is None else tuple(values[name])
    return Rollout(**values)


@dataclass(frozen=True, slots=True)
class GradedRollout:
    """A rollout with the problem it answers and its grade.

    Attributes:
        opened_thinking: The prompt ended inside an open `<think>`.
    """

    problem: Problem
    rollout: Rollout
    grade: Grade
    opened_thinking: bool = False
