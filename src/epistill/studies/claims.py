"""From stored records to verdicts: is a claim reproduced, not reproduced, or not distinguishable?

Enters: the stores of a study and its claims. Leaves: per claim a verdict and the numbers behind it.
The rules are fixed before any result is seen: every comparison is paired on the same problems and
seeds, and decided by its 95 % interval alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epistill.evaluation.evaluate import per_problem
from epistill.evaluation.stats import Estimate, paired_bootstrap, t_interval
from epistill.store import RunStore
from epistill.studies.spec import Arm, Claim, ClaimComparison

REPRODUCED, CONTRADICTED, UNDECIDED = "reproduced", "not reproduced", "not distinguishable"
UNMEASURED = "not measured"

Stores = Mapping[str, Mapping[int, RunStore]]  # arm -> seed -> finished run


def judge(claim: Claim, stores: Stores) -> dict[str, Any]:
    """Verdict of a claim.

    Returns:
        id, text, verdict, and `numbers`: one entry per comparison, with both values, the paired
        difference with its interval, the expectation and its own verdict.
    """
    numbers = [_judge_one(test, stores) for test in claim.tests]
    verdicts = [number["verdict"] for number in numbers]
    if UNMEASURED in verdicts:
        verdict = UNMEASURED
    elif all(v == REPRODUCED for v in verdicts):
        verdict = REPRODUCED
    elif CONTRADICTED in verdicts:
        verdict = CONTRADICTED
    else:
        verdict = UNDECIDED
    return {"id": claim.id, "text": claim.text, "verdict": verdict, "numbers": numbers}


def _judge_one(test: ClaimComparison, stores: Stores) -> dict[str, Any]:
    found = {
        "measure": test.measure,
        "on": test.on,
        "arm": test.arm,
        "versus": test.versus,
        "versus_on": test.versus_on,
        "expect": test.expect,
        "value": None,
        "versus_value": None,
        "difference": None,
        "margin": None,
        "verdict": UNMEASURED,
    }
    compared = compare_arms(test, stores)
    if compared is None:
        return found
    ours, theirs, difference = compared
    margin = 0.0
    if test.expect.startswith("not_"):
        margin = test.margin if test.measure in ("score", "train_reward") else test.margin * theirs
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


def compare_arms(test: ClaimComparison, stores: Stores) -> tuple[float, float, Estimate] | None:
    """(value, versus value, paired difference); None where one side is not measured yet."""
    seeds = sorted(set(stores.get(test.arm, {})) & set(stores.get(test.versus, {})))
    if not seeds:
        return None
    if test.on == "training":
        ours = np.array([training_value(stores[test.arm][s], test.measure) for s in seeds])
        theirs = np.array([training_value(stores[test.versus][s], test.measure) for s in seeds])
        return float(ours.mean()), float(theirs.mean()), t_interval(ours - theirs)
    both = [
        [measured(stores[name][s], test.measure, on) for s in seeds]
        for name, on in ((test.arm, test.on), (test.versus, test.versus_on or test.on))
    ]
    if any(not table for side in both for table in side):
        return None
    shared = sorted(set.intersection(*(set(table) for side in both for table in side)))
    if not shared:
        return None
    mine, other = (table_of(side, shared) for side in both)
    return float(mine.mean()), float(other.mean()), paired_bootstrap(mine, other)


def differences_to_baseline(
    arm: Arm, measures: Mapping[str, tuple[str, str]], stores: Stores
) -> dict[str, Any] | None:
    """Arm minus its baseline, paired on problems and seeds; None where one is not there yet.

    Args:
        arm: One that has a baseline.
        measures: (measure, kind of evaluation set) by the names to give the differences.
        stores: Of every arm, by seed.
    """
    assert arm.baseline is not None
    found: dict[str, Any] = {}
    for name, (measure, on) in measures.items():
        test = ClaimComparison(
            measure=measure, on=on, arm=arm.id, versus=arm.baseline, expect="above"
        )
        compared = compare_arms(test, stores)
        if compared is None:
            return None
        found[name] = compared[2].as_dict()
    return found


def measured(store: RunStore, measure: str, on: str) -> dict[str, float]:
    """A measure per problem over all evaluation sets of a kind (or a probe's context)."""
    values: dict[str, float] = {}
    for name, summary in (store.result or {}).get("evaluations", {}).items():
        if summary["kind"] == on:
            rows = store.read_records("evaluations", f"final-{name}") or []
            values.update(per_problem(rows, measure))
    return values


def table_of(
    by_seed: Sequence[Mapping[str, float]], problems: Sequence[str]
) -> NDArray[np.float64]:
    """[seeds, problems]."""
    return np.array([[table[problem] for problem in problems] for table in by_seed])


def training_value(store: RunStore, measure: str) -> float:
    """A number about a training curve (`ClaimComparison.measure`)."""
    rows = store.metrics()
    if measure == "train_reward":
        return float(np.mean([row["reward"] for row in rows]))
    last = rows[-max(1, len(rows) // 10) :]
    return float(np.mean([row[measure.removeprefix("train_")] for row in last]))
