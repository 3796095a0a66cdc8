"""Which problems a run trains on, and in which order: coverage is the number of distinct ones.

Enters: a task's configuration, coverage, seed. Leaves: a `Curriculum` that answers "which problems
at step t" from the seed alone, so that a resumed run needs no saved data position.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from epistill.config import FileTask, GeneratedTask, StarSearchTask, TaskConfig
from epistill.errors import EpistillError
from epistill.records import Problem
from epistill.seeds import named_random
from epistill.tasks.files import load_problems
from epistill.tasks.number_pairs import pair_problem
from epistill.tasks.star_search import star_problem

Item = TypeVar("Item")


def load_eval_problems(task: TaskConfig, count: int) -> list[Problem]:
    """The first `count` problems of a task; the same ones for every run, arm and seed."""
    if not isinstance(task, FileTask):
        return _drawn(task, 0, range(count))
    return list(_file_problems(task)[:count])


def _file_problems(task: FileTask) -> tuple[Problem, ...]:
    return load_problems(
        task.path, split=task.split, grader=task.grader, prompt=task.prompt, since=task.since
    ).problems


def generated_problem(task: GeneratedTask, seed: int, index: int) -> Problem:
    """Problem `index` of a task without a file."""
    if isinstance(task, StarSearchTask):
        return star_problem(task.arms, task.depth, seed, task.split, index)
    return pair_problem(task, seed, index)


def _drawn(task: GeneratedTask, seed: int, numbers: range) -> list[Problem]:
    return [generated_problem(task, seed, i) for i in numbers]


def _shuffled(count: int, *key: object) -> list[int]:
    order = list(range(count))
    named_random(*key).shuffle(order)
    return order


def in_passes(items: Sequence[Item], step: int, count: int, *key: object) -> list[Item]:
    """The `count` items of a step: whole passes over all, each in its own order, named by a key."""
    places = [divmod(n, len(items)) for n in range(step * count, (step + 1) * count)]
    orders = {n: _shuffled(len(items), *key, n) for n in {done for done, _ in places}}
    return [items[orders[done][place]] for done, place in places]


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
        if self.pool is not None:
            return in_passes(self.pool, step, count, "order", self.seed)
        assert not isinstance(self.task, FileTask)
        return _drawn(self.task, self.seed, range(step * count, (step + 1) * count))


def make_curriculum(task: TaskConfig, coverage: int | None, seed: int) -> Curriculum:
    """Choose the training problems.

    Smaller coverages are subsets of larger ones of the same seed.

    Raises:
        EpistillError: The file has fewer distinct problems than the coverage asks for.
    """
    if not isinstance(task, FileTask):
        pool = None if coverage is None else tuple(_drawn(task, seed, range(coverage)))
        return Curriculum(task, seed, pool)
    problems = _file_problems(task)
    if coverage is None:
        return Curriculum(task, seed, problems)
    if coverage > len(problems):
        raise EpistillError(
            f"coverage {coverage} asks for more than the {len(problems)} distinct problems of "
            f"{task.path}; lower it or leave it out"
        )
    order = _shuffled(len(problems), "coverage", seed)[:coverage]
    return Curriculum(task, seed, tuple(problems[i] for i in order))
