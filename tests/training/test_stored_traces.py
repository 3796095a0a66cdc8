"""SFT on what a file's records give as their solution, and on short traces."""

from __future__ import annotations

import pytest

from epistill.config import RunConfig
from epistill.errors import EpistillError
from epistill.json_files import write_jsonl
from epistill.methods import method
from epistill.rollouts.load_model import load_model
from epistill.studies.run_arm import run
from epistill.tasks.coverage import make_curriculum
from epistill.tasks.grading import Grader
from epistill.training.stored_traces import collect_traces


def config(path, **settings):
    return RunConfig.model_validate(
        {
            "model": "lab",
            "task": {"type": "file", "path": str(path)},
            "method": method("sft-unguided", traces={"written_by": "data"}).model_dump(),
            "sampling": {"max_new_tokens": 40},
            "problems_per_step": 2,
            "samples_per_problem": 1,
            "steps": 30,
            "learning_rate": 5e-3,
            "warmup_steps": 1,
            "monitor": "off",
            **settings,
        }
    )


def test_the_model_learns_the_records_own_solutions(tmp_path):
    rows = [
        {"question": "from 10 11", "answer": "11", "solution": "<think>\nso 11 </think> answer 11"},
        {"question": "from 12 13", "answer": "12", "solution": "<think>\nso 12 </think> answer 12"},
    ]
    write_jsonl(tmp_path / "data.jsonl", rows)
    store = run(config(tmp_path / "data.jsonl"), tmp_path / "run")
    losses = [row["loss"] for row in store.metrics()]
    assert losses[-1] < 0.1 < losses[0]
    assert {row["length_tokens"] for row in store.metrics()} == {6}  # the end token is learned


def test_a_record_without_a_solution_is_named(tmp_path):
    write_jsonl(tmp_path / "data.jsonl", [{"question": "from 10 11", "answer": "11"}])
    with pytest.raises(EpistillError, match="problem '0' has no solution"):
        run(config(tmp_path / "data.jsonl"), tmp_path / "run")


def test_the_shortest_right_response_of_each_problem():
    settings = config("-").model_copy(
        update={
            "task": RunConfig.model_validate(
                {"model": "lab", "task": {"type": "star_search"}, "method": method("grpo")}
            ).task,
            "samples_per_problem": 4,
        }
    )
    student = load_model("lab")
    curriculum = make_curriculum(settings.task, None, 0)
    lengths = {}
    for shortest in (False, True):
        traces = {"shortest": shortest, "count": 40}
        asked = settings.model_copy(update={"method": method("sft-unguided", traces=traces)})
        with Grader() as grader:
            found = collect_traces(student, asked, curriculum, grader)
        lengths[shortest] = {}
        for item in found:
            lengths[shortest].setdefault(item.problem.id, []).append(
                len(item.rollout.completion_ids)
            )
    assert all(len(found) == 1 for found in lengths[True].values())
    whole = list(lengths[False])[:-1]  # the last problem's responses may be cut off by the count
    assert len(whole) > 5
    assert all(lengths[True][name] == [min(lengths[False][name])] for name in whole)
