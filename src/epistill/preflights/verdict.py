"""A verdict in words, with its reasons; its thresholds come from the validation study alone.

Enters: one context's numbers and `thresholds.json`, which `epistill study lab-preflight` measured.
Leaves: a sentence per outcome. Where that study found no correlation between a measurement and an
outcome, the sentence says that preflight does not predict it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

# What a context's numbers are called as predictors: where they stand in its record.
PREDICTORS: Mapping[str, tuple[str, str]] = {
    "reweighted gain": ("reweighted", "gain_score"),
    "reweighted length": ("reweighted", "gain_length_tokens"),
    "marker mass change": ("pressure", "mass_change_share"),
    "pressure": ("pressure", "change_per_1k_tokens"),
    "accuracy gap": ("richness", "accuracy_gap"),
    "KL": ("pressure", "kl_nats_per_token"),
    "length": ("richness", "length_gap_tokens"),
}
# Outcome -> the prediction that was written down beforehand (docs/preflight.md), and its words.
REGISTERED: Mapping[str, str] = {
    "in-domain score": "reweighted gain",
    "OOD score": "marker mass change",
    "markers per 1,000 tokens": "pressure",
    "length in tokens": "reweighted length",
}
RIVALS = ("accuracy gap", "KL", "length")
SCORES = ("in-domain score", "OOD score")
UNDECIDED = "not distinguishable"
NEAREST = 3


def predictors_of(context: Mapping[str, Any]) -> dict[str, float | None]:
    """The predictors of one measured context; None where one was not measured."""
    found = _estimates(context)
    return {name: None if one is None else one["value"] for name, one in found.items()}


def _estimates(context: Mapping[str, Any]) -> dict[str, Mapping[str, Any] | None]:
    return {name: context[part][key] for name, (part, key) in PREDICTORS.items()}


@cache
def load_thresholds() -> dict[str, Any]:
    """The validation study's results, as committed with the package."""
    source = resources.files("epistill.preflights") / "thresholds.json"
    return json.loads(source.read_text(encoding="utf-8"))


def verdict_of(context: Mapping[str, Any], thresholds: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One entry per outcome: what to expect and why.

    Args:
        context: A context's record of the report.
        thresholds: `load_thresholds`.

    Returns:
        outcome, expectation ("rise likely" or "fall likely" where the whole interval lies on one
        side of the threshold, else "not distinguishable"; "not predicted", "not measured"),
        reason (a sentence).
    """
    estimates = _estimates(context)
    found: list[dict[str, Any]] = []
    for outcome, entry in thresholds["outcomes"].items():
        expectation, reason = _expected(entry, estimates[entry["predictor"]])
        found.append({"outcome": outcome, "expectation": expectation, "reason": reason})
    return found


def _expected(entry: Mapping[str, Any], found: Mapping[str, Any] | None) -> tuple[str, str]:
    """What to expect, and why."""
    name = entry["predictor"]
    if found is None:
        return "not measured", f"{name} could not be measured here"
    value, low, high = found["value"], found["low"], found["high"]
    rho = entry["rho"]
    evidence = f"rho {rho['value']:+.2f} [{rho['low']:+.2f}, {rho['high']:+.2f}]"
    near = sorted(entry["arms"], key=lambda arm: abs(arm["prediction"] - value))[:NEAREST]
    told = ", ".join(f"{arm['arm']} {arm['outcome']:+.3g}" for arm in near)
    ends = "without an interval" if low is None else f"[{low:+.3g}, {high:+.3g}]"
    reason = f"{name} {value:+.3g} {ends}; lab arms with the nearest values: {told}"
    threshold = entry["threshold"]
    if not entry["predicts"] or threshold is None:
        why = (
            f"in the validation study {name} did not order this outcome ({evidence})"
            if not entry["predicts"]
            else "no arm of the validation study went the other way, so there is no threshold"
        )
        return "not predicted", f"{why}; {reason}"
    line = entry["sign"] * threshold["value"]
    if low is None or low <= line <= high:
        why = f"its interval does not leave the threshold {line:+.3g} out"
        return UNDECIDED, f"{reason}; {why}; more problems make it narrower"
    rises = entry["sign"] * value > threshold["value"]
    chosen = ""
    if not entry["registered"]:
        failed = entry["registered_predictor"]
        chosen = f"; chosen after the results were seen, since {failed} did not predict it"
    if (near[0]["outcome"] > 0) != rises:
        reason += f" (the nearest, {near[0]['arm']}, went the other way)"
    return "rise likely" if rises else "fall likely", (
        f"{reason}; threshold {line:+.3g} sorts "
        f"{threshold['right']} of {threshold['of']} lab arms rightly "
        f"({threshold['left_out_right']} where their context was left out), {evidence}{chosen}"
    )


def headline(context: Mapping[str, Any]) -> str:
    """One context in one sentence: both scores, the gap, and what happens to the markers' mass."""
    expected = {v["outcome"]: v["expectation"] for v in context["verdict"]}
    scores = ", ".join(f"{name}: {expected[name]}" for name in SCORES if name in expected)
    values = predictors_of(context)
    gap, mass = values["accuracy gap"], values["marker mass change"]
    reasons = [] if gap is None else [f"accuracy gap {gap:+.2f}"]
    if mass is not None:
        verb = "lose" if mass < 0 else "gain"
        reasons.append(f"markers {verb} {100 * abs(mass):.0f} % of their mass")
    return f"{scores} ({'; '.join(reasons)})" if reasons else scores


def advice(contexts: Mapping[str, Mapping[str, Any]]) -> str:
    """The context to prefer: no fall of a score likely or open, then the most reweighted gain."""
    safe: list[tuple[float, str]] = []
    undecided = False
    for name, context in contexts.items():
        scores = {v["expectation"] for v in context["verdict"] if v["outcome"] in SCORES}
        gain = predictors_of(context)["reweighted gain"]
        if context["control"] or gain is None or "fall likely" in scores:
            continue
        if UNDECIDED in scores:
            undecided = True
        else:
            safe.append((gain, name))
    if safe:
        gain, name = max(safe)
        return f"prefer {name} (reweighted gain {gain:+.3f}, no fall of either score expected)"
    if undecided:
        return "these problems do not tell whether a context keeps both scores; ask more of them"
    return "no context here is expected to keep both scores"
