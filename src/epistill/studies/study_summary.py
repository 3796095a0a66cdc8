"""Everything a study's page shows, as one JSON document. `report/` draws it and adds nothing.

Enters: a `StudySpec` and the stores of its finished runs. Leaves: a dict for `report.json`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from epistill.environment import describe_environment
from epistill.evaluation.evaluate import MEASURES
from epistill.evaluation.stats import bootstrap_mean
from epistill.method_import import without_folders
from epistill.store import RunStore
from epistill.studies.claims import (
    Stores,
    compare_arms,
    differences_to_baseline,
    judge,
    measured,
    table_of,
)
from epistill.studies.prediction import prediction_of
from epistill.studies.spec import Arm, ClaimComparison, Grid, StudySpec, point_id

KINDS = ("in_domain", "ood")
CURVES = (
    "reward",
    "length_tokens",
    "density_per_1k_tokens",
    "entropy_nats_per_token",
    "distillation_nats_per_token",
    "truncated_share",
)
TRACES_SHOWN = 4
DIGITS = 6  # significant ones, of every number in report.json


def summarise_study(
    spec: StudySpec,
    stores: Stores,
    *,
    worlds: Mapping[str, Mapping[str, Any] | None],
    finished: int,
    total: int,
    seconds: float,
) -> dict[str, Any]:
    """Collect what the page needs; arms without a finished run are left out.

    Args:
        spec: The study.
        stores: Finished runs, arm -> seed -> store.
        worlds: Result of each of the study's worlds; None while it is not made.
        finished, total: Runs.
        seconds: Wall-clock over all sittings.
    """
    summary = {
        "format": 1,
        "name": spec.name,
        "question": spec.question,
        "about": spec.about,
        "note": spec.note,
        "seeds": list(spec.seeds),
        "runs_finished": finished,
        "runs_total": total,
        "duration_seconds": round(seconds, 1),
        "claims": [judge(claim, stores) for claim in spec.claims],
        "controls": [judge(claim, stores) for claim in spec.controls],
        "arms": [_arm(spec, arm, stores) for arm in spec.arms if arm.id in stores],
        "probes": [
            {
                "id": probe.id,
                "label": probe.label,
                "reference": probe.reference,
                "contexts": _probe_table(probe.contexts, stores[probe.id]),
            }
            for probe in spec.probes
            if probe.id in stores
        ],
        "preflights": [
            {
                "id": preflight.id,
                "label": preflight.label,
                "report": found,
                "prediction": prediction_of(spec, found["contexts"], stores),
            }
            for preflight in spec.preflights
            for store in stores.get(preflight.id, {}).values()
            if (found := store.result) is not None
        ],
        "surface": None if spec.grid is None else _surface(spec.grid, stores, worlds),
        "traces": _traces(spec, stores),
        "settings": without_folders(spec.model_dump(mode="json")),
        "environment": describe_environment(),
    }
    return _rounded(summary)


def _rounded(value: Any) -> Any:
    """The same with numbers at DIGITS: what is kept with the documentation stays small."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, Mapping):
        return {name: _rounded(entry) for name, entry in value.items()}
    return [_rounded(entry) for entry in value] if isinstance(value, list | tuple) else value


def _arm(spec: StudySpec, arm: Arm, stores: Stores) -> dict[str, Any]:
    runs = stores[arm.id]
    config = spec.config_of(arm, min(runs))
    return {
        "id": arm.id,
        "label": arm.label,
        **without_folders({"method": arm.method}),
        "coverage": arm.coverage,
        "series": arm.series,
        "seeds": sorted(runs),
        "learning_rate": config.learning_rate or config.method.learning_rate,
        "baseline": arm.baseline,
        "evaluations": {kind: _estimates(runs, kind) for kind in KINDS},
        "difference_to_baseline": {kind: _differences(arm, kind, stores) for kind in KINDS},
        "sets": _sets(runs),
        # The arms of a grid are drawn as a surface, not as lines.
        "curves": {} if spec.grid is not None else _curves(runs),
        "evaluation_curve": {
            str(seed): store.read_records("evaluations", "curve") or []
            for seed, store in sorted(runs.items())
        },
        "seconds": round(
            sum(
                row["rollout_seconds"] + row["update_seconds"]
                for store in runs.values()
                for row in store.timing()
            ),
            1,
        ),
    }


