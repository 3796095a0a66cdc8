"""Runs a study: every arm and probe at every seed, by an executor, resumably.

Enters: a `StudySpec` and a folder. Leaves: a run directory per job, `report.json` and
`report.html`, renewed while it runs. A job is one folder; a finished one is never redone, a folder
of other settings is refused. Results depend neither on the number of workers nor on where they
are: each has the threads that the study gives it.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from epistill.environment import code_of, codes_of, describe_environment
from epistill.errors import EpistillError, damaged
from epistill.inputs import read_settings
from epistill.method_import import without_folders
from epistill.report.study_page import write_report
from epistill.settings import differing_keys
from epistill.store import RunStore, read_json, write_atomic, write_json
from epistill.studies.check_inputs import check_jobs
from epistill.studies.executors import Executor, LocalProcesses
from epistill.studies.jobs import begin_job
from epistill.studies.spec import Arm, LabWorld, Preflight, Probe, StudySpec, without_analysis
from epistill.studies.step_lines import idle_steps_line
from epistill.studies.study_summary import report_line, summarise_study

REPORT_EVERY_S = 120.0
DRAWING_SHARE = 0.02  # of the time at most; a page of hundreds of runs takes seconds
POLL_S = 0.5

OnFinished = Callable[[str, Path], None]
Executors = Callable[[int], AbstractContextManager[Executor]]  # for so many jobs


@dataclass(frozen=True, slots=True)
class Job:
    """One arm or probe at one seed, one preflight, or one world."""

    item: Arm | Probe | Preflight | LabWorld
    seed: int
    folder: Path
    payload: dict[str, Any]
    steps: int = 1

    @property
    def name(self) -> str:
        """For the progress display."""
        kind = "world " if isinstance(self.item, LabWorld) else ""
        return f"{kind}{self.item.id} seed {self.seed}"

    @property
    def result(self) -> dict[str, Any] | None:
        """None while it is unfinished."""
        return RunStore(self.folder).result


def world_jobs(spec: StudySpec, out: Path) -> list[Job]:
    """The base models that arms start from; they come before everything else."""
    return [
        Job(w, w.seed, out / "worlds" / w.id, {"world": w.model_dump(mode="json")}, w.steps)
        for w in spec.worlds
    ]


def jobs_of(spec: StudySpec, out: Path) -> list[Job]:
    """Preflights, then all runs, seed after seed: a first picture of every arm comes early."""
    runs = out / "runs"
    jobs = [
        Job(p, p.settings.seed, runs / p.id, {"preflight": p.model_dump(mode="json")})
        for p in spec.preflights
    ]
    for seed in spec.seeds:
        for probe in spec.probes:
            payload = {"probe": probe.model_dump(mode="json"), "seed": seed}
            jobs.append(Job(probe, seed, runs / probe.id / f"seed-{seed}", payload))
        for arm in spec.arms:
            config = spec.config_of(arm, seed, out / "worlds")
            payload = {
                "run": config.model_dump(mode="json"),
                "method_file": config.method.file and config.method.file.reference,
            }
            folder = runs / arm.id / f"seed-{seed}"
            jobs.append(Job(arm, seed, folder, payload, max(config.steps, 1)))
    return jobs


def run_study(
    spec: StudySpec,
    out: Path,
    *,
    workers: int | None = None,
    ray: str | None = None,
    console: Console | None = None,
    on_finished: OnFinished = lambda name, folder: None,
) -> Path:
    """Run a study, or go on with one.

    Args:
        spec: The study.
        out: Its folder.
        workers: Processes; None takes as many as the processors this process may use allow.
        ray: Address of a Ray cluster that does the work instead of this machine's processes, or
            "auto" to start a local one.
        console: Where progress is shown; None shows none.
        on_finished: Told the name and folder of every finished job, once in each sitting.

    Returns:
        The path of report.html.

    Raises:
        EpistillError: The folder holds another study, is in use, or a job failed.
    """
    out = out.resolve()  # a relative and an absolute path name the same study
    store = RunStore(out)
    with store.locked():
        worlds, jobs = world_jobs(spec, out), jobs_of(spec, out)
        if ray is None:  # a cluster's nodes may have what this machine has not
            check_jobs({job.name: job.payload for job in jobs if job.result is None}, out)
        _claim_folder(spec, out)
        clock = _Clock(out)

        def render() -> Path:
            return _render(spec, store, worlds, jobs, clock)

        def executors(count: int) -> AbstractContextManager[Executor]:
            if ray is None:
                return LocalProcesses(workers, spec.resources, count)
            from epistill.studies.ray_cluster import RayCluster

            return RayCluster(ray, spec.resources, out, workers)

        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
        shown = console or Console(quiet=True)
        with Progress(*columns, TimeElapsedColumn(), console=shown) as progress:
            for some in (worlds, jobs):
                _run_jobs(some, executors, progress, render, clock, on_finished)
        return render()


def _claim_folder(spec: StudySpec, out: Path) -> None:
    """Keep the settings in the folder; only what the analysis uses may differ from those there."""
    path = out / "study.json"
    if path.is_file():
        different = differing_keys(_as_of_now(read_settings(path), out), _trained(spec))
        if different:
            raise EpistillError(
                f"{out} holds a study with other settings (differs in {', '.join(different[:5])}); "
                "choose another --out, or remove it"
            )
    write_json(path, without_folders(spec.model_dump(mode="json")))


def _trained(spec: StudySpec) -> dict[str, Any]:
    return without_folders(without_analysis(spec.model_dump(mode="json")))


def _as_of_now(settings: dict[str, Any], out: Path) -> dict[str, Any]:
    """Settings of an older version in this one's form: what it did not have yet has its default."""
    try:
        return _trained(StudySpec.model_validate({**settings, "claims": (), "controls": ()}))
    except ValueError as error:
        raise EpistillError(
            f"{out} was begun by another version of epistill, whose settings this one does not "
            f"read ({' '.join(str(error).split())[:160]}); finish it with that version, or choose "
            "another --out"
        ) from error


