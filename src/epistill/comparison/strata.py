"""Accuracy by length and by marker density, so that shorter and less doubtful can be told apart.

Enters: for both sides, each response's problem, score, length and density. Leaves: accuracies of
both sides in the same thirds of length, of density, and of both; and how much of the difference
goes with *where* the responses lie (mix) and how much remains among alike ones (within). It
describes: length and density are consequences of the model, not causes that somebody set.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from epistill.comparison.contrasts import Contrast, judged
from epistill.evaluation.intervals import Floats
from epistill.evaluation.paired import bootstrap_statistics
from epistill.metrics.words import Ints

SHARES = (1 / 3, 2 / 3)
_NOT_SHOWN = ("kind", "p_value", "smallest_detectable")  # strata describe, they do not test
NAMES = {"length": ("shortest", "middle", "longest"), "density": ("fewest", "middle", "most")}


@dataclass(frozen=True, slots=True)
class Outcomes:
    """The graded responses of one side.

    Attributes:
        problems: [responses] index of the problem, the same numbering on both sides.
        scores: [responses], 1 or 0.
        lengths: [responses] words or tokens.
        densities: [responses] markers per 1,000 of the same unit; 0 for an empty response.
    """

    problems: Ints
    scores: Floats
    lengths: Floats
    densities: Floats


def accuracy_strata(a: Outcomes, b: Outcomes, n_problems: int, *, seed: int = 0) -> dict[str, Any]:
    """Split both sides by thresholds of the pooled responses.

    Args:
        a, b: Every problem has at least one response on both sides.
        n_problems: Problems, the clusters.
        seed: Names the bootstrap.

    Returns:
        `length` and `density`: rows with label, bounds (above, up to), and for each side its number
        of responses and accuracy, and the difference B - A; `both`: the same for pairs of thirds;
        `decomposition`: for each of the three, `mix` and `within` (they add up to the difference in
        avg@k), or `reason` where a stratum that one side has is empty on the other.

    Source of the decomposition: Kitagawa 1955, "Components of a difference between two rates".
    """
    splits: dict[str, list[Ints]] = {}
    labels: dict[str, list[dict[str, Any]]] = {}
    for kind, values in (
        ("length", (a.lengths, b.lengths)),
        ("density", (a.densities, b.densities)),
    ):
        bounds = _bounds(np.concatenate(values))
        splits[kind] = [np.searchsorted(bounds, side, side="left") for side in values]
        labels[kind] = _labels(kind, bounds)
    across = len(labels["density"])
    splits["both"] = [
        length * across + density
        for length, density in zip(splits["length"], splits["density"], strict=True)
    ]
    labels["both"] = [
        {"length": length["label"], "density": density["label"]}
        for length in labels["length"]
        for density in labels["density"]
    ]
    tables = {
        kind: np.stack(
            [
                _sums(side, group, len(labels[kind]), n_problems)
                for side, group in zip((a, b), groups, strict=True)
            ]
        )
        for kind, groups in splits.items()
    }
    rows = judged(
        [
            Contrast({**label, "kind": kind}, table[:, :, 1, i], table[:, :, 0, i])
            for kind, table in tables.items()
            for i, label in enumerate(labels[kind])
        ],
        seed=seed,
    )
    found: dict[str, Any] = {kind: [] for kind in splits}
    for row in rows:
        kind = row["kind"]
        place = len(found[kind])
        row = {name: row[name] for name in row if name not in _NOT_SHOWN}
        found[kind].append(row)
        row["responses"] = dict(
            zip("ab", (int(np.count_nonzero(g == place)) for g in splits[kind]), strict=True)
        )
    return found | {"decomposition": _decompositions(tables, seed)}


def _labels(kind: str, bounds: Floats) -> list[dict[str, Any]]:
    names = NAMES[kind] if len(bounds) == 2 else (NAMES[kind][0], NAMES[kind][2])
    edges = [None, *bounds.tolist(), None]
    return [
        {"label": names[i] if len(bounds) else "all", "above": edges[i], "up_to": edges[i + 1]}
        for i in range(len(bounds) + 1)
    ]


def _bounds(values: Floats) -> Floats:
    """Inner bounds of the thirds; fewer where so many values are equal that thirds coincide.

    Example:
        >>> _bounds(np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])).tolist()
        [2.0, 4.0]
        >>> _bounds(np.array([0.0, 0.0, 0.0, 0.0, 5.0])).tolist()
        [0.0]
    """
    bounds = np.unique(np.quantile(values, SHARES, method="inverted_cdf"))
    return bounds[bounds < values.max()]


def _sums(side: Outcomes, group: Ints, count: int, n_problems: int) -> Floats:
    """[problems, 2, strata]: weight, and weight that is correct.

    Each problem weighs 1 whatever its number of samples, as in avg@k.
    """
    table = np.zeros((n_problems, 2, count))
    weights = 1.0 / np.bincount(side.problems, minlength=n_problems)[side.problems]
    np.add.at(table[:, 0], (side.problems, group), weights)
    np.add.at(table[:, 1], (side.problems, group), weights * side.scores)
    return table


def _decompositions(tables: Mapping[str, Floats], seed: int) -> dict[str, Any]:
    """For each way of splitting: `mix`, `within`, and where one is missing the `reason`."""
    found: dict[str, Any] = {}
    for kind, table in tables.items():
        there = table[:, :, 0].sum(axis=1) > 0
        alone = int(np.count_nonzero(there[0] != there[1]))
        found[kind] = {"mix": None, "within": None, "reason": None}
        if alone:
            found[kind]["reason"] = (
                f"{alone} of {there.shape[1]} strata hold responses of one side only, so that "
                "there is nothing alike to compare them with"
            )
            continue
        columns = np.hstack([side.reshape(len(side), -1) for side in table])
        tests = bootstrap_statistics(columns, [_mix, _within], seed=seed)  # equal draws for all
        for name, test in zip(("mix", "within"), tests, strict=True):
            found[kind][name] = test.difference.as_dict()
        if found[kind]["within"]["low"] is None and len(columns) > 1:
            found[kind]["reason"] = (
                "some strata are so small that resamples leave them empty: no interval"
            )
    return found


def _shares_and_rates(sums: Floats) -> tuple[Floats, Floats]:
    """[draws, 2, strata] shares of the responses, and accuracies, of [draws, 4 strata] sums."""
    weights, right = np.moveaxis(sums.reshape(len(sums), 2, 2, -1), 2, 0)
    shares = weights / weights.sum(axis=2, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        rates = right / weights
    # A stratum that is empty on both sides of a resample adds nothing to either part.
    return shares, np.where((weights == 0).all(axis=1, keepdims=True), 0.0, rates)


def _mix(sums: Floats) -> Floats:
    shares, rates = _shares_and_rates(sums)
    return (rates.mean(axis=1) * (shares[:, 1] - shares[:, 0])).sum(axis=1)


def _within(sums: Floats) -> Floats:
    shares, rates = _shares_and_rates(sums)
    return (shares.mean(axis=1) * (rates[:, 1] - rates[:, 0])).sum(axis=1)
