"""Which measure orders the change of the OOD score over a study's arms: a question of `lab-cure`.

Enters: folders of one or more studies. Leaves: Spearman's rho of each measure (after training,
on the OOD sets) with the change of the OOD score against the arm's baseline, with a 95 % interval
from resampled arms. Arms share problems and methods: it describes these arms and is no test.
Usage: python scripts/what_orders_ood.py docs/results/lab-cure docs/results/lab-cure-corner
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from epistill.inputs import read_settings
from epistill.studies.draw_report import report_file
from epistill.studies.prediction import spearman

MEASURES = ("committed_share", "density_per_1k_tokens", "length_tokens", "candidates")


def print_orders(arms: Sequence[Mapping[str, Any]], measures: Sequence[str]) -> None:
    """A line for each measure, of arms that have their name, `change` and the measures."""
    print(f"{len(arms)} trained arms; Spearman's rho with the change of the OOD score")
    changes = np.array([arm["change"] for arm in arms])
    for measure in measures:
        values = np.array([arm[measure] for arm in arms])
        found = spearman(values, changes, [arm["arm"] for arm in arms])
        print(f"{measure:24s} {found.value:+.2f} [{found.low:+.2f}, {found.high:+.2f}]")


def main(folders: list[str]) -> None:
    """Print a line for each measure."""
    arms = [
        {"arm": f"{folder} {arm['id']}", "change": change["score"]["value"]}
        | {measure: arm["evaluations"]["ood"][measure]["value"] for measure in MEASURES}
        for folder in folders
        for arm in read_settings(report_file(Path(folder)))["arms"]
        if (change := arm["difference_to_baseline"].get("ood")) is not None
    ]
    print_orders(arms, MEASURES)


if __name__ == "__main__":
    main(sys.argv[1:])