class _Clock:
    """Wall-clock of the study over all its sittings, kept in the folder."""

    def __init__(self, out: Path) -> None:
        self._path = out / "duration.json"
        self._before, self._start = 0.0, time.monotonic()
        if self._path.is_file():
            self._before = read_json(self._path).get("seconds")
            number = isinstance(self._before, int | float) and math.isfinite(self._before)
            if not number or self._before < 0:
                raise damaged(self._path, "it holds no number of seconds", self._path)

    def seconds(self) -> float:
        total = self._before + self.since_start()
        write_json(self._path, {"seconds": total})
        return total

    def since_start(self) -> float:
        return time.monotonic() - self._start


def _run_jobs(
    jobs: list[Job],
    executors: Executors,
    progress: Progress,
    render: Callable[[], Path],
    clock: _Clock,
    on_finished: OnFinished,
) -> None:
    waiting = [job for job in jobs if job.result is None]
    for job in jobs:
        if job not in waiting:
            begin_job(job.payload, RunStore(job.folder), {})  # it is this study's
            on_finished(job.name, job.folder)
    if not waiting:
        return
    finished = (RunStore(job.folder).environment for job in jobs if job not in waiting)
    now = code_of(describe_environment())
    if others := {code for one in finished for code in codes_of(one)} - {now}:
        told = f"finished runs are of {'; '.join(sorted(others))}; the others run with {now}"
        progress.console.print(f"{told}: numbers may differ")
    overall = progress.add_task("all runs", total=len(jobs), completed=len(jobs) - len(waiting))
    attempts: Counter[str] = Counter()
    bars: dict[str, Any] = {}
    next_report, first = max(REPORT_EVERY_S, clock.since_start()), True
    with executors(len(waiting)) as executor:
        running = {job.name: (job, executor.submit(job.payload, job.folder)) for job in waiting}
        try:
            while running:
                time.sleep(POLL_S)
                for name, (job, future) in list(running.items()):
                    done, steps = future.done(), _steps_done(job.folder)
                    if (future.running() or steps) and name not in bars:
                        bars[name] = progress.add_task(name, total=job.steps)
                    if name in bars:
                        progress.update(bars[name], completed=steps)
                    if not done:
                        continue
                    if name in bars:
                        progress.remove_task(bars.pop(name))
                    error = future.exception()
                    if error is not None and (said := executor.lost(error)) is not None:
                        attempts[name] += 1
                        if attempts[name] > executor.retries:
                            raise EpistillError(
                                f"{name}: {said} ({attempts[name]} times); see the memory of the "
                                "machine; the same command goes on"
                            ) from error
                        progress.console.print(f"{name}: {said}; it goes on elsewhere")
                        running[name] = (job, executor.submit(job.payload, job.folder))
                        continue
                    if (mistake := future.result()) is not None:
                        raise EpistillError(mistake)
                    del running[name]
                    on_finished(name, job.folder)
                    progress.advance(overall)
                    if not progress.console.is_terminal:
                        ended = len(jobs) - len(running)
                        progress.console.print(f"{name} finished: {ended} of {len(jobs)} runs")
                    found = job.result or {}
                    if said := idle_steps_line(found.get("steps_without_signal", {}), job.steps):
                        progress.console.print(f"{name}: {said}")
                if clock.since_start() > next_report:
                    begun, page = clock.since_start(), render()
                    if first:
                        progress.console.print(f"a first picture, drawn again as runs end: {page}")
                    first = False
                    drawing = clock.since_start() - begun
                    next_report = begun + max(REPORT_EVERY_S, drawing / DRAWING_SHARE)
        except BaseException:
            executor.stop()
            raise


def _steps_done(folder: Path) -> int:
    try:
        return (folder / "metrics.jsonl").read_bytes().count(b"\n")
    except OSError:
        return 0


def _render(
    spec: StudySpec, store: RunStore, worlds: Sequence[Job], jobs: Sequence[Job], clock: _Clock
) -> Path:
    stores: dict[str, dict[int, RunStore]] = {}
    finished = [job for job in jobs if job.result is not None]
    for job in finished:
        stores.setdefault(job.item.id, {})[job.seed] = RunStore(job.folder)
    data = summarise_study(
        spec,
        stores,
        worlds={job.item.id: job.result for job in worlds},
        finished=len(finished),
        total=len(jobs),
        seconds=clock.seconds(),
    )
    store.write_final(write_atomic, "report.json", report_line(data))
    return write_report(data, store.folder / "report.html")
