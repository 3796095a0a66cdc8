"""Does preflight predict what training did? Rank correlations over arms, with intervals.

Enters: the preflight's record and the outcomes of the arms. Leaves: a prediction and an outcome per
arm, Spearman's rho of every predictor with every outcome, and the threshold between arms that rose
and arms that fell. Nothing is fitted to the outcomes but that threshold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from epistill.evaluation.intervals import Floats
from epistill.evaluation.stats import RESAMPLES, Estimate
from epistill.preflights.verdict import REGISTERED, RIVALS, predictors_of
from epistill.seeds import derive_seed
from epistill.studies.claims import differences_to_baseline
from epistill.studies.outcomes import Runs

JOINT = "joint"
# Outcome -> (measure, on).
OUTCOMES: Mapping[str, tuple[str, str]] = {
    "in-domain score": ("score", "in_domain"),
    "OOD score": ("score", "ood"),
    "markers per 1,000 tokens": ("density_per_1k_tokens", "in_domain"),
    "length in tokens": ("length_tokens", "in_domain"),
}


def prediction_of(
    arms: Sequence[Mapping[str, Any]], seeds: Sequence[int], measured: Mapping[str, Any], runs: Runs
) -> dict[str, Any] | None:
    """Everything about the agreement of predictions and outcomes.

    Args:
        arms: Of the report: id, label, baseline, seeds, `contexts` (names of the teacher's).
        seeds: Of the study.
        measured: The preflight's contexts.
        runs: Outcomes of finished runs.

    Returns:
        `arms` (id, label, context, seeds, predictions, outcomes with intervals), `correlations`
        (outcome -> predictor -> rho over arms, rho_contexts over contexts), `outcomes` (what the
        verdicts need, see `preflights.verdict`); None before four arms have all their seeds.
    """
    rows = [row for arm in arms if (row := _row(arm, seeds, measured, runs)) is not None]
    if len(rows) < 4:
        return None
    _add_joint(rows)
    correlations: dict[str, Any] = {}
    outcomes: dict[str, Any] = {}
    contexts = [row["context"] for row in rows]
    for outcome, registered in REGISTERED.items():
        y = np.array([row["outcomes"][outcome]["value"] for row in rows])
        found = correlations[outcome] = {}
        for predictor in (registered, JOINT, *RIVALS):
            x = np.array([row["predictions"][predictor] for row in rows])
            found[predictor] = {
                "registered": predictor == registered,
                "rho": spearman(x, y, [row["id"] for row in rows]).as_dict(),
                "rho_contexts": spearman(x, y, contexts).as_dict(),
            }
        chosen = _chosen(registered, found)
        x = np.array([row["predictions"][chosen] for row in rows])
        sign = -1 if _predicts(found, chosen) and found[chosen]["rho"]["value"] < 0 else 1
        outcomes[outcome] = {
            "predictor": chosen,
            "registered": chosen == registered,
            "registered_predictor": registered,
            "registered_rho": found[registered]["rho_contexts"],
            "sign": sign,
            "rho": found[chosen]["rho_contexts"],
            "predicts": _predicts(found, chosen),
            # Predictions are turned by `sign`: a larger value means a larger outcome.
            "threshold": threshold_of(sign * x, y, contexts),
            "arms": [
                {"arm": row["id"], "prediction": a, "outcome": b}
                for row, a, b in zip(rows, x.tolist(), y.tolist(), strict=True)
            ],
        }
    return {"arms": rows, "correlations": correlations, "outcomes": outcomes}


def _predicts(correlations: Mapping[str, Any], name: str) -> bool:
    rho = correlations[name]["rho_contexts"]
    return rho["low"] is not None and (rho["low"] > 0 or (name in RIVALS and rho["high"] < 0))


def _chosen(registered: str, correlations: Mapping[str, Any]) -> str:
    """What verdicts use: the registered prediction, or, where it failed, a rival that did not.

    A rival was chosen after the results were seen, and says so (`registered` false).
    """
    able = [name for name in RIVALS if _predicts(correlations, name)]
    if _predicts(correlations, registered) or not able:
        return registered
    return max(able, key=lambda name: abs(correlations[name]["rho"]["value"]))


def _row(
    arm: Mapping[str, Any], seeds: Sequence[int], measured: Mapping[str, Any], runs: Runs
) -> dict[str, Any] | None:
    """Predictions and outcomes of an arm; None for one that is no teacher's, or is unfinished."""
    name = next((name for name in arm["contexts"] if name in measured), None)
    if name is None or arm["baseline"] is None or set(arm["seeds"]) != set(seeds):
        return None
    outcomes = differences_to_baseline(arm["id"], arm["baseline"], OUTCOMES, runs)
    predictions = predictors_of(measured[name])
    if outcomes is None or None in predictions.values():
        return None
    return {
        "id": arm["id"],
        "label": arm["label"],
        "context": name,
        "seeds": arm["seeds"],
        "predictions": predictions,
        "outcomes": outcomes,
    }


def _add_joint(rows: Sequence[dict[str, Any]]) -> None:
    """Sum of the z-scores, over arms, of the reweighted gain and of the marker mass change."""
    total = np.zeros(len(rows))
    for name in ("reweighted gain", "marker mass change"):
        values = np.array([row["predictions"][name] for row in rows])
        total += (values - values.mean()) / (values.std() or 1.0)
    for row, value in zip(rows, total.tolist(), strict=True):
        row["predictions"][JOINT] = value


def spearman(x: Floats, y: Floats, clusters: Sequence[str]) -> Estimate:
    """Spearman's rho, ties averaged, with a 95 % percentile interval over resampled clusters.

    Args:
        x, y: [n].
        clusters: [n] what is resampled together: each arm, or all arms of a context. Resamples
            without variation are left out; with fewer than half of them left there is no interval.
    """
    found = np.concatenate([_rho(x[rows], y[rows]) for rows in _draws(tuple(clusters))])
    found = found[~np.isnan(found)]
    value, count = float(_rho(x[None], y[None])[0]), len(set(clusters))
    if np.isnan(value) or len(found) < RESAMPLES / 2:
        return Estimate(0.0 if np.isnan(value) else value, None, None, count)
    low, high = np.quantile(found, [0.025, 0.975])
    return Estimate(value, float(low), float(high), count)


@lru_cache(maxsize=4)
def _draws(clusters: tuple[str, ...]) -> list[NDArray[np.int64]]:
    """Rows of every resample, [resamples of one length, length] each, so that ranks are batched."""
    members = [np.flatnonzero(np.array(clusters) == name) for name in dict.fromkeys(clusters)]
    rng = np.random.default_rng(derive_seed("spearman", 0, len(members)))
    by_length: dict[int, list[NDArray[np.int64]]] = {}
    for drawn in rng.integers(len(members), size=(RESAMPLES, len(members))):
        rows = np.concatenate([members[k] for k in drawn])
        by_length.setdefault(len(rows), []).append(rows)
    return [np.stack(rows) for rows in by_length.values()]


def _rho(x: Floats, y: Floats) -> Floats:
    """[n] correlations of ranks of [n, rows]; NaN where one side does not vary."""
    a, b = rankdata(x, axis=1), rankdata(y, axis=1)
    a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
    scale = np.sqrt((a**2).sum(1) * (b**2).sum(1))
    with np.errstate(invalid="ignore"):
        return (a * b).sum(1) / np.where(scale == 0, np.nan, scale)


def threshold_of(x: Floats, y: Floats, contexts: Sequence[str]) -> dict[str, Any] | None:
    """The prediction that best sorts outcomes above 0 from those below; None where all agree.

    Returns:
        value (of the signed prediction); right of `of` arms that it sorts rightly; left_out_right,
        the same with each context sorted by the threshold of the others (a context whose others all
        agree counts as wrong).
    """

    def right(cut: float | None, here: Any) -> int:
        return 0 if cut is None else int(((x[here] > cut) == (y[here] > 0)).sum())

    cut = _cut(x, y)
    if cut is None:
        return None
    by_context = [np.array(contexts) == name for name in dict.fromkeys(contexts)]
    left_out = sum(right(_cut(x[~here], y[~here]), here) for here in by_context)
    return {"value": cut, "right": right(cut, ...), "of": len(x), "left_out_right": left_out}


def _cut(x: Floats, y: Floats) -> float | None:
    """Midpoint between neighbouring predictions of the best balanced accuracy."""
    up = y > 0
    if up.all() or not up.any():
        return None
    values = np.unique(x)
    if len(values) < 2:
        return None
    middles = (values[1:] + values[:-1]) / 2
    scores = [((x > m)[up].mean() + (x <= m)[~up].mean()) / 2 for m in middles]
    return float(middles[int(np.argmax(scores))])
