"""Which problems a run trains on, and in which order: coverage is the number of distinct ones.

Enters: a task's configuration, coverage, seed. Leaves: a `Curriculum` that answers "which problems
at step t" from the seed alone, so that a resumed run needs no saved data position.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from epistill.config import FileTask, StarSearchTask, TaskConfig
from epistill.errors import EpistillError
from epistill.records import Problem
from epistill.seeds import named_random
from epistill.tasks.files import load_problems
from epistill.tasks.star_search import star_problem


def load_eval_problems(task: TaskConfig, count: int) -> list[Problem]:
    """The first `count` problems of a task; the same ones for every run, arm and seed."""
    if isinstance(task, StarSearchTask):
        return [star_problem(task.arms, task.depth, 0, task.split, i) for i in range(count)]
    return list(_file_problems(task)[:count])


def _file_problems(task: FileTask) -> tuple[Problem, ...]:
    return load_problems(
        task.path, split=task.split, grader=task.grader, prompt=task.prompt, since=task.since
    ).problems


@dataclass(frozen=True, slots=True)
class Curriculum:
    """The order of training problems.

    Attributes:
        pool: The distinct problems; None where every draw is a new problem of an endless task.
    """

    task: TaskConfig
    seed: int
    pool: tuple[Problem, ...] | None

    def at(self, step: int, count: int) -> list[Problem]:
        """The `count` problems of a step: whole passes over the pool, each in its own order."""
        first = step * count
        if self.pool is None:
            assert isinstance(self.task, StarSearchTask)
            task = self.task
            return [
                star_problem(task.arms, task.depth, self.seed, task.split, first + i)
                for i in range(count)
            ]
        return [self._draw(first + i) for i in range(count)]

    def _draw(self, position: int) -> Problem:
        assert self.pool is not None
        epoch, offset = divmod(position, len(self.pool))
        order = list(range(len(self.pool)))
        named_random("order", self.seed, epoch).shuffle(order)
        return self.pool[order[offset]]


def make_curriculum(task: TaskConfig, coverage: int | None, seed: int) -> Curriculum:
    """Choose the training problems.

    Smaller coverages are subsets of larger ones of the same seed.

    Raises:
        EpistillError: The file has fewer distinct problems than the coverage asks for.
    """
    if isinstance(task, StarSearchTask):
        if coverage is None:
            return Curriculum(task, seed, None)
        return Curriculum(
            task,
            seed,
            tuple(
                star_problem(task.arms, task.depth, seed, task.split, i) for i in range(coverage)
            ),
        )
    return Curriculum(task, seed, _subset(task, _file_problems(task), coverage, seed))


def _subset(
    task: FileTask, problems: Sequence[Problem], coverage: int | None, seed: int
) -> tuple[Problem, ...]:
    if coverage is None:
        return tuple(problems)
    if coverage > len(problems):
        raise EpistillError(
            f"coverage {coverage} asks for more than the {len(problems)} distinct problems of "
            f"{task.path}; lower it or leave it out"
        )
    order = list(range(len(problems)))
    named_random("coverage", seed).shuffle(order)
    return tuple(problems[i] for i in order[:coverage])
