"""Rank correlations, thresholds and verdicts; what the package ships is what the study gave."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import spearmanr

from epistill.preflights.verdict import (
    PREDICTORS,
    REGISTERED,
    RIVALS,
    advice,
    load_thresholds,
    verdict_of,
)
from epistill.studies.load_study import load_study
from epistill.studies.prediction import prediction_of, spearman, threshold_of
from epistill.studies.runner import run_study
from epistill.studies.spec import StudySpec


def test_rho_is_scipys_with_ties():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 5, 20).astype(float)
    y = x + rng.normal(size=20) * 2
    found = spearman(x, y, [str(i) for i in range(20)])
    assert found.value == pytest.approx(spearmanr(x, y).statistic)
    assert found.low < found.value < found.high
    assert found.problems == 20


def test_the_interval_covers_at_its_rate():
    """95 % intervals of bivariate normal samples hold the true rank correlation about so often."""
    rng = np.random.default_rng(1)
    rho, held, runs = 0.6, 0, 120
    truth = 6 / np.pi * np.arcsin(rho / 2)
    for _ in range(runs):
        x = rng.normal(size=30)
        y = rho * x + np.sqrt(1 - rho**2) * rng.normal(size=30)
        found = spearman(x, y, [str(i) for i in range(30)])
        held += found.low <= truth <= found.high
    assert 0.86 <= held / runs <= 1.0


def test_arms_of_one_context_are_drawn_together():
    """Copies of an arm add no information: the interval stays that of the contexts."""
    x = np.array([1.0, 2, 3, 4, 5, 6])
    y = np.array([1.0, 3, 2, 5, 4, 6])
    names = list("abcdef")
    once = spearman(x, y, names)
    thrice = spearman(np.repeat(x, 3), np.repeat(y, 3), np.repeat(names, 3).tolist())
    apart = spearman(np.repeat(x, 3), np.repeat(y, 3), [str(i) for i in range(18)])
    assert (thrice.low, thrice.high) == pytest.approx((once.low, once.high))
    assert apart.high - apart.low < thrice.high - thrice.low
    assert thrice.problems == 6


def test_without_variation_there_is_no_interval():
    assert spearman(np.ones(5), np.arange(5.0), list("abcde")).low is None


def test_the_threshold_sorts():
    x = np.array([-3.0, -2, -1, 1, 2, 3])
    y = np.array([-1.0, -1, -1, 1, 1, 1])
    assert threshold_of(x, y, list("abcdef")) == {
        "value": 0.0, "right": 6, "of": 6, "left_out_right": 6,
    }  # fmt: skip
    assert threshold_of(x, np.abs(y), list("abcdef")) is None
    assert threshold_of(np.ones(6), y, list("abcdef")) is None


def entry(**changes):
    rho = {"value": 0.8, "low": 0.4, "high": 0.9}
    arms = [{"arm": f"a{i}", "prediction": float(i), "outcome": i / 10} for i in range(-3, 4)]
    base = {
        "predictor": "KL", "registered": True, "registered_predictor": "KL", "sign": 1,
        "rho": rho, "predicts": True, "arms": arms,
        "threshold": {"value": 0.5, "right": 6, "of": 7, "left_out_right": 5},
    }  # fmt: skip
    return {"outcomes": {"OOD score": {**base, **changes}}}


def context(value, control=False, half=0.1):
    record = {part: {} for part, _ in PREDICTORS.values()}
    found = None if value is None else {"value": value, "low": None, "high": None}
    if value is not None and half is not None:
        found |= {"low": value - half, "high": value + half}
    for part, key in PREDICTORS.values():
        record[part][key] = found
    return {**record, "control": control}


@pytest.mark.parametrize(
    ("value", "changes", "expected", "words"),
    [
        (2.0, {}, "rise likely", "threshold +0.5 sorts 6 of 7"),
        (-2.0, {}, "fall likely", "a-2 -0.2"),
        (-2.0, {"sign": -1, "threshold": {"value": 0.5, "right": 6, "of": 7, "left_out_right": 5}},
         "rise likely", "threshold -0.5"),
        (2.0, {"predicts": False}, "not predicted", "did not order this outcome"),
        (2.0, {"threshold": None}, "not predicted", "no arm of the validation study went the other"),
        (2.0, {"registered": False, "registered_predictor": "length"}, "rise likely",
         "chosen after the results were seen, since length did not predict it"),
        (None, {}, "not measured", "could not be measured"),
    ],
)  # fmt: skip
def test_verdicts_say_what_and_why(value, changes, expected, words):
    (found,) = verdict_of(context(value), entry(**changes))
    assert found["expectation"] == expected
    assert words in found["reason"]


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("value", [2.0, 0.6, 0.4, -2.0])
@pytest.mark.parametrize("half", [0.05, 0.1, 1.4, 1.6, 3.0, None])
def test_a_verdict_follows_from_the_interval(value, half, sign):
    """Of the predictor against its threshold, never from the point alone."""
    threshold = {"value": 0.5, "right": 6, "of": 7, "left_out_right": 5}
    (found,) = verdict_of(context(sign * value, half=half), entry(sign=sign, threshold=threshold))
    if half is None or abs(value - 0.5) <= half:
        assert found["expectation"] == "not distinguishable"
        assert f"the threshold {sign * 0.5:+.3g}" in found["reason"]
    else:
        assert found["expectation"] == ("rise likely" if value > 0.5 else "fall likely")


def test_advice_prefers_gain_among_the_safe():
    def one(gain, ood, control=False):
        return {**context(gain, control), "verdict": [{"outcome": "OOD score", "expectation": ood}]}

    contexts = {
        "rich": one(0.4, "fall likely"),
        "mild": one(0.2, "rise likely"),
        "none": one(0.9, "rise likely", control=True),
    }
    assert advice(contexts).startswith("prefer mild (")
    assert "no context here" in advice({"rich": contexts["rich"]})
    contexts["open"] = one(0.8, "not distinguishable")
    assert advice(contexts).startswith("prefer mild (")
    assert "ask more" in advice({name: contexts[name] for name in ("rich", "open", "none")})


def test_the_shipped_thresholds_have_their_provenance():
    shipped = load_thresholds()
    study = load_study("lab-preflight")
    trained = [arm.id for arm in study.arms if arm.method is not None]
    assert shipped["command"] == "epistill study lab-preflight"
    assert shipped["arms"] == len(trained) >= 12
    assert shipped["seeds"] == list(study.seeds)
    assert len(study.seeds) >= 3
    assert shipped["problems"] == study.preflights[0].settings.problems
    assert set(shipped["outcomes"]) == set(REGISTERED)
    for outcome, found in shipped["outcomes"].items():
        assert [arm["arm"] for arm in found["arms"]] == trained
        # Numbers in the file follow from its own arms.
        x = np.array([arm["prediction"] for arm in found["arms"]])
        y = np.array([arm["outcome"] for arm in found["arms"]])
        assert found["rho"]["value"] == pytest.approx(spearmanr(x, y).statistic)
        right = (found["sign"] * x > found["threshold"]["value"]) == (y > 0)
        assert right.sum() == found["threshold"]["right"]
        assert found["registered_predictor"] == REGISTERED[outcome]
        assert set(shipped["correlations"][outcome]) >= {*RIVALS, REGISTERED[outcome]}


def test_unfinished_arms_are_left_out():
    arms = [
        {"id": str(i), "label": "", "contexts": ["answer"], "baseline": "base", "seeds": [0, 1]}
        for i in range(5)
    ]
    measured = {"answer": context(1.0)}
    assert prediction_of(arms, [0, 1, 2], measured, {}) is None  # a seed is missing
    assert prediction_of(arms, [0, 1], measured, {}) is None  # and here every outcome


TASK = {"type": "star_search", "arms": 3, "depth": 2}
SAMPLING = {"max_new_tokens": 24}
SOURCES = {"s": "sibling", "a": "answer", "w": "wrong_answer", "f": "feedback"}


def test_a_study_measures_trains_and_compares(tmp_path):
    spec = StudySpec.model_validate({
        "name": "toy", "question": "?", "about": "A test.", "seeds": [0],
        "run": {"model": "lab", "steps": 1, "problems_per_step": 2, "samples_per_problem": 4,
                "task": TASK, "sampling": SAMPLING},
        "evaluations": [
            {"name": kind, "kind": kind, "task": {**TASK, "split": kind}, "problems": 3, "samples": 2}
            for kind in ("in_domain", "ood")
        ],
        "preflights": [{"id": "before", "label": "Before", "settings": {
            "model": "lab", "task": {**TASK, "split": "before"}, "problems": 3, "samples": 3,
            "sampling": SAMPLING, "contexts": ["sibling", "answer", "feedback"]}}],
        "arms": [{"id": "base", "label": "base"}] + [
            {"id": k, "label": k, "method": "sdpo", "method_settings": {"context": {"source": v}}}
            for k, v in SOURCES.items()
        ],
    })  # fmt: skip
    page = run_study(spec, tmp_path, workers=2)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["runs_finished"] == report["runs_total"] == 6
    (found,) = report["preflights"]
    arms = found["prediction"]["arms"]
    assert [(a["id"], a["context"]) for a in arms] == [
        ("s", "sibling"), ("a", "answer"), ("w", "wrong-answer"), ("f", "feedback"),
    ]  # fmt: skip
    measured = found["report"]["contexts"]
    for arm in arms:
        gap = measured[arm["context"]]["richness"]["accuracy_gap"]["value"]
        assert arm["predictions"]["accuracy gap"] == gap
    html = page.read_text()
    assert 'id="correlations"' in html
    assert 'id="prediction-plot"' in html
