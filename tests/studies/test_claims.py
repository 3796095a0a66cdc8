"""Verdicts follow from intervals alone, by the rules written in docs/lab.md."""

from __future__ import annotations

import numpy as np
import pytest

from epistill.evaluation.stats import Estimate
from epistill.store import RunStore
from epistill.studies.claims import decide, judge
from epistill.studies.outcomes import outcomes_of
from epistill.studies.spec import Claim


def estimate(low, high):
    return Estimate((low + high) / 2, low, high, 10)


@pytest.mark.parametrize(
    ("low", "high", "expect", "margin", "verdict"),
    [
        (0.1, 0.3, "above", 0, "reproduced"),
        (-0.3, -0.1, "above", 0, "not reproduced"),
        (-0.1, 0.1, "above", 0, "not distinguishable"),
        (-0.3, -0.1, "below", 0, "reproduced"),
        (0.1, 0.3, "below", 0, "not reproduced"),
        (-0.01, 0.3, "not_below", 0.02, "reproduced"),
        (-0.3, -0.1, "not_below", 0.02, "not reproduced"),
        (-0.05, 0.1, "not_below", 0.02, "not distinguishable"),
        (-0.3, 0.01, "not_above", 0.02, "reproduced"),
        (-14, -11, "not_above", -0.25 * 40, "reproduced"),
        (-12, -8, "not_above", -0.25 * 40, "not distinguishable"),
        (-9, -5, "not_above", -0.25 * 40, "not reproduced"),
        (0.1, 0.3, "not_above", 0.02, "not reproduced"),
    ],
)
def test_decide(low, high, expect, margin, verdict):
    assert decide(estimate(low, high), expect, margin) == verdict


def test_without_an_interval_nothing_is_decided():
    assert decide(Estimate(1.0, None, None, 1), "above", 0.0) == "not distinguishable"


def runs_of(folder, scores, problems=60):
    """arm -> {seed -> outcomes} of finished runs with given success rates; problems differ in difficulty."""
    rng = np.random.default_rng(0)
    luck = rng.random((3, problems, 4))
    found = {}
    for arm, score in scores.items():
        found[arm] = {}
        for seed in range(3):
            store = RunStore(folder / arm / str(seed))
            rows = [
                {
                    "problem_id": f"p{p}", "sample": s, "correct": bool(luck[seed, p, s] < score),
                    "status": "correct", "n_tokens": 10 + s, "n_words": 9, "n_markers": s,
                    "answer": "x", "truncated": False, "text": None,
                }
                for p in range(problems)
                for s in range(4)
            ]  # fmt: skip
            store.write_evaluation("final-set", rows)
            for step in range(20):
                store.append("metrics", {"step": step, "reward": score * step / 20 + seed / 1000,
                                      "length_tokens": 30 - 10 * score})  # fmt: skip
            store.finish({"evaluations": {"set": {"kind": "ood"}}})
            found[arm][seed] = outcomes_of(store)
    return found


def claim(*tests):
    return Claim(id="c", text="t", tests=tests)


def test_a_claim_needs_all_its_comparisons(tmp_path):
    runs = runs_of(tmp_path, {"good": 0.8, "bad": 0.4})
    above = {"measure": "score", "on": "ood", "arm": "good", "versus": "bad", "expect": "above"}
    wrong = {**above, "expect": "below"}
    same = {**above, "arm": "bad", "expect": "above"}
    assert judge(claim(above), runs)["verdict"] == "reproduced"
    assert judge(claim(above, wrong), runs)["verdict"] == "not reproduced"
    assert judge(claim(above, same), runs)["verdict"] == "not distinguishable"
    missing = {**above, "arm": "absent"}
    assert judge(claim(above, missing), runs)["verdict"] == "not measured"
    number = judge(claim(above), runs)["numbers"][0]
    assert number["value"] == pytest.approx(0.8, abs=0.05)
    assert number["difference"]["low"] > 0.3
    assert number["difference"]["problems"] == 60
    assert number["difference"]["seeds"] == 3


def test_training_curves_are_compared_over_seeds(tmp_path):
    runs = runs_of(tmp_path, {"good": 0.8, "bad": 0.4})
    faster = {
        "measure": "train_reward",
        "on": "training",
        "arm": "good",
        "versus": "bad",
        "expect": "above",
    }
    shorter = {**faster, "measure": "train_length_tokens", "expect": "below"}
    found = judge(claim(faster, shorter), runs)
    assert found["verdict"] == "reproduced"
    assert found["numbers"][1]["value"] == pytest.approx(22.0)
    early = judge(claim({**faster, "measure": "train_early_reward"}), runs)["numbers"][0]
    assert early["value"] == pytest.approx(0.8 * 7 / 20 + 0.001)  # of steps 0 to 14


def test_margins_of_other_measures_are_relative(tmp_path):
    runs = runs_of(tmp_path, {"good": 0.8, "bad": 0.4})
    test = {"measure": "length_tokens", "on": "ood", "arm": "good", "versus": "bad",
            "expect": "not_above", "margin": 0.05}  # fmt: skip
    number = judge(claim(test), runs)["numbers"][0]
    assert number["margin"] == pytest.approx(0.05 * 11.5)
