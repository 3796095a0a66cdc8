"""Reward functions as TRL, verl and verifiers call them; only TRL is installed where this runs."""

from __future__ import annotations

import importlib.util
import json
import threading
from pathlib import Path

import pytest

from epistill.errors import EpistillError
from epistill.integrations import rewards
from epistill.integrations.rewards import compute_score, correct_answer, correct_answers
from tests.helpers.trl_steps import dataset, solved, trl_settings

RIGHT, WRONG = "Wait, it is a half. \\boxed{1/2}", "\\boxed{3}"


def said(text):
    return [{"role": "assistant", "content": text}]


def test_a_batch_of_texts_or_messages():
    for form in (str, said):
        found = correct_answers([form(RIGHT), form(WRONG), form(RIGHT)], ["0.5", "0.5", None])
        assert found == [1.0, 0.0, None]


@pytest.mark.parametrize(
    ("answer", "text", "score"),
    [
        ("Half of one.\n#### 0.5", RIGHT, 1.0),  # GSM8K's form
        ("B", "Answer: (B) 3.5", 1.0),
        ("0.5", f"<think>{RIGHT}</think> I do not know.", 0.0),  # thinking is no answer
        ("0.5", f"a half</think>{RIGHT}", 1.0),
        ("0.5", "", 0.0),
    ],
)
def test_the_grader_follows_the_answer(answer, text, score):
    assert correct_answer(said(text), answer, info={}) == score


def test_without_an_answer_the_solution_is_read_as_trls_own_reward_does():
    worked = ["$\\frac{1}{2}$", "One by two is \\boxed{0.5}.", "Divide."]
    assert correct_answers([RIGHT] * 3, solution=worked) == [1.0, 1.0, None]
    assert correct_answers([RIGHT], ["3"], solution=["$0.5$"]) == [0.0]  # an answer goes before


def test_a_named_grader_is_taken_and_an_unknown_one_refused():
    texts, answers = ["Answer: left"] * 2, ["left", "right"]
    assert correct_answers(texts, answers, grader=["exact", "exact"]) == [1.0, 0.0]
    assert compute_score("lab", texts[0], "left", {"grader": "exact"})["score"] == 1.0
    with pytest.raises(EpistillError, match=r"grader is 'exakt'.*did you mean 'exact'"):
        correct_answer(texts[0], "left", {"grader": "exakt"})
    with pytest.raises(EpistillError, match="has no `answer`"):
        correct_answer(RIGHT, "")


def test_verl_loads_the_file_and_calls_it_from_threads_with_whatever_else_it_has():
    """By keyword, as `NaiveRewardManager.run_single` does, the module loaded from its path."""
    spec = importlib.util.spec_from_file_location("custom_module", Path(rewards.__file__))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = {}

    def call(place, text):
        extra = {"num_turns": 2, "rollout_reward_scores": {}}
        found[place] = module.compute_score(
            data_source="math", solution_str=text, ground_truth="0.5", extra_info=extra,
            reward_router_address=None,
        )  # fmt: skip

    threads = [threading.Thread(target=call, args=one) for one in enumerate([RIGHT, WRONG] * 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[i]["score"] for i in range(8)] == [1.0, 0.0] * 4
    assert found[0] == {"score": 1.0, "acc": 1.0, "markers": 1.0, "looping": 0.0}
    assert json.loads(json.dumps(found[0])) == found[0]


def test_trl_trains_with_it(tmp_path):
    trl = pytest.importorskip("trl")
    from epistill.rollouts.load_model import load_model

    model, data = load_model("lab"), dataset()
    trainer = trl.GRPOTrainer(
        model=model.network, processing_class=model.tokenizer, reward_funcs=[correct_answers, solved],
        args=trl.GRPOConfig(**trl_settings(tmp_path, max_steps=1)),
        train_dataset=data.add_column("grader", ["exact"] * len(data)),
    )  # fmt: skip
    trainer.train()
    log = trainer.state.log_history[0]
    assert log["rewards/correct_answers/mean"] == log["rewards/solved/mean"] > 0
