"""Alarms on the numbers of a training run: rules with stated thresholds. Imports no torch.

Enters: settings, and one row of metrics per step (`metrics.jsonl`, or what a callback measured).
Leaves: `Alarm`s, whether the run should stop, and a method whose teacher weighs less. A pure
function of the rows: a resumed run replays them and is where it was.

The reasons for the default thresholds are in docs/monitor.md; none was fitted to a run.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from numbers import Real
from statistics import fmean, variance
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field

from epistill.axes import Method
from epistill.errors import EpistillError
from epistill.settings import Settings

Action = Literal["log", "stop", "lower"]
DENSITY = "density_per_1k_tokens"
ENTROPY = "entropy_nats_per_token"
AVG_AT_K = "reward"  # the mean score of all responses of the step
PASS_AT_K = "pass_at_k"
LOOPING = "looping_share"
COMMITTED = "committed_share"
PULL_ON_MARKERS = "teacher_pull_on_markers_nats_per_token"
PULL_ELSEWHERE = "teacher_pull_elsewhere_nats_per_token"


class _Found(NamedTuple):
    """What a rule has to say."""

    baseline: float
    value: float
    threshold: float
    message: str


class Fall(Settings):
    """A measure lost more than `share` of its baseline. An action of None takes the monitor's."""

    type: Literal["fall"] = "fall"
    measure: Literal["density_per_1k_tokens", "entropy_nats_per_token", "length_tokens"]
    share: float = Field(gt=0.0, lt=1.0)
    action: Action | None = None

    def look(self, run: Watcher, settings: Monitor) -> _Found | None:
        """What it found in the run so far; None for nothing."""
        change = run.change(self.measure)
        if change is None or not change.fell(beyond=self.share * change.before):
            return None
        return _Found(
            change.before,
            change.now,
            (1 - self.share) * change.before,
            f"{self.measure} fell from {change.before:.3g} (first {settings.baseline_steps} steps) "
            f"to {change.now:.3g} (last {settings.window_steps}), by more than {self.share:.0%}",
        )


class Narrowing(Settings):
    """pass@k of the training groups fell by more than `points` while avg@k rose."""

    type: Literal["narrowing"] = "narrowing"
    points: float = Field(default=0.05, gt=0.0, lt=1.0)
    action: Action | None = None

    def look(self, run: Watcher, settings: Monitor) -> _Found | None:
        """As `Fall.look`."""
        passed, mean = run.change(PASS_AT_K), run.change(AVG_AT_K)
        if passed is None or mean is None:
            return None
        if not (passed.fell(beyond=self.points) and mean.rose(beyond=0.0)):
            return None
        return _Found(
            passed.before,
            passed.now,
            passed.before - self.points,
            f"pass@k fell from {passed.before:.3f} to {passed.now:.3f} while avg@k rose from "
            f"{mean.before:.3f} to {mean.now:.3f}: fewer problems are solved, more often",
        )


class Pull(Settings):
    """The teacher gives markers less, relative to other tokens, by more than `nats` on average."""

    type: Literal["pull"] = "pull"
    nats: float = Field(default=math.log(2), gt=0.0)
    action: Action | None = None

    def look(self, run: Watcher, settings: Monitor) -> _Found | None:
        """As `Fall.look`; it needs no baseline."""
        lasts = run.last(PULL_ON_MARKERS), run.last(PULL_ELSEWHERE)
        if min(map(len, lasts)) < settings.window_steps:
            return None
        gaps = [elsewhere - on for on, elsewhere in zip(*lasts, strict=True)]
        gap, error = fmean(gaps), math.sqrt(variance(gaps) / len(gaps))
        if not (gap > self.nats and gap - self.nats > settings.standard_errors * error):
            return None
        on, elsewhere = map(fmean, lasts)
        return _Found(
            elsewhere,
            on,
            elsewhere - self.nats,
            f"the teacher pushes markers down by {gap:.2f} nats per token more than other tokens "
            f"(limit {self.nats:.2f}): their density is going to fall",
        )


