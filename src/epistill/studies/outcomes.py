"""What the finished runs of a study measured, problem by problem: enough for every interval.

Enters: the stores of finished runs. Leaves: plain data, small enough for report.json, from which
all its estimates can be made again without training (`study_summary.with_estimates`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from epistill.errors import damaged
from epistill.evaluation.evaluate import problem_outcomes
from epistill.store import RunStore
from epistill.studies.check_names import EARLY, TRAINING_MEASURES

Stores = Mapping[str, Mapping[int, RunStore]]  # arm -> seed -> finished run
# arm -> seed -> `training` (measure -> number) and `sets` (name -> kind and `problem_outcomes`).
Runs = Mapping[str, Mapping[int, Mapping[str, Any]]]


def outcomes_of(store: RunStore) -> dict[str, Any]:
    """Of one finished run."""
    sets: dict[str, Any] = {}
    for name, summary in (store.result or {}).get("evaluations", {}).items():
        rows = store.read_evaluation(f"final-{name}")
        if not rows:
            path = store.folder / "evaluations" / f"final-{name}.jsonl"
            raise damaged(path, "it has no records, but the result is of some", store.folder)
        sets[name] = {"kind": summary["kind"], **problem_outcomes(rows)}
    return {"training": _training(store.metrics()), "sets": sets}


def _training(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Numbers about a training curve (`ClaimComparison.measure`)."""
    found: dict[str, float] = {}
    for measure in TRAINING_MEASURES if rows else ():
        column = measure.removeprefix("train_")
        last = rows if column == "reward" else rows[-max(1, len(rows) // 10) :]
        if column == "early_reward":
            column, last = "reward", rows[:EARLY]
        values = [row[column] for row in last if row.get(column) is not None]
        if len(values) == len(last):
            found[measure] = float(np.mean(values))
    return found


def packed(runs: Runs) -> dict[str, Any]:
    """As JSON that stays small: lists of problems once, columns of single digits as one string.

    Shares (where in its reasoning a response commits) have four decimals, less than a word.
    """
    lists: dict[tuple[str, ...], int] = {}

    def column(name: str, values: Any) -> Any:
        if name == "kind":
            return values
        if name == "problem_id":
            return lists.setdefault(tuple(values), len(lists))
        whole = [int(value) if value == int(value) else round(value, 4) for value in values]
        digits = all(isinstance(value, int) and 0 <= value <= 9 for value in whole)
        return "".join(map(str, whole)) if digits else whole

    return {"runs": _changed(runs, str, column), "problems": [list(names) for names in lists]}


def unpacked(record: Mapping[str, Any]) -> Runs:
    """What `packed` was given."""

    def column(name: str, values: Any) -> Any:
        if name == "kind":
            return values
        if name == "problem_id":
            return record["problems"][values]
        return [int(digit) for digit in values] if isinstance(values, str) else values

    return _changed(record["runs"], int, column)


def _changed(
    runs: Mapping[str, Mapping[Any, Mapping[str, Any]]],
    seed: Callable[[Any], Any],
    column: Callable[[str, Any], Any],
) -> dict[str, Any]:
    def changed(one: Mapping[str, Any]) -> dict[str, Any]:
        return {name: column(name, values) for name, values in one.items()}

    return {
        arm: {
            seed(s): {**run, "sets": {name: changed(one) for name, one in run["sets"].items()}}
            for s, run in by_seed.items()
        }
        for arm, by_seed in runs.items()
    }
