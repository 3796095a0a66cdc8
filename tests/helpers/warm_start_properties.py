"""What a warm start must be able to do, measured: docs/smollm2.md says which numbers are wanted.

Enters: a model. Leaves: plain numbers, for a card and for the test that measures them again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from epistill.config import NumberPairsTask, SamplingConfig
from epistill.evaluation.evaluate import (
    eval_rows,
    per_problem,
    problem_outcomes,
    summarise_outcomes,
)
from epistill.evaluation.stats import bootstrap_mean
from epistill.rollouts.collect import sample_and_grade
from epistill.rollouts.in_process_engine import InProcessEngine
from epistill.rollouts.model import LanguageModel
from epistill.tasks.coverage import load_eval_problems
from epistill.tasks.grading import Grader
from epistill.teacher.context import NAMED_CONTEXTS, teacher_messages

HELD_OUT = NumberPairsTask(split="test")
OOD: Mapping[str, NumberPairsTask] = {
    "5x20": NumberPairsTask(numbers=5, split="test"),
    "4x60": NumberPairsTask(largest=60, split="test"),
    "difference": NumberPairsTask(operation="difference", split="test"),
    "story": NumberPairsTask(wording="story", split="test"),
}
SOLUTION = "solution"
SAMPLES = 2
MEASURES = ("score", "length_tokens", "density_per_1k_tokens", "verified_share", "truncated_share")


def measure_properties(
    model: LanguageModel, *, problems: int = 96, seed: int = 0, ood: bool = True
) -> dict[str, Any]:
    """The held-out set with and without a worked solution, and half as many problems of each other.

    Args:
        model: The warm start.
        problems: Of the held-out set; 2 samples each, temperature 1, 128 new tokens.
        seed: Names the draws.
        ood: Measure these sets too.

    Returns:
        `MEASURES` by set, `calculating_share` (responses with a calculation), and `solution_gain`:
        what a worked solution adds to the score, paired by problem, with its 95 % interval.
    """
    engine, found, scores = InProcessEngine(model), dict[str, Any](), dict[str, Any]()
    sampling = SamplingConfig(temperature=1.0, max_new_tokens=128)
    sets = [("held-out", HELD_OUT, problems), (SOLUTION, HELD_OUT, problems)]
    sets += [(name, task, problems // 2) for name, task in OOD.items()] if ood else []
    with Grader() as grader:
        for name, task, count in sets:
            asked = [
                (
                    problem,
                    problem.messages
                    if name != SOLUTION
                    else teacher_messages(problem, problem.solution, NAMED_CONTEXTS[SOLUTION]),
                )
                for problem in load_eval_problems(task, count)
            ]
            graded = sample_and_grade(
                engine, asked, grader, samples=SAMPLES, sampling=sampling, seed=seed
            )
            outcomes = problem_outcomes(eval_rows(graded, keep_texts=0))
            summary = summarise_outcomes(outcomes)
            found[name] = {measure: round(summary[measure].value, 4) for measure in MEASURES}
            calculating = [" = " in item.rollout.text for item in graded]
            found[name]["calculating_share"] = round(float(np.mean(calculating)), 4)
            scores[name] = per_problem(outcomes, "score")
    gains = [scores[SOLUTION][one] - score for one, score in scores["held-out"].items()]
    gain = bootstrap_mean(np.array(gains)).as_dict()
    size = {"problems": problems, "samples": SAMPLES, "seed": seed, "sets": found}
    return {**size, "solution_gain": gain}
