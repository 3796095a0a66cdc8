"""The jobs of a study: what each payload asks for, carried out in its folder.

Enters: a payload (an arm's run, a probe with its seed, a preflight, a world) and a folder. Leaves:
a finished run directory; one that is finished already is returned as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from epistill.config import RunConfig
from epistill.environment import describe_environment
from epistill.errors import EpistillError
from epistill.evaluation.evaluate import eval_rows
from epistill.lab.dials import measure_dials
from epistill.lab.pretrain import pretrain
from epistill.method_import import method_from_file
from epistill.preflights.preflight_run import run_preflight
from epistill.records import GradedRollout
from epistill.rollouts.collect import sample_and_grade
from epistill.rollouts.load_engine import load_engine
from epistill.rollouts.load_model import load_model
from epistill.rollouts.model import LanguageModel
from epistill.seeds import derive_seed
from epistill.store import RunStore
from epistill.studies.run_arm import begin_run, run, store_evaluation
from epistill.studies.spec import ANALYSIS, LabWorld, Preflight, Probe, without_analysis
from epistill.tasks.coverage import load_eval_problems
from epistill.tasks.grading import Grader
from epistill.tasks.star_traces import DEFAULT_DIALS
from epistill.teacher.context import NAMED_CONTEXTS
from epistill.teacher.guided import guided_rollouts


def carry_out(payload: Mapping[str, Any], folder: Path) -> RunStore:
    """Do a job, or go on with it."""
    store = RunStore(folder)
    if "run" in payload:
        if payload["method_file"] is not None:  # the study's user named it; the parent says so
            method_from_file(payload["method_file"])
        return run(RunConfig.model_validate(payload["run"]), folder, save_model=False)
    with store.locked():
        begin_job(payload, store, describe_environment())
        if store.result is None:
            store.finish(_measured(payload, store))
    return store


def begin_job(payload: Mapping[str, Any], store: RunStore, environment: Mapping[str, Any]) -> None:
    """Claim a folder for a job; one that holds another is refused (`RunStore.begin`)."""
    if "run" in payload:
        begin_run(RunConfig.model_validate(payload["run"]), store, environment)
    else:
        now = partial(_as_of_now, payload=payload)
        store.begin(without_analysis(payload), environment, migrate=now)


def _as_of_now(there: dict[str, Any], payload: Mapping[str, Any]) -> dict[str, Any]:
    """A job of an older version in this one's form: what it did not have yet has its default."""
    for name, kind in (("probe", Probe), ("preflight", Preflight), ("world", LabWorld)):
        if isinstance(item := there.get(name), Mapping) and name in payload:
            shown = {key: payload[name][key] for key in ANALYSIS & payload[name].keys()}
            found = kind.model_validate({**shown, **item})
            there = {**there, name: found.model_dump(mode="json")}
    return without_analysis(there)


def _measured(payload: Mapping[str, Any], store: RunStore) -> dict[str, Any]:
    if "world" in payload:
        return _make_world(LabWorld.model_validate(payload["world"]), store)
    if "preflight" in payload:
        settings = Preflight.model_validate(payload["preflight"]).settings
        cache = store.folder / "cache"
        return run_preflight(settings, load_engine(settings, cache), cache)
    return _probe(Probe.model_validate(payload["probe"]), payload["seed"], store)


def _make_world(world: LabWorld, store: RunStore) -> dict[str, Any]:
    """The base model with its dials turned. Nominal ones only aim; the surface is over measured."""
    store.rewind(0)  # of a process that was killed; a world begins again
    network, tokenizer = pretrain(
        replace(DEFAULT_DIALS, **world.dials),
        seed=world.seed,
        steps=world.steps,
        start=load_model(world.start).causal_lm(),
        on_step=lambda step, loss: store.append("metrics", {"step": step, "loss": loss}),
    )
    network.save_pretrained(store.folder / "model")
    tokenizer.save_pretrained(store.folder / "model")
    measured = measure_dials(LanguageModel(network, tokenizer, str(store.folder)))
    return {"nominal": world.dials, "measured": measured}


def _probe(probe: Probe, seed: int, store: RunStore) -> dict[str, Any]:
    """A model's own generations under each context: section 3 of the paper.

    All contexts are measured on the same problems: those that every context exists for. Contexts
    come from one set of rollouts, measurements from fresh ones: the response that served as a
    context must not be counted as its own result.
    """
    engine = load_engine(probe, scored=False)
    problems = load_eval_problems(probe.task, probe.candidates or probe.problems)
    drawn: Any = {"samples": probe.samples, "sampling": probe.sampling}
    with Grader() as grader:
        source = sample_and_grade(
            engine,
            [(problem, problem.messages) for problem in problems],
            grader,
            seed=derive_seed("probe_source", seed),
            **drawn,
        )
        if probe.candidates is not None:
            source = _within(source, probe)
        measured = {
            name: guided_rollouts(
                engine,
                NAMED_CONTEXTS[name],
                source,
                grader,
                seed=derive_seed("probe", name, seed),
                **drawn,
            )
            for name in probe.contexts
        }
    common = set.intersection(*({i.problem.id for i in items} for items in measured.values()))
    if not common:
        counts = ", ".join(f"{name}: {len(items)}" for name, items in measured.items())
        raise EpistillError(
            f"probe {probe.id!r} has no problem that every context exists for (responses by "
            f"context: {counts}); take more problems or samples, or leave a context out"
        )
    summaries = {
        name: store_evaluation(store, name, name, eval_rows(_only(items, common), keep_texts=1))
        for name, items in measured.items()
    }
    return {"evaluations": summaries}


def _within(source: list[GradedRollout], probe: Probe) -> list[GradedRollout]:
    """The rollouts of the first problems that the model solves as often as the probe asks for."""
    grades: dict[str, list[float]] = {}
    for item in source:
        grades.setdefault(item.problem.id, []).append(item.grade.score)
    least, most = probe.accuracy
    chosen = [p for p, right in grades.items() if least <= sum(right) / len(right) <= most]
    if len(chosen) < probe.problems:
        raise EpistillError(
            f"probe {probe.id!r}: {len(chosen)} of {len(grades)} problems are solved with a rate "
            f"between {least:g} and {most:g}, expected {probe.problems}; raise its candidates"
        )
    return _only(source, chosen[: probe.problems])


def _only(items: list[GradedRollout], problems: Iterable[str]) -> list[GradedRollout]:
    wanted = set(problems)
    return [item for item in items if item.problem.id in wanted]
