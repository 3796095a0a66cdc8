"""What a study advises for its own model and data: which arm gains what, and what it risks.

Enters: the arms of report.json. Leaves: groups of arms with their changes against the untrained
model, decided by intervals. docs/advice.md sets them beside other models and the literature.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MARGIN = 0.02  # score points that count as nothing, as in the verdicts on claims
GROUPS = (
    "gains in domain, and loses nothing on OOD sets",
    "gains in domain, and what it does on OOD sets is open",
    "loses on OOD sets",
    "not distinguishable from the untrained model",
)


def study_advice(report: Mapping[str, Any]) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """Trained arms by what they did, in the order of `GROUPS`, each group's best OOD change first.

    An arm loses if the 95 % interval of its OOD change is below 0; it gains if that in domain is
    above 0, and loses nothing if that on OOD sets is above minus two points.

    Returns:
        (group, arms) for each group that has any; [] where no arm has both kinds of sets.
    """
    found: dict[str, list[Mapping[str, Any]]] = {group: [] for group in GROUPS}
    for arm in report["arms"]:
        changes = arm["difference_to_baseline"]
        inside, ood = ((changes.get(kind) or {}).get("score") for kind in ("in_domain", "ood"))
        if inside and ood:
            found[_group(inside, ood)].append(arm)
    return [(group, sorted(arms, key=_ood, reverse=True)) for group, arms in found.items() if arms]


def _group(inside: Mapping[str, float], ood: Mapping[str, float]) -> str:
    if ood["high"] < 0:
        return GROUPS[2]
    if inside["low"] <= 0:
        return GROUPS[3]
    return GROUPS[0] if ood["low"] > -MARGIN else GROUPS[1]


def _ood(arm: Mapping[str, Any]) -> float:
    return arm["difference_to_baseline"]["ood"]["score"]["value"]
