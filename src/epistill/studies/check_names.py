"""Every name in a study file that refers to something else in it is there, before anything trains.

Enters: a `StudySpec`. Leaves: nothing, or one line that says where a name leads nowhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from epistill.errors import EpistillError, did_you_mean
from epistill.methods import METHODS
from epistill.tasks.star_traces import Dials
from epistill.teacher.context import NAMED_CONTEXTS

if TYPE_CHECKING:
    from epistill.studies.spec import Arm, Claim, StudySpec

TRAINING = "training"
# Of every step's record (`training.loop`): numbers of the responses, on policy or not.
TRAINING_MEASURES = tuple(
    f"train_{name}"
    for name in (
        "reward", "length_tokens", "density_per_1k_tokens", "markers_per_response",
        "truncated_share", "unreadable_share", "early_reward",
    )
)  # fmt: skip
EARLY = 15  # steps of "train_early_reward"
MOST_SHOWN = 12


def check_names(spec: StudySpec) -> None:
    """Resolve what arms, grids, worlds, presets, probes and claims refer to.

    Raises:
        EpistillError: Names repeat, or one leads nowhere.
    """
    from epistill.studies.spec import world_of

    claims = (*spec.claims, *spec.controls)
    arms = {arm.id: arm for arm in spec.arms}
    probes = {probe.id: probe for probe in spec.probes}
    runs = [item.id for item in (*spec.arms, *spec.probes, *spec.preflights)]
    if not runs:
        raise EpistillError("a study needs at least one arm or probe")
    _once("ids of arms, probes and preflights", runs)
    _once("ids of claims and controls", (claim.id for claim in claims))
    _once("ids of worlds", (world.id for world in spec.worlds))
    _once("seeds", spec.seeds)
    for claim in claims:
        _check_claim(claim, spec, arms)
    methods = [*METHODS, *(arm.method for arm in spec.arms if arm.method)]
    _exist(spec.learning_rates, methods, "learning_rates", "a method")
    dials = [field.name for field in fields(Dials)]
    if (grid := spec.grid) is not None:
        _exist(grid.dials, dials, "grid", "a dial")
        ids = [arm.id for arm in grid.arms]
        for arm in grid.arms:
            _exist([arm.baseline], [*ids, None], f"grid: arm {arm.id!r}: baseline", "an arm of it")
        for label, pair in grid.pairs.items():
            _exist(pair, ids, f"grid: pair {label!r}", "an arm of it")
    for known in spec.worlds:
        _exist(known.dials, dials, f"world {known.id!r}", "a dial")
    _belong_elsewhere("[run]", spec.run)
    for arm in spec.arms:
        where = f"arm {arm.id!r}"
        _belong_elsewhere(where, arm.changes)
        if (world := world_of({**spec.run, **arm.changes})) is not None:
            _exist([world], [w.id for w in spec.worlds], where, "a world")
        if arm.baseline != "base":  # which is only the default
            _exist([arm.baseline], [*arms, None], f"{where}: baseline", "an arm")
        _once(f"{where}: names of evaluations", (e.name for e in spec.evaluations_of(arm)))
    for probe in spec.probes:
        _once(f"probe {probe.id!r}: contexts", probe.contexts)
        _exist(probe.contexts, NAMED_CONTEXTS, f"probe {probe.id!r}", "a context")
    for name, preset in spec.presets.items():
        where = f"preset {name!r}"
        _exist(preset.arms, arms, where, "an arm")
        _exist(preset.probes, probes, where, "a probe")
        _once(f"{where}: seeds", preset.seeds)


def _belong_elsewhere(where: str, settings: Mapping[str, Any]) -> None:
    for key in ("method", "coverage", "evaluations", "seed"):
        if key in settings:
            raise EpistillError(
                f"{where} changes {key!r}; expected it in the arm itself, or in the study's "
                "evaluations and seeds"
            )


def _check_claim(claim: Claim, spec: StudySpec, arms: Mapping[str, Arm]) -> None:
    from epistill.evaluation.evaluate import MEASURES  # imports torch

    measures = (*MEASURES, *TRAINING_MEASURES)
    contexts = {probe.id: probe.contexts for probe in spec.probes}
    where = f"claim {claim.id!r}"
    for test in claim.tests:
        if test.measure not in measures:
            raise EpistillError(
                f"{where} has no measure {test.measure!r}; expected one of "
                f"{', '.join(measures)}{did_you_mean(test.measure, measures)}"
            )
        for name, on in ((test.arm, test.on), (test.versus, test.versus_on or test.on)):
            _exist([name], [*arms, *contexts], where, "an arm or probe")
            if name in contexts:
                places = [*contexts[name]]
            elif test.measure in TRAINING_MEASURES:
                places = [TRAINING] if arms[name].method is not None else []
            else:
                places = list(dict.fromkeys(e.kind for e in spec.evaluations_of(arms[name])))
            if on not in places:
                raise EpistillError(
                    f"{where}: {test.measure} of {name!r} is not measured on {on!r}; expected "
                    f"{_some(places) or 'another arm: this one does not train'}"
                    f"{did_you_mean(on, places)}"
                )
        if test.measure in TRAINING_MEASURES and {test.arm, test.versus} & set(contexts):
            raise EpistillError(f"{where}: {test.measure} is of training; a probe does not train")


def _exist(
    names: Iterable[str | None], choices: Iterable[str | None], where: str, what: str
) -> None:
    known = list(choices)
    for name in names:
        if name not in known:
            shown = [choice for choice in known if choice is not None]
            raise EpistillError(
                f"{where} names {name!r}; expected {what} of this study: "
                f"{_some(shown) or 'it has none'}{did_you_mean(str(name), shown)}"
            )


def _some(names: Iterable[str]) -> str:
    known = list(names)
    more = len(known) - MOST_SHOWN
    return ", ".join(known[:MOST_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _once(what: str, names: Iterable[object]) -> None:
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise EpistillError(f"{what} repeat: {_some(map(str, repeated))}")
