"""Everything a study's page shows, as one JSON document. `report/` draws it and adds nothing.

Enters: a `StudySpec` and the stores of its finished runs. Leaves: a dict for `report.json`: what
the runs measured, problem by problem, and the estimates that follow from it (`with_estimates`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from epistill.environment import codes_of, describe_environment
from epistill.evaluation.evaluate import MEASURES
from epistill.evaluation.stats import bootstrap_mean
from epistill.method_import import without_folders
from epistill.store import RunStore
from epistill.studies.claims import aligned_tables, differences_to_baseline, judge, pooled
from epistill.studies.outcomes import Runs, Stores, outcomes_of, packed, unpacked
from epistill.studies.prediction import prediction_of
from epistill.studies.run_arm import summary_of
from epistill.studies.spec import Arm, Claim, Grid, StudySpec, point_id
from epistill.teacher.context import NAMED_CONTEXTS

KINDS, HARDER = ("in_domain", "ood"), ("hard", "budget")
CURVES = (
    "reward",
    "length_tokens",
    "density_per_1k_tokens",
    "entropy_nats_per_token",
    "distillation_nats_per_token",
    "truncated_share",
)
COMPARED = ("score", "length_tokens", "density_per_1k_tokens")
TRACES_SHOWN = 4
DIGITS = 6  # significant ones, of every number but the outcomes


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
    measured_before = {preflight.id for preflight in spec.preflights}
    runs = {
        name: {seed: outcomes_of(store) for seed, store in sorted(by_seed.items())}
        for name, by_seed in stores.items()
        if name not in measured_before
    }
    summary = {
        "format": 1,
        **{name: getattr(spec, name) for name in ("name", "question", "about", "note", "seeds")},
        "runs_finished": finished,
        "runs_total": total,
        "duration_seconds": round(seconds, 1),
        "arms": [_arm(spec, arm, stores[arm.id]) for arm in spec.arms if arm.id in stores],
        "probes": [
            {name: getattr(probe, name) for name in ("id", "label", "reference")}
            for probe in spec.probes
            if probe.id in stores
        ],
        "preflights": [
            {"id": preflight.id, "label": preflight.label, "report": store.result}
            for preflight in spec.preflights
            for store in stores.get(preflight.id, {}).values()
        ],
        "worlds": {name: found["measured"] for name, found in worlds.items() if found is not None},
        "traces": _traces(spec, stores),
        "settings": without_folders(spec.model_dump(mode="json")),
        "environment": {**describe_environment(), "codes": _codes(stores)},
    }
    return with_estimates({**_rounded(summary), "outcomes": packed(runs)})


def with_estimates(report: Mapping[str, Any]) -> dict[str, Any]:
    """The report with every estimate, difference and verdict made from its outcomes, as of now."""
    settings, runs = report["settings"], unpacked(report["outcomes"])
    seeds, grid = report["seeds"], settings["grid"]
    arms = [
        {
            **arm,
            "evaluations": {
                kind: found
                for kind in (*KINDS, *HARDER)
                if (found := _estimates(runs[arm["id"]], kind)) is not None or kind in KINDS
            },
            "difference_to_baseline": {
                kind: _differences(arm["id"], arm["baseline"], kind, runs) for kind in KINDS
            },
            # avg@k, pass@k and maj@k of every evaluation set
            "sets": {
                str(seed): {n: summary_of(one, one["kind"]) for n, one in run["sets"].items()}
                for seed, run in runs[arm["id"]].items()
            },
        }
        for arm in report["arms"]
    ]
    contexts = {probe["id"]: probe["contexts"] for probe in settings["probes"]}
    found = {
        **{
            part: [judge(Claim.model_validate(claim), runs) for claim in settings[part]]
            for part in ("claims", "controls")
        },
        "arms": arms,
        "probes": [
            {**probe, "contexts": _probe_table(contexts[probe["id"]], runs[probe["id"]])}
            for probe in report["probes"]
        ],
        "preflights": [
            {**one, "prediction": prediction_of(arms, seeds, one["report"]["contexts"], runs)}
            for one in report["preflights"]
        ],
        "surface": grid and _surface(Grid.model_validate(grid), runs, report["worlds"]),
    }
    return {**report, **_rounded(found)}


def _codes(stores: Stores) -> list[str]:
    """Versions of the code that the runs began or went on with."""
    found = (store.environment for by_seed in stores.values() for store in by_seed.values())
    return sorted({code for environment in found for code in codes_of(environment)})


def _rounded(value: Any) -> Any:
    """The same with numbers at DIGITS: what is kept with the documentation stays small."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, Mapping):
        return {name: _rounded(entry) for name, entry in value.items()}
    return [_rounded(entry) for entry in value] if isinstance(value, list | tuple) else value


