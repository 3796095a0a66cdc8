"""What a study is: arms, seeds, claims; a TOML file in, a validated record out. Torch-free.

    epistill study FILE.toml          a study of the package goes by its name: lab, recipes/...

`[run]` holds what all arms share, each `[[arms]]` changes some of it, each `[[probes]]` measures a
model's own generations by context, each `[[claims]]` is a sentence with the tests that decide it.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from epistill.config import EvalSet, RunConfig, SamplingConfig, TaskConfig
from epistill.errors import EpistillError, did_you_mean
from epistill.methods import method
from epistill.preflights.preflight_config import Preflight
from epistill.rollouts.engine_settings import EngineSettings
from epistill.settings import Settings, first_fault, merged
from epistill.studies.copies import WORLD, written_out
from epistill.studies.hardware import Architecture, Hardware, Lengths

# Of a study and its items: text, comparisons, where it runs, what only a plan or a preset reads.
ANALYSIS = {
    "question", "about", "note", "label", "series", "baseline", "reference", "claims", "controls",
    "presets", "resources", "architectures", "hardware", "lengths", "grid",
}  # fmt: skip

Expectation = Literal["above", "below", "not_above", "not_below"]


class Arm(Settings):
    """One training configuration.

    Attributes:
        id: Folder name and handle in claims.
        label: For people.
        method: Named method; None for the untrained base.
        method_settings: Changes to the method's defaults.
        coverage: Distinct training problems; None for a new one every time.
        changes: Changes to `[run]`, for example another task.
        evaluations: Replaces the study's evaluation sets.
        baseline: The arm its differences are reported against.
        series: Arms of one series are one line of the coverage plot.
    """

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")
    label: str
    method: str | None = None
    method_settings: dict[str, Any] = Field(default_factory=dict)
    coverage: int | None = Field(default=None, ge=1)
    changes: dict[str, Any] = Field(default_factory=dict)
    evaluations: tuple[EvalSet, ...] | None = None
    baseline: str | None = "base"
    series: str | None = None


class Probe(EngineSettings):
    """A model's own generations under each context: section 3 of the paper.

    Attributes:
        candidates: Problems sampled without a context to find `problems` of them whose share of
            right responses lies within `accuracy`; None takes the first ones as they are.
        reference: Published numbers to show beside ours, context -> column -> number.
    """

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    label: str
    candidates: int | None = Field(default=None, ge=1)
    accuracy: tuple[float, float] = (0.0, 1.0)
    task: TaskConfig
    contexts: tuple[str, ...]
    problems: int = Field(default=100, ge=1)
    samples: int = Field(default=8, ge=2)
    sampling: SamplingConfig
    reference: dict[str, dict[str, float]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _a_server_can_sample_so(self) -> Probe:
        self.check_sampling(self.sampling)
        return self


class LabWorld(Settings):
    """A base model made for this study: another model of the lab with its dials turned.

    Attributes:
        dials: Changes to the default world (`tasks.star_traces.Dials`).
        start: The model to adapt.
        steps: Of pretraining on the new dials.
    """

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")
    dials: dict[str, float]
    start: str = "lab"
    steps: int = Field(default=300, ge=1)
    seed: int = 0


class Resources(Settings):
    """What each arm gets: a share of this machine, or of a Ray cluster.

    Attributes:
        processes: That train an arm together; probes, preflights and worlds have one.
        cpus: Processors of a process, and its threads: equal counts give equal bits wherever it
            runs.
        gpus: Of a process, on a Ray node; a part of one lets arms share it. Without Ray, one arm
            runs at a time, each of its processes on a GPU of its own.
    """

    processes: int = Field(default=1, ge=1)
    cpus: int = Field(default=1, ge=1)
    gpus: float = Field(default=0.0, ge=0.0)


class Grid(Settings):
    """Worlds and arms multiplied out: every combination of dial values, each with all `arms`.

    The surface compares the arms of `pairs` (label -> [ours, theirs]) over the grid.
    """

    dials: dict[str, tuple[float, ...]]
    adapt_steps: int = Field(default=300, ge=1)
    arms: tuple[Arm, ...]
    pairs: dict[str, tuple[str, str]]

    def points(self) -> list[dict[str, float]]:
        """Every combination of dial values."""
        combined = itertools.product(*self.dials.values())
        return [dict(zip(self.dials, values, strict=True)) for values in combined]


def point_id(dials: Mapping[str, float]) -> str:
    """Name of a grid point: commit0.25-recovery0.5."""
    return "-".join(f"{name}{value:g}" for name, value in dials.items())


class ClaimComparison(Settings):
    """One comparison that a claim rests on.

    Attributes:
        measure: Of evaluation records (`evaluate.MEASURES`: score, length_tokens...), or of the
            training curve: "train_reward" (mean over all steps: how fast it rises),
            "train_early_reward" (over the first 15) and the other `check_names.TRAINING_MEASURES`
            (last tenth of the steps).
        on: A kind of evaluation ("ood"...) pools its sets; "training" for curve measures; or a
            context of a probe.
        arm, versus: What is compared: value of `arm` minus value of `versus`.
        versus_on: `on` for the second, where it differs (another context of the same probe).
        expect: "above"/"below": the 95 % interval must exclude 0 on that side. "not_below"/
            "not_above": it must exclude a difference worse than the margin.
        margin: Of "not_" expectations, as a share of the second value (measures other than score)
            or in score points; below 0 it asks for more: -.25 is "not above three quarters of".
    """

    measure: str
    on: str
    arm: str
    versus: str
    versus_on: str | None = None
    expect: Expectation
    margin: float = Field(default=0.02, ge=-1.0)


class Claim(Settings):
    """A sentence and its tests; reproduced only if every one of them is."""

    id: str
    text: str
    tests: tuple[ClaimComparison, ...] = Field(min_length=1)


class Preset(Settings):
    """A smaller version of the study; `note` is printed on the page.

    Attributes:
        problems: At most so many of each evaluation and preflight; None leaves theirs.
    """

    arms: tuple[str, ...]
    probes: tuple[str, ...] = ()
    seeds: tuple[int, ...]
    changes: dict[str, Any] = Field(default_factory=dict)
    problems: int | None = Field(default=None, ge=1)
    note: str


class StudySpec(Settings):
    """A whole study.

    Attributes:
        architectures: Shapes of the models by name, for `epistill plan` and `--tiny`.
        hardware, lengths: What a plan reckons with.
    """

    name: str
    question: str
    about: str
    seeds: tuple[int, ...] = Field(min_length=1)
    run: dict[str, Any]
    evaluations: tuple[EvalSet, ...] = ()
    learning_rates: dict[str, float] = Field(default_factory=dict)
    arms: tuple[Arm, ...] = ()
    worlds: tuple[LabWorld, ...] = ()
    grid: Grid | None = None
    probes: tuple[Probe, ...] = ()
    preflights: tuple[Preflight, ...] = ()
    claims: tuple[Claim, ...] = ()
    controls: tuple[Claim, ...] = ()
    presets: dict[str, Preset] = Field(default_factory=dict)
    resources: Resources = Resources()
    architectures: dict[str, Architecture] = Field(default_factory=dict)
    hardware: Hardware | None = None
    lengths: Lengths | None = None
    note: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _write_out(cls, settings: Any) -> Any:
        """Copies as arms and claims, the grid as worlds and arms, once."""
        if isinstance(settings, dict) and settings.get("copies"):
            settings = written_out(settings)
        if not isinstance(settings, dict) or not settings.get("grid") or settings.get("worlds"):
            return settings
        try:
            grid = Grid.model_validate(settings["grid"])
        except ValidationError as error:
            raise ValueError(f"grid: {first_fault(error)}") from error
        worlds, arms = [], [*settings.get("arms", ())]
        for dials in grid.points():
            name = point_id(dials)
            worlds.append({"id": name, "dials": dials, "steps": grid.adapt_steps})
            for arm in grid.arms:
                arms.append(
                    {
                        **arm.model_dump(),
                        "id": f"{name}-{arm.id}",
                        "label": f"{arm.label}, {name}",
                        "changes": {**arm.changes, "model": f"{WORLD}{name}"},
                        "baseline": arm.baseline and f"{name}-{arm.baseline}",
                    }
                )
        return {**settings, "worlds": worlds, "arms": arms}

    @model_validator(mode="after")
    def _names_exist(self) -> StudySpec:
        from epistill.studies.check_names import check_names

        check_names(self)
        return self

    def evaluations_of(self, arm: Arm) -> tuple[EvalSet, ...]:
        """The arm's own sets, or the study's."""
        return self.evaluations if arm.evaluations is None else arm.evaluations

    def config_of(self, arm: Arm, seed: int, worlds: Path = Path("worlds")) -> RunConfig:
        """The resolved run of one arm and seed; `worlds` is the folder of the study's worlds."""
        settings = merged(self.run, arm.changes)
        if (world := world_of(settings)) is not None:
            settings["model"] = str(worlds / world / "model")
        if arm.method is None:
            settings |= {"method": method("grpo"), "steps": 0}
        else:
            settings["method"] = method(arm.method, **arm.method_settings)
            if (rate := self.learning_rates.get(arm.method)) is not None:
                settings["learning_rate"] = rate
        sets = [e.model_dump() for e in self.evaluations_of(arm)]
        own = {"coverage": arm.coverage, "evaluations": sets, "seed": seed}
        return RunConfig.model_validate({**settings, **own})

    def with_preset(self, name: str) -> StudySpec:
        """The smaller study of a preset.

        Raises:
            EpistillError: No such preset.
        """
        if name not in self.presets:
            raise EpistillError(
                f"study {self.name!r} has no preset {name!r}; expected one of "
                f"{', '.join(self.presets) or 'none'}, or leave it out for the whole study"
                f"{did_you_mean(name, self.presets)}"
            )
        preset = self.presets[name]
        there = {*preset.arms, *preset.probes}
        changes: dict[str, Any] = {
            "name": f"{self.name}-{name}",
            "seeds": preset.seeds,
            "run": merged(self.run, preset.changes),
            "note": preset.note,
            "evaluations": tuple(_at_most(e, preset.problems) for e in self.evaluations),
            "preflights": tuple(
                p.model_copy(update={"settings": _at_most(p.settings, preset.problems)})
                for p in self.preflights
            ),
        }
        for part in ("arms", "probes"):
            changes[part] = tuple(item for item in getattr(self, part) if item.id in there)
        for part in ("claims", "controls"):
            some = getattr(self, part)
            kept = (c for c in some if all({t.arm, t.versus} <= there for t in c.tests))
            changes[part] = tuple(kept)
        models = [merged(changes["run"], arm.changes) for arm in changes["arms"]]
        models += [{"model": probe.model} for probe in changes["probes"]]
        used = {world_of(settings) for settings in models}
        changes["worlds"] = tuple(world for world in self.worlds if world.id in used)
        return self.model_copy(update=changes)


def _at_most(measured: Any, problems: int | None) -> Any:
    fewer = measured.problems if problems is None else min(problems, measured.problems)
    return measured.model_copy(update={"problems": fewer})


def world_of(settings: Mapping[str, Any]) -> str | None:
    """The id of the study's world that a run starts from, or None."""
    model = str(settings.get("model"))
    return model.removeprefix(WORLD) if model.startswith(WORLD) else None


def without_analysis(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a study, or of a probe's or preflight's run, without what only pages show."""

    def kept(value: Any) -> Any:
        if isinstance(value, list):
            return [kept(item) for item in value]
        return without_analysis(value) if isinstance(value, Mapping) else value

    items = ("arms", "probes", "preflights", "probe", "preflight")
    chosen = {key: value for key, value in settings.items() if key not in ANALYSIS}
    return {key: kept(value) if key in items else value for key, value in chosen.items()}