class Loops(Settings):
    """The share of responses that end in a loop rose by more than `points`."""

    type: Literal["loops"] = "loops"
    points: float = Field(default=0.05, gt=0.0, lt=1.0)
    action: Action | None = None

    def look(self, run: Watcher, settings: Monitor) -> _Found | None:
        """As `Fall.look`."""
        said = (
            "{now:.0%} of the responses end in a loop ({before:.0%} in the first {steps} steps): "
            "markers in them are collapse, not doubt"
        )
        return _risen(run.change(LOOPING), self.points, said, settings)


class Commits(Settings):
    """The share of answers given without a check rose by more than `points`."""

    type: Literal["commits"] = "commits"
    points: float = Field(default=0.15, gt=0.0, lt=1.0)
    action: Action | None = None

    def look(self, run: Watcher, settings: Monitor) -> _Found | None:
        """As `Fall.look`."""
        said = (
            "{now:.0%} of the answers are given without a check ({before:.0%} in the first {steps} "
            "steps)"
        )
        return _risen(run.change(COMMITTED), self.points, said, settings)


class HeldOut(Settings):
    """Early stop: `patience` evaluations in a row lie below the best one before by more than `by`.

    Attributes:
        set: Name of one of the run's `evaluations`, made every `eval_every` steps.
        measure: Of its responses.
        by: In the measure's own unit.
    """

    type: Literal["held_out"] = "held_out"
    set: str
    measure: Literal["score", "length_tokens", "density_per_1k_tokens"] = "score"
    by: float = Field(default=0.05, gt=0.0)
    patience: int = Field(default=2, ge=1)
    action: Action | None = None

    def look(self, run: Watcher, settings: Monitor) -> _Found | None:
        """As `Fall.look`; of a row that is an evaluation."""
        values = run.all(f"{self.set}/{self.measure}")
        before, last = values[: -self.patience], values[-self.patience :]
        if not before or max(last) >= (limit := max(before) - self.by):
            return None
        return _Found(
            max(before),
            last[-1],
            limit,
            f"{self.measure} on {self.set!r} has been more than {self.by:g} below its best "
            f"({max(before):.3g}) for {self.patience} evaluations: {last[-1]:.3g}",
        )


def _risen(change: Change | None, points: float, said: str, settings: Monitor) -> _Found | None:
    """Of a share that rose by more than `points`; what is said names now, before and steps."""
    if change is None or not change.rose(beyond=points):
        return None
    before, now = change.before, change.now
    message = said.format(now=now, before=before, steps=settings.baseline_steps)
    return _Found(before, now, before + points, message)


Rule = Annotated[Fall | Narrowing | Pull | Loops | Commits | HeldOut, Field(discriminator="type")]
DEFAULT_RULES = (
    Fall(measure=DENSITY, share=0.5),
    Fall(measure=ENTROPY, share=0.8),
    Narrowing(),
    Pull(action="log"),
    Loops(),
    Commits(),
)


class Monitor(Settings):
    """When to raise an alarm, and what one does.

    Attributes:
        action: "log" writes alarms.jsonl; "stop" also ends the training after that step; "lower"
            also multiplies the teacher's weight by `lower_factor`.
        rules: Each is looked at after every step.
        baseline_steps: The first so many steps are what a run is compared with.
        window_steps: The last so many steps are compared; they never overlap the baseline. After
            an alarm its rule rests for as many steps.
        standard_errors: A change of means must also exceed so many standard errors of it (from the
            spread of the steps inside baseline and window).
        lower_factor: See action.
    """

    action: Action = "log"
    rules: tuple[Rule, ...] = DEFAULT_RULES
    baseline_steps: int = Field(default=5, ge=2)
    window_steps: int = Field(default=5, ge=2)
    standard_errors: float = Field(default=4.0, ge=0.0)
    lower_factor: float = Field(default=0.5, gt=0.0, lt=1.0)

    @property
    def may_lower(self) -> bool:
        """Whether some rule lowers the teacher's weight."""
        return any((rule.action or self.action) == "lower" for rule in self.rules)


