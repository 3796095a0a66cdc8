"""What a study advises for its own model and data: which arm gains what, and what it risks.

Enters: the arms of report.json. Leaves: groups of arms with their changes against the untrained
model, decided by intervals; and where papers contradict each other about what an arm does, that
beside the arm. docs/advice.md sets them beside other models.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

DISPUTES = files("epistill.report") / "disputes.toml"

MARGIN = 0.02  # score points that count as nothing, as in the verdicts on claims
GROUPS = (
    "gains in domain, and loses nothing on OOD sets",
    "gains in domain, and what it does on OOD sets is open",
    "loses in domain or on OOD sets",
    "no gain in domain is shown",
)


def study_advice(report: Mapping[str, Any]) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """Trained arms by what they did, in the order of `GROUPS`, each group's best OOD change first.

    An arm loses if the 95 % interval of either change is below 0; it gains if that in domain is
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
    if min(inside["high"], ood["high"]) < 0:
        return GROUPS[2]
    if inside["low"] <= 0:
        return GROUPS[3]
    return GROUPS[0] if ood["low"] > -MARGIN else GROUPS[1]


def disputed(report: Mapping[str, Any]) -> list[tuple[Mapping[str, Any], list[Mapping[str, Any]]]]:
    """Contradictions between papers that arms of this study bear on, with those arms.

    Beside them stand the arms that a row compares with: `beside`, a method as it is, from the same
    model at the same coverage.

    Returns:
        (row of disputes.toml, trained arms with an OOD change); [] where there are none.
    """
    asked = {arm["id"]: arm.get("method_settings") for arm in report["settings"].get("arms", ())}
    trained = [a for a in report["arms"] if a["difference_to_baseline"].get("ood")]
    found = []
    for row in tomllib.loads(DISPUTES.read_text(encoding="utf-8"))["disputes"]:
        arms = [arm for arm in trained if _bears_on(row, arm, asked.get(arm["id"]))]
        places = [(arm["baseline"], arm["coverage"]) for arm in arms]
        arms += [
            arm
            for arm in trained
            if arm["method"] == row.get("beside") and not asked.get(arm["id"])
            if (arm["baseline"], arm["coverage"]) in places and arm not in arms
        ]
        if arms:
            found.append((row, arms))
    return found


def _bears_on(row: Mapping[str, Any], arm: Mapping[str, Any], settings: Any) -> bool:
    return (
        arm["method"] in row.get("methods", ())
        or bool({*arm["contexts"]} & {*row.get("contexts", ())})
        or bool(_types(settings) & {*row.get("types", ())})
    )


def _types(settings: Any) -> set[str]:
    """Every `type` that is named somewhere in a method's settings."""
    if isinstance(settings, Mapping):
        named = settings.get("type")
        own = {named} if isinstance(named, str) else set[str]()
        return own.union(*map(_types, settings.values()))
    return set[str]().union(*map(_types, settings if isinstance(settings, list) else ()))


def _ood(arm: Mapping[str, Any]) -> float:
    return arm["difference_to_baseline"]["ood"]["score"]["value"]
