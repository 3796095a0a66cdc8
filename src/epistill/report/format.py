"""Names of measures and numbers with intervals, for pages and terminals. Imports nothing heavy."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

CURVE_TITLES = {
    "reward": "score on training problems",
    "length_tokens": "length (tokens)",
    "density_per_1k_tokens": "markers per 1,000 tokens",
    "entropy_nats_per_token": "entropy (nats per token)",
    "distillation_nats_per_token": "divergence from the teacher (nats per token)",
    "truncated_share": "share cut at the limit",
}
MEASURE_TITLES = {
    "score": "score",
    "length_tokens": "length (tokens)",
    "density_per_1k_tokens": "markers per 1,000 tokens",
}
# Of claims, which may rest on any measure of evaluations or of the training.
OTHER_TITLES = {
    "early_reward": "score on training problems, first steps",
    "markers_per_response": "markers per response",
    "unreadable_share": "share without a readable answer",
    "verified_share": "answers verified",
    "committed_share": "answers given unverified",
    "candidates": "candidates",
    "first_commitment": "first commitment, share of the reasoning",
    "forced_tokens": "forced tokens",
}


def format_estimate(estimate: Mapping[str, Any] | None, digits: int = 3) -> str:
    """As "0.512 [0.480, 0.544]", or a dash where there is nothing."""
    return _format(estimate, f"z.{digits}f")


def format_signed(estimate: Mapping[str, Any] | None, digits: int = 3) -> str:
    """The same for a difference, with its sign; what rounds to zero has none.

    Example:
        >>> format_signed({"value": -0.0001, "low": -0.5, "high": 0.5})
        '0.000 [-0.500, +0.500]'
    """
    return _format(estimate, f"+z.{digits}f")


def _format(estimate: Mapping[str, Any] | None, form: str) -> str:
    if estimate is None:
        return "–"
    value, *bounds = (
        None if estimate[name] is None else _without_sign(format(estimate[name], form))
        for name in ("value", "low", "high")
    )
    return str(value) if bounds[0] is None else f"{value} [{bounds[0]}, {bounds[1]}]"


def _without_sign(number: str) -> str:
    return number if number.strip("+0.") else number.removeprefix("+")


def measure_title(measure: str) -> str:
    """The name that plots give a measure of claims, which may be one of the training."""
    titles = MEASURE_TITLES | CURVE_TITLES | OTHER_TITLES
    return titles.get(measure.removeprefix("train_"), measure)


def measure_digits(measure: str) -> int:
    """Places behind the point: scores and shares have three, tokens and counts one."""
    counts = ("tokens", "per_response", "candidates")
    return 1 if any(word in measure for word in counts) else 3


def measured_groups(summary: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The groups of what `measure` found, named by their files as seen from the folder of all.

    Example:
        >>> files = [{"file": f"/a/{name}.jsonl", "groups": {"": {}}} for name in "bc"]
        >>> list(measured_groups({"files": files}))
        ['b.jsonl', 'c.jsonl']
    """
    folders = {str(Path(file["file"]).parent) for file in summary["files"]}
    common = os.path.commonpath(folders) if len(set(map(os.path.isabs, folders))) == 1 else "."
    return {
        os.path.relpath(file["file"], common)
        + (f", {name}" if len(file["groups"]) > 1 else ""): group
        for file in summary["files"]
        for name, group in file["groups"].items()
    }


def compared_answer(measures: Sequence[Mapping[str, Any]]) -> str:
    """What changed from A to B, in one sentence: score, length, and the first list's markers.

    Args:
        measures: Of one set, as `compare` found them.
    """
    length = [row for row in measures if row["measure"].startswith("length")]
    score = [row for row in measures if row["measure"].startswith("avg@")]
    doubt = [row for row in measures if " per 1,000 " in row["measure"] and not row["control"]]
    parts = [
        f"{row['measure']} {row['a']['value']:.3g} → {row['b']['value']:.3g} "
        f"({_direction(row['difference'])})"
        for row in (*score[:1], *length[:1], *doubt[:1])
        if row["a"] and row["b"]
    ]
    return f"From A to B: {', '.join(parts)}." if parts else ""


def _direction(difference: Mapping[str, Any]) -> str:
    if difference["low"] is None or difference["low"] <= 0 <= difference["high"]:
        return "not distinguishable"
    return "higher" if difference["low"] > 0 else "lower"


def measured_answer(name: str, group: Mapping[str, Any]) -> str:
    """What was measured of one group of traces, in one sentence."""
    length, found = group["length"]["words"], group["markers"]
    controls = {one["control"] for one in found.values()}  # each list of markers names its own
    doubt = [
        f"{one['density_per_1k_words']['value']:.3g} "
        f"{'control words' if lexicon in controls else 'markers'} ({lexicon})"
        for lexicon, one in found.items()
        if one["density_per_1k_words"]
    ]
    words = f" of {length['value']:.3g} words" if length else ""
    per = f"; per 1,000 words {', '.join(doubt)}" if doubt else ""
    return f"{name}: {group['responses']:,} responses{words}{per}."


def bounds_text(row: Mapping[str, Any], unit: str) -> str:
    """As "above 12 to 40 words": the bounds of a stratum."""
    low, high = row["above"], row["up_to"]
    if low is None and high is None:
        return f"any {unit}"
    if low is None:
        return f"up to {high:,.4g} {unit}"
    return f"above {low:,.4g} {unit}" if high is None else f"above {low:,.4g} to {high:,.4g} {unit}"


def decomposition_lines(strata: Mapping[str, Any]) -> list[str]:
    """What part of the difference in avg@k goes with length, with density, with both."""
    lines: list[str] = []
    names = {"length": "lengths", "density": "densities", "both": "lengths and densities"}
    for kind, name in names.items():
        found = strata["decomposition"][kind]
        if found["within"] is None:
            lines.append(f"by {name}: {found['reason']}")
            continue
        lines.append(
            f"by {name}: {format_signed(found['mix'])} of the difference in avg@k goes with other "
            f"{name}, {format_signed(found['within'])} remains among alike responses"
            + (f" ({found['reason']})" if found["reason"] else "")
        )
    return lines


def loops_line(looping: Mapping[str, Any]) -> str:
    """As "responses that end in a loop: A 1.2 %, B 0.0 %"."""
    shares = (
        f"{side.upper()} " + ("unknown" if found is None else f"{100 * found['share']:.1f} %")
        for side, found in looping.items()
    )
    return f"responses that end in a loop: {', '.join(shares)}"