def _estimates(runs: Mapping[int, RunStore], kind: str) -> dict[str, Any] | None:
    """Every measure over the pooled sets of a kind, seeds and problems resampled."""
    found: dict[str, Any] = {}
    for measure in MEASURES:
        by_seed = [measured(store, measure, kind) for _, store in sorted(runs.items())]
        if shared := sorted(set.intersection(*(set(table) for table in by_seed))):
            found[measure] = bootstrap_mean(table_of(by_seed, shared)).as_dict()
    return found or None


def _differences(arm: Arm, kind: str, stores: Stores) -> dict[str, Any] | None:
    """Arm minus its baseline, paired on problems and seeds; None where it has none."""
    if arm.baseline is None or arm.baseline == arm.id:
        return None
    measures = ("score", "length_tokens", "density_per_1k_tokens")
    return differences_to_baseline(arm, {name: (name, kind) for name in measures}, stores)


def _sets(runs: Mapping[int, RunStore]) -> dict[str, Any]:
    """avg@k, pass@k and maj@k of every evaluation set and seed, as the runs recorded them."""
    return {
        str(seed): (store.result or {}).get("evaluations", {})
        for seed, store in sorted(runs.items())
    }


def _curves(runs: Mapping[int, RunStore]) -> dict[str, Any]:
    """Per measure: steps and one list of values per seed; None where a step has no such number.

    What an SFT step sees are its filtered traces, not the student: those curves are left out.
    """
    rows = {
        seed: [row for row in store.metrics() if row["on_policy"]]
        for seed, store in sorted(runs.items())
    }
    # A seed that its monitor stopped has fewer rows than the others.
    steps = [row["step"] for row in max(rows.values(), key=len, default=[])]
    return {
        measure: {
            "steps": steps,
            "seeds": {
                str(s): [row.get(measure) for row in r] + [None] * (len(steps) - len(r))
                for s, r in rows.items()
            },
        }
        for measure in CURVES
        if any(row.get(measure) is not None for r in rows.values() for row in r)
    }


def _probe_table(contexts: Sequence[str], runs: Mapping[int, RunStore]) -> dict[str, Any]:
    """Per context every measure, and its ratio to the bare question."""
    table: dict[str, Any] = {}
    for context in contexts:
        values = _estimates(runs, context)
        if values is not None:
            table[context] = values
    for values in table.values():
        for measure in ("length_tokens", "density_per_1k_tokens"):
            bare = table.get("none", {}).get(measure)
            values[f"{measure}_ratio_to_none"] = (
                values[measure]["value"] / bare["value"] if bare and bare["value"] else None
            )
    return table


def _surface(
    grid: Grid, stores: Stores, worlds: Mapping[str, Mapping[str, Any] | None]
) -> dict[str, Any]:
    """Differences of each pair of arms at every grid point whose runs are finished."""
    found: dict[str, Any] = {"dials": {k: list(v) for k, v in grid.dials.items()}, "pairs": {}}
    for label, (ours, theirs) in grid.pairs.items():
        points = []
        for dials in grid.points():
            name = point_id(dials)
            entry: dict[str, Any] = {"nominal": dials, "measured": None}
            if (world := worlds.get(name)) is not None:
                entry["measured"] = world["measured"]
            for measure in ("score", "density_per_1k_tokens", "length_tokens"):
                test = ClaimComparison(
                    measure=measure,
                    on="ood",
                    arm=f"{name}-{ours}",
                    versus=f"{name}-{theirs}",
                    expect="above",
                )
                compared = compare_arms(test, stores)
                entry[measure] = None if compared is None else compared[2].as_dict()
            points.append(entry)
        found["pairs"][label] = points
    return found


def _traces(spec: StudySpec, stores: Stores) -> list[dict[str, Any]]:
    """Responses to the same problems from every arm: the first ones, not the best ones."""
    seed = spec.seeds[0]
    by_problem: dict[str, dict[str, Any]] = {}
    for arm in spec.arms:
        store = stores.get(arm.id, {}).get(seed)
        for name, summary in (
            ((store.result if store else None) or {}).get("evaluations", {}).items()
        ):
            assert store is not None
            rows = store.read_records("evaluations", f"final-{name}") or []
            kept = [row for row in rows if row["text"] is not None][:TRACES_SHOWN]
            for row in kept:
                entry = by_problem.setdefault(
                    row["problem_id"],
                    {"problem_id": row["problem_id"], "set": name, "kind": summary["kind"]}
                    | {"responses": []},
                )
                entry["responses"].append(
                    {
                        "arm": arm.id,
                        "text": row["text"],
                        "correct": row["correct"],
                        "n_tokens": row["n_tokens"],
                        "n_markers": row["n_markers"],
                    }
                )
    return [entry for entry in by_problem.values() if len(entry["responses"]) > 1]
