"""From outcomes to verdicts: is a claim reproduced, not reproduced, or not distinguishable?

Enters: the outcomes of a study's runs and its claims. Leaves: per claim a verdict and the numbers
behind it. The rules are fixed before any result is seen: every comparison is paired on the same
problems and seeds, and decided by its 95 % interval alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from epistill.evaluation.evaluate import per_problem
from epistill.evaluation.intervals import Floats
from epistill.evaluation.stats import Estimate, paired_bootstrap, t_interval
from epistill.studies.outcomes import Runs
from epistill.studies.spec import Claim, ClaimComparison

REPRODUCED, CONTRADICTED, UNDECIDED = "reproduced", "not reproduced", "not distinguishable"
UNMEASURED = "not measured"


def judge(claim: Claim, runs: Runs) -> dict[str, Any]:
    """Verdict of a claim.

    Returns:
        id, text, verdict, and `numbers`: one entry per comparison, with both values, the paired
        difference with its interval, the expectation and its own verdict.
    """
    numbers = [_judge_one(test, runs) for test in claim.tests]
    verdicts = [number["verdict"] for number in numbers]
    decided = (v for v in (UNMEASURED, CONTRADICTED, UNDECIDED) if v in verdicts)
    return {
        "id": claim.id,
        "text": claim.text,
        "verdict": next(decided, REPRODUCED),
        "numbers": numbers,
    }


def _judge_one(test: ClaimComparison, runs: Runs) -> dict[str, Any]:
    found = test.model_dump(include={"measure", "on", "arm", "versus", "versus_on", "expect"})
    compared = compare_arms(test, runs)
    if compared is None:
        nothing = dict.fromkeys(("value", "versus_value", "difference", "margin"))
        return {**found, **nothing, "verdict": UNMEASURED}
    ours, theirs, difference = compared
    margin = test.margin if test.expect.startswith("not_") else 0.0
    if test.measure not in ("score", "train_reward", "train_early_reward"):
        margin *= theirs
    return {
        **found,
        "value": ours,
        "versus_value": theirs,
        "difference": difference.as_dict(),
        "margin": margin,
        "verdict": decide(difference, test.expect, margin),
    }


def decide(difference: Estimate, expect: str, margin: float) -> str:
    """One comparison's verdict from its interval (rules: `ClaimComparison.expect`)."""
    low, high = difference.low, difference.high
    if low is None or high is None:
        return UNDECIDED
    if expect in ("below", "not_above"):
        low, high = -high, -low
    if expect.startswith("not_"):
        return REPRODUCED if low > -margin else CONTRADICTED if high < -margin else UNDECIDED
    return REPRODUCED if low > 0 else CONTRADICTED if high < 0 else UNDECIDED


def compare_arms(test: ClaimComparison, runs: Runs) -> tuple[float, float, Estimate] | None:
    """(value, versus value, paired difference); None where one side is not measured yet."""
    sides = [runs.get(name, {}) for name in (test.arm, test.versus)]
    seeds = sorted(set.intersection(*(set(side) for side in sides)))
    if not seeds:
        return None
    if test.on == "training":
        values = [[side[s]["training"].get(test.measure) for s in seeds] for side in sides]
        if any(value is None for of_side in values for value in of_side):
            return None
        mine, other = np.array(values, dtype=np.float64)
        return float(mine.mean()), float(other.mean()), t_interval(mine - other)
    both = aligned_tables(
        [
            [pooled(side[s], test.measure, on) for s in seeds]
            for side, on in zip(sides, (test.on, test.versus_on or test.on), strict=True)
        ]
    )
    if both is None:
        return None
    mine, other = both
    return float(mine.mean()), float(other.mean()), paired_bootstrap(mine, other)


def differences_to_baseline(
    arm: str, baseline: str, measures: Mapping[str, tuple[str, str]], runs: Runs
) -> dict[str, Any] | None:
    """Arm minus its baseline, paired on problems and seeds; None where one is not there yet.

    Args:
        arm, baseline: Their ids.
        measures: (measure, kind of evaluation set) by the names to give the differences.
        runs: Of every arm, by seed.
    """
    found: dict[str, Any] = {}
    for name, (measure, on) in measures.items():
        test = ClaimComparison(measure=measure, on=on, arm=arm, versus=baseline, expect="above")
        compared = compare_arms(test, runs)
        if compared is None:
            return None
        found[name] = compared[2].as_dict()
    return found


def pooled(run: Mapping[str, Any], measure: str, on: str) -> dict[str, float]:
    """A measure per problem over all evaluation sets of a kind (or a probe's context)."""
    sets = [found for found in run["sets"].values() if found["kind"] == on]
    return {name: value for one in sets for name, value in per_problem(one, measure).items()}


def aligned_tables(sides: Sequence[Sequence[Mapping[str, float]]]) -> list[Floats] | None:
    """[seeds, problems] of each side, over the problems that all have; None where there are none.

    Args:
        sides: Of each, problem -> value for every seed.
    """
    shared = sorted(set.intersection(*(set(table) for side in sides for table in side)))
    if not shared:
        return None
    return [np.array([[table[p] for p in shared] for table in side]) for side in sides]