@dataclass(frozen=True, slots=True)
class Alarm:
    """One rule that fired.

    Attributes:
        step: Of the last row it looked at.
        rule: Its type, and the measure where it has one.
        action: What is done about it.
        baseline, value: Means of the two windows; for "pull", elsewhere and on markers.
        threshold: What the value passed.
        message: One line for a person.
    """

    step: int
    rule: str
    action: Action
    baseline: float
    value: float
    threshold: float
    message: str

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class Change(NamedTuple):
    """Means of baseline and window, and how far they must be apart to be told from noise."""

    before: float
    now: float
    noise: float

    def fell(self, *, beyond: float) -> bool:
        """Whether the fall exceeds `beyond` and the noise."""
        lost = self.before - self.now
        return lost > beyond and lost > self.noise

    def rose(self, *, beyond: float) -> bool:
        """Whether the rise exceeds `beyond` and the noise."""
        return Change(self.now, self.before, self.noise).fell(beyond=beyond)


class Watcher:
    """Looks at a run row by row.

    Args:
        settings: The rules; None never fires.
    """

    def __init__(self, settings: Monitor | None) -> None:
        self._settings = settings
        self._row: Mapping[str, Any] = {}
        self._known: dict[str, list[float]] = defaultdict(list)
        self._seen = 0
        self._last_alarm: dict[str, int] = {}  # rule to the row at which it last fired
        self.alarms: list[Alarm] = []

    def observe(self, row: Mapping[str, Any]) -> list[Alarm]:
        """Take in the numbers of one step, or of an evaluation after it; return what it raised.

        Rows that are not on-policy (`"on_policy": false`) say nothing about the student and are
        passed over; so is, measure by measure, a row whose value is absent or None.
        """
        settings = self._settings
        if settings is None or not row.get("on_policy", True):
            return []
        self._row, step = row, int(row["step"])
        self._seen += 1
        for name, value in row.items():
            if isinstance(value, Real):
                self._known[name].append(float(value))
        raised: list[Alarm] = []
        for rule in settings.rules:
            parts = rule.type, getattr(rule, "set", None), getattr(rule, "measure", None)
            name = ":".join(filter(None, parts))
            rests = self._seen - self._last_alarm.get(name, -settings.window_steps)
            if rests >= settings.window_steps and (found := rule.look(self, settings)) is not None:
                self._last_alarm[name] = self._seen
                message = f"step {step}: {found.message}"
                action = rule.action or settings.action
                raised.append(Alarm(step, name, action, *found[:3], message))
        self.alarms += raised
        return raised

    @property
    def stop(self) -> Alarm | None:
        """The first alarm that asks for the end of the run."""
        return next((alarm for alarm in self.alarms if alarm.action == "stop"), None)

    @property
    def factor(self) -> float:
        """What the teacher's weight is multiplied by after the alarms so far."""
        lowered = sum(alarm.action == "lower" for alarm in self.alarms)
        return 1.0 if self._settings is None else self._settings.lower_factor**lowered

    def all(self, measure: str) -> list[float]:
        """A measure in all rows so far; empty where this row has none."""
        return [] if self._row.get(measure) is None else self._known[measure]

    def last(self, measure: str) -> list[float]:
        """The window of a measure, shorter while the run is; empty where this row has none."""
        assert self._settings is not None
        return self.all(measure)[-self._settings.window_steps :]

    def change(self, measure: str) -> Change | None:
        """From the baseline to the window; None while they are not whole and apart."""
        assert self._settings is not None
        values, now = self._known[measure], self.last(measure)
        before = values[: self._settings.baseline_steps]
        if not now or len(values) < self._settings.baseline_steps + self._settings.window_steps:
            return None
        error = math.sqrt(variance(before) / len(before) + variance(now) / len(now))
        return Change(fmean(before), fmean(now), self._settings.standard_errors * error)


def with_less_teacher(method: Method, factor: float) -> Method:
    """The method with its teacher's weight multiplied by `factor`.

    A convex blend gives what it takes from the teacher to the verifier: pure distillation lowered
    to a half is half a policy gradient. (Scaling a loss alone changes nothing under Adam.)

    Raises:
        EpistillError: The method has no such weight.
    """
    if factor == 1.0:
        return method
    less = method.blend.with_less_teacher(factor)
    if less is None:
        raise EpistillError(
            f"method {method.name!r} has no weight of a teacher that an alarm could lower; "
            'expected monitor.action "log" or "stop" for it'
        )
    return method.model_copy(update={"blend": less})
