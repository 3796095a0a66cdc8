from __future__ import annotations

import json

import pytest
import torch

import epistill
from epistill.config import RunConfig
from epistill.errors import EpistillError
from epistill.inputs import load_run_config
from epistill.metrics import total_markers
from epistill.rollouts.scoring import score_completions
from epistill.store import RunStore
from epistill.tasks.grading import Grader
from epistill.training.edited_traces import traces_of_file

TASK = {"type": "star_search", "arms": 3, "depth": 2}


def config(**traces):
    return load_run_config(
        None,
        {
            "model": "lab",
            "task": TASK,
            "method": epistill.method("sft-unguided", traces={"count": 12, **traces}),
            "max_new_tokens": 60,
            "problems_per_step": 2,
            "samples_per_problem": 2,
            "steps": 1,
        },
    )


def stored(folder):
    return [row["rollout"] for row in RunStore(folder).read_final("traces/traces.jsonl")]


def test_sampled_traces_are_edited_before_they_are_learned(tmp_path, lab_model):
    plain, edits = tmp_path / "plain", tmp_path / "edited"
    epistill.train(config(), out=plain)
    epistill.train(config(edits=["cut-rechecks", "swap lexicon:paper-en=so"]), out=edits)
    assert sum(total_markers(r["text"]) for r in stored(plain)) > 0
    end = lab_model.tokenizer.eos_token_id
    for before, after in zip(stored(plain), stored(edits), strict=True):
        assert before["prompt_ids"] == after["prompt_ids"]
        assert "check" not in after["text"] and total_markers(after["text"]) == 0  # noqa: PT018
        assert before["text"].split()[-2:] == after["text"].split()[-2:]
        *said, last = after["completion_ids"]
        assert (lab_model.tokenizer.decode(said), last) == (after["text"], end)


def test_a_file_that_eval_or_edit_wrote_is_learned(tmp_path, lab_model):
    sampled, edited = tmp_path / "sampled.jsonl", tmp_path / "edited.jsonl"
    epistill.evaluate("lab", "star-search:3x2", problems=10, samples=3, out=sampled)
    epistill.edit(sampled, ["swap lexicon:paper-en=try"], out=edited)
    rows = [json.loads(line) for line in edited.read_text().splitlines()]
    right = [row["response"] for row in rows if row["score"] == 1.0][:12]
    epistill.train(config(file=str(edited)), out=tmp_path / "run")
    learned = stored(tmp_path / "run")
    assert [row["text"] for row in learned] == right
    scores = score_completions(
        lab_model, [r["prompt_ids"] for r in learned], [r["completion_ids"] for r in learned]
    )
    for row, one in zip(learned, scores, strict=True):
        torch.testing.assert_close(torch.tensor(row["logprobs"]), one.log_probs, atol=2e-4, rtol=0)
    unedited = traces(lab_model, config(file=str(sampled)))
    assert [item.rollout.completion_ids for item in unedited] != [
        tuple(row["completion_ids"]) for row in learned
    ]
    assert {item.grade.score for item in unedited} == {1.0}


def traces(model, chosen: RunConfig):
    with Grader() as grader:
        return traces_of_file(model, chosen, chosen.method.traces, grader)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"question": None}, "row 1 has no question"),
        ({"n_forced": 3}, "nobody sampled them"),
        ({"response": "</think> answer 11"}, "0 right responses"),
        ({"truncated": True}, "0 right responses"),
    ],
)
def test_what_cannot_be_learned_is_refused_in_one_line(tmp_path, lab_model, change, said):
    row = {
        "question": "edges 10 11 , 11 gold , 12 13 , 13 dust from 10 12",
        "reference": "10",
        "grader": "exact",
        "response": "so 10 </think> answer 10",
        "opened_thinking": True,
    }
    path = tmp_path / "traces.jsonl"
    path.write_text(json.dumps(row) + "\n")
    (found,) = traces(lab_model, config(file=str(path), count=1))
    assert found.rollout.text == row["response"]
    path.write_text(json.dumps(row | change) + "\n")
    with pytest.raises(EpistillError, match=said):
        traces(lab_model, config(file=str(path), count=1))
    with pytest.raises(EpistillError, match="no file"):
        traces(lab_model, config(file=str(tmp_path / "none"), count=1))
