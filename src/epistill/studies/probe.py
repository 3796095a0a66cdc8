"""A model's own generations under each context: the jobs behind the paper's section 3.

Enters: a `Probe`, a seed, a folder. Leaves: one evaluation table per context. All contexts are
measured on the same problems: those that every context exists for.
"""

from __future__ import annotations

from pathlib import Path

from epistill.environment import describe_environment
from epistill.errors import EpistillError
from epistill.evaluation.evaluate import as_rows, eval_records, summarise_evaluation
from epistill.records import GradedRollout
from epistill.rollouts.collect import sample_and_grade
from epistill.rollouts.in_process_engine import InProcessEngine
from epistill.rollouts.load_model import load_model
from epistill.seeds import derive_seed
from epistill.store import RunStore
from epistill.studies.spec import Probe, without_analysis
from epistill.tasks.coverage import load_eval_problems
from epistill.tasks.grading import Grader
from epistill.teacher.context import NAMED_CONTEXTS
from epistill.teacher.guided import guided_rollouts


def run_probe(probe: Probe, seed: int, folder: Path) -> RunStore:
    """Carry out a probe; a finished one is returned as it is."""
    store = RunStore(folder)
    with store.locked():
        asked = without_analysis({"probe": probe.model_dump(mode="json"), "seed": seed})
        store.begin(asked, describe_environment(), migrate=without_analysis)
        if store.result is not None:
            return store
        model = load_model(
            probe.model,
            dtype=probe.dtype,
            device=probe.device,
            chat_template=probe.chat_template,
        )
        engine = InProcessEngine(model)
        problems = load_eval_problems(probe.task, probe.candidates or probe.problems)
        with Grader() as grader:
            # Contexts come from one set of rollouts, measurements from fresh ones: the response
            # that served as a context must not be counted as its own result.
            source = sample_and_grade(
                engine,
                [(problem, problem.messages) for problem in problems],
                grader,
                samples=probe.samples,
                sampling=probe.sampling,
                seed=derive_seed("probe_source", seed),
            )
            if probe.candidates is not None:
                source = _within(source, probe)
            measured = {
                name: guided_rollouts(
                    engine,
                    NAMED_CONTEXTS[name],
                    source,
                    grader,
                    samples=probe.samples,
                    sampling=probe.sampling,
                    seed=derive_seed("probe", name, seed),
                )
                for name in probe.contexts
            }
        common = set.intersection(
            *({item.problem.id for item in items} for items in measured.values())
        )
        if not common:
            counts = ", ".join(f"{name}: {len(items)}" for name, items in measured.items())
            raise EpistillError(
                f"probe {probe.id!r} has no problem that every context exists for (responses by "
                f"context: {counts}); take more problems or samples, or leave a context out"
            )
        summaries = {}
        for name, items in measured.items():
            rows = as_rows(eval_records(_only(items, common), keep_texts=1))
            store.write_records("evaluations", f"final-{name}", rows)
            summaries[name] = {
                "kind": name,
                "problems": len(common),
                "samples": probe.samples,
                **{measure: e.as_dict() for measure, e in summarise_evaluation(rows).items()},
            }
        store.finish({"evaluations": summaries})
    return store


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
    return _only(source, set(chosen[: probe.problems]))


def _only(items: list[GradedRollout], problems: set[str]) -> list[GradedRollout]:
    return [item for item in items if item.problem.id in problems]
