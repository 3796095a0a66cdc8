"""The shipped model's card: what it claims, and the measurement that a test repeats.

epistill lab card
"""

from __future__ import annotations

import json
from typing import Any

from epistill.config import EvalSet, SamplingConfig, StarSearchTask
from epistill.evaluation.evaluate import evaluate_model, summarise_evaluation
from epistill.lab.dials import measure_dials
from epistill.rollouts.in_process_engine import InProcessEngine
from epistill.rollouts.load_model import LAB_NAME, lab_directory, load_model
from epistill.tasks.grading import Grader

WORLDS = ((5, 3), (6, 3), (4, 4), (5, 1))
PROBLEMS, SAMPLES, SEED = 400, 8, 0


def read_card() -> dict[str, Any]:
    """card.json beside the weights."""
    return json.loads((lab_directory() / "card.json").read_text(encoding="utf-8"))


def measure_card(name: str = LAB_NAME) -> dict[str, Any]:
    """Score, length and density per world, at temperature 1.

    Args:
        name: The model to measure.
    """
    model = load_model(name)
    size: dict[str, Any] = {"problems": PROBLEMS, "samples": SAMPLES}
    card: dict[str, Any] = {**size, "temperature": 1.0, "split": "card"}
    drawn: Any = {"sampling": SamplingConfig(max_new_tokens=120), "seed": SEED}
    with Grader() as grader:
        for arms, depth in WORLDS:
            task = StarSearchTask(arms=arms, depth=depth, split="card")
            chosen = EvalSet(name=f"{arms}x{depth}", task=task, **size)
            rows = evaluate_model(InProcessEngine(model), chosen, grader, **drawn)
            estimates = summarise_evaluation(rows)
            for measure in ("score", "length_tokens", "density_per_1k_tokens"):
                card.setdefault(measure, {})[chosen.name] = round(estimates[measure].value, 4)
    card["dials"] = {name: round(value, 4) for name, value in measure_dials(model).items()}
    return card
