from __future__ import annotations

import json

import pytest

from epistill.config import FileTask, StarSearchTask
from epistill.errors import EpistillError
from epistill.tasks.coverage import load_eval_problems, make_curriculum


def ids(problems):
    return [problem.id for problem in problems]


def test_endless_tasks_never_repeat():
    curriculum = make_curriculum(StarSearchTask(), None, 0)
    seen = [name for step in range(5) for name in ids(curriculum.at(step, 16))]
    assert len(set(seen)) == 80


@pytest.mark.parametrize("coverage", [1, 3, 8])
def test_a_pool_is_passed_through_whole(coverage):
    curriculum = make_curriculum(StarSearchTask(), coverage, 0)
    seen = [name for step in range(6) for name in ids(curriculum.at(step, 4))]
    assert len(set(seen)) == coverage
    assert all(
        len(set(seen[i : i + coverage])) == coverage for i in range(0, 24 - coverage + 1, coverage)
    )


def test_a_position_does_not_depend_on_how_it_is_reached():
    curriculum = make_curriculum(StarSearchTask(), 8, 0)
    whole = [name for step in range(4) for name in ids(curriculum.at(step, 6))]
    assert whole == [name for step in range(8) for name in ids(curriculum.at(step, 3))]


def test_smaller_coverages_are_subsets_and_seeds_differ(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_text(
        "".join(json.dumps({"question": f"{i}?", "answer": str(i)}) + "\n" for i in range(20))
    )
    task = FileTask(path=str(path))
    small, large = (make_curriculum(task, n, 0).pool for n in (4, 12))
    assert set(ids(small)) < set(ids(large))
    assert ids(make_curriculum(task, 12, 1).pool) != ids(large)
    with pytest.raises(EpistillError, match="more than the 20"):
        make_curriculum(task, 21, 0)


def test_evaluation_problems_are_the_same_for_everyone():
    task = StarSearchTask(split="test")
    assert ids(load_eval_problems(task, 5)) == ids(load_eval_problems(task, 9))[:5]
    train = make_curriculum(StarSearchTask(), 64, 0).pool
    assert not {p.messages for p in train} & {p.messages for p in load_eval_problems(task, 200)}
