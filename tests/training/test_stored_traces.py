"""SFT on what a file's records give as their solution, and on short traces."""

from __future__ import annotations

import pytest
import torch

from epistill.config import RunConfig
from epistill.errors import EpistillError
from epistill.json_files import write_jsonl
from epistill.methods import method
from epistill.records import Message
from epistill.rollouts.load_model import load_model
from epistill.rollouts.prompts import render_prompt
from epistill.rollouts.scoring import score_completions
from epistill.studies.run_arm import run
from epistill.tasks.coverage import make_curriculum
from epistill.tasks.grading import Grader
from epistill.training.stored_traces import collect_traces

GUIDED = {"source": "sibling"}


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


def test_what_is_learned_are_the_records_own_solutions(tmp_path, lab_model):
    """The first loss is what the weights, as they are shipped, say of exactly these tokens."""
    rows = [
        {"question": "from 10 11", "answer": "11", "solution": "<think>\nso 11 </think> answer 11"},
        {"question": "from 12 13", "answer": "12", "solution": "<think>\nso 12 </think> answer 12"},
    ]
    write_jsonl(tmp_path / "data.jsonl", rows)
    store = run(config(tmp_path / "data.jsonl", steps=2), tmp_path / "run")
    first, second = store.metrics()
    tokenizer = lab_model.tokenizer
    prompts = [
        render_prompt(tokenizer, [Message("user", row["question"])]).ids for row in rows
    ]  # which open the thinking
    texts = [row["solution"].removeprefix("<think>\n") for row in rows]
    ids = [[*tokenizer.encode(t, add_special_tokens=False), tokenizer.eos_token_id] for t in texts]
    nats = [-score.log_probs for score in score_completions(lab_model, prompts, ids)]
    assert first["loss"] == pytest.approx(float(torch.cat(nats).mean()), rel=1e-4)
    assert first["length_tokens"] == second["length_tokens"] == 6  # the end token is learned
    assert second["loss"] != first["loss"]


def test_a_record_without_a_solution_is_named(tmp_path):
    write_jsonl(tmp_path / "data.jsonl", [{"question": "from 10 11", "answer": "11"}])
    with pytest.raises(EpistillError, match="problem '0' has no solution"):
        run(config(tmp_path / "data.jsonl"), tmp_path / "run")


def collected(**traces):
    """Traces of the lab's model, 4 responses to each problem."""
    settings = config("-").model_copy(
        update={
            "task": RunConfig.model_validate(
                {"model": "lab", "task": {"type": "star_search"}, "method": method("grpo")}
            ).task,
            "samples_per_problem": 4,
            "method": method("sft-unguided", traces=traces),
        }
    )
    curriculum = make_curriculum(settings.task, None, 0)
    with Grader() as grader:
        return collect_traces(load_model("lab"), settings, curriculum, grader)


def test_as_long_as_those_under_a_context():
    guided, own, matched = (
        collected(count=20, **more) for more in ({"context": GUIDED}, {}, {"as_long_as": GUIDED})
    )
    lengths, unmatched, found = (
        sorted(len(item.rollout.completion_ids) for item in traces)
        for traces in (guided, own, matched)
    )
    assert len(found) == 20
    assert all(abs(a - b) <= 0.1 * b for a, b in zip(found, lengths, strict=True))
    assert sum(unmatched) > 1.2 * sum(lengths)  # else there was nothing to match
    assert {item.rollout.prompt_ids for item in matched} <= {  # the bare questions, its own draws
        item.rollout.prompt_ids for item in collected(count=2000)
    }


@pytest.mark.parametrize("more", [{"shortest": True}, {"file": "mine.jsonl"}])
def test_traces_are_chosen_in_one_way(more):
    with pytest.raises(EpistillError, match="more than one of shortest, as_long_as and file"):
        method("sft-unguided", traces={"as_long_as": GUIDED, **more})


def test_the_shortest_right_response_of_each_problem():
    lengths = {}
    for shortest in (False, True):
        found = collected(shortest=shortest, count=40)
        lengths[shortest] = {}
        for item in found:
            lengths[shortest].setdefault(item.problem.id, []).append(
                len(item.rollout.completion_ids)
            )
    assert all(len(found) == 1 for found in lengths[True].values())
    whole = list(lengths[False])[:-1]  # the last problem's responses may be cut off by the count
    assert len(whole) > 5
    assert all(lengths[True][name] == [min(lengths[False][name])] for name in whole)