def _arm(spec: StudySpec, arm: Arm, runs: Mapping[int, RunStore]) -> dict[str, Any]:
    config = spec.config_of(arm, min(runs))
    traces = config.method.traces
    context = config.method.context if traces is None else traces.context
    named = [name for name, one in NAMED_CONTEXTS.items() if one == context]
    times = [row for store in runs.values() for row in store.timing()]
    return {
        "id": arm.id,
        "label": arm.label,
        **without_folders({"method": arm.method}),
        "coverage": arm.coverage,
        "series": arm.series,
        "seeds": sorted(runs),
        "learning_rate": config.learning_rate or config.method.learning_rate,
        "baseline": arm.baseline,
        "contexts": (named or [context.source]) if arm.method is not None else [],
        # The arms of a grid are drawn as a surface, not as lines.
        "curves": {} if spec.grid is not None else _curves(runs),
        "evaluation_curve": {str(seed): store.curve() for seed, store in sorted(runs.items())},
        "seconds": round(sum(row["rollout_seconds"] + row["update_seconds"] for row in times), 1),
    }


def _estimates(runs: Mapping[int, Mapping[str, Any]], kind: str) -> dict[str, Any] | None:
    """Every measure over the pooled sets of a kind, seeds and problems resampled."""
    found: dict[str, Any] = {}
    for measure in MEASURES:
        table = aligned_tables([[pooled(run, measure, kind) for run in runs.values()]])
        if table is not None:
            found[measure] = bootstrap_mean(table[0]).as_dict()
    return found or None


def _differences(arm: str, baseline: str | None, kind: str, runs: Runs) -> dict[str, Any] | None:
    """What is COMPARED, arm minus its baseline; None where it has none, or one is not there yet."""
    if baseline is None or baseline == arm:
        return None
    return differences_to_baseline(arm, baseline, {name: (name, kind) for name in COMPARED}, runs)


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


def _probe_table(contexts: list[str], runs: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """Per context every measure, and its ratio to the bare question."""
    table = {name: found for name in contexts if (found := _estimates(runs, name)) is not None}
    for values in table.values():
        for measure in ("length_tokens", "density_per_1k_tokens"):
            bare = table.get("none", {}).get(measure)
            values[f"{measure}_ratio_to_none"] = (
                values[measure]["value"] / bare["value"] if bare and bare["value"] else None
            )
    return table


def _surface(grid: Grid, runs: Runs, worlds: Mapping[str, Any]) -> dict[str, Any]:
    """Differences of each pair of arms at every grid point whose runs are finished."""
    return {
        "dials": {name: list(values) for name, values in grid.dials.items()},
        "pairs": {
            label: [
                {
                    "nominal": dials,
                    "measured": worlds.get(name := point_id(dials)),
                    **dict.fromkeys(COMPARED),
                    **(_differences(f"{name}-{ours}", f"{name}-{theirs}", "ood", runs) or {}),
                }
                for dials in grid.points()
            ]
            for label, (ours, theirs) in grid.pairs.items()
        },
    }


def _traces(spec: StudySpec, stores: Stores) -> list[dict[str, Any]]:
    """Responses to the same problems from every arm: the first ones, not the best ones."""
    by_problem: dict[tuple[str, str], dict[str, Any]] = {}  # two sets may ask the same problem
    shown = ("text", "correct", "n_tokens", "n_markers")
    for arm in spec.arms:
        store = stores.get(arm.id, {}).get(spec.seeds[0])
        result = (store.result if store else None) or {}
        for name, summary in result.get("evaluations", {}).items():
            assert store is not None
            rows = store.read_evaluation(f"final-{name}") or []
            for row in [row for row in rows if row["text"] is not None][:TRACES_SHOWN]:
                entry = {"problem_id": row["problem_id"], "set": name, "kind": summary["kind"]}
                entry = by_problem.setdefault((name, row["problem_id"]), {**entry, "responses": []})
                response = {"arm": arm.id, **{column: row[column] for column in shown}}
                entry["responses"].append(response)
    return [entry for entry in by_problem.values() if len(entry["responses"]) > 1]


def report_line(report: Mapping[str, Any]) -> str:
    """On one line: a third of the size, and the documentation keeps it."""
    return json.dumps(report, separators=(",", ":"), allow_nan=False, ensure_ascii=False) + "\n"
