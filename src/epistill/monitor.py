"""Alarms on the numbers of a training run: rules with stated thresholds. Imports no torch.

Enters: settings, and one row of metrics per step (`metrics.jsonl`, or what a callback measured).
Leaves: `Alarm`s, whether the run should stop, and a method whose teacher weighs less. A pure
function of the rows: a resumed run replays them and is where it was.

The reasons for the default thresholds are in docs/monitor.md; none was fitted to a run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, variance
from typing import Annotated, Any, Literal

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
PULL_ON_MARKERS = "teacher_pull_on_markers_nats_per_token"
PULL_ELSEWHERE = "teacher_pull_elsewhere_nats_per_token"
_MEASURES = (
    DENSITY,
    ENTROPY,
    "length_tokens",
    AVG_AT_K,
    PASS_AT_K,
    LOOPING,
    PULL_ON_MARKERS,
    PULL_ELSEWHERE,
)


class Fall(Settings):
    """A measure lost more than `share` of its baseline.

    Attributes:
        action: None takes the monitor's.
    """

    type: Literal["fall"] = "fall"
    measure: Literal["density_per_1k_tokens", "entropy_nats_per_token", "length_tokens"]
    share: float = Field(gt=0.0, lt=1.0)
    action: Action | None = None


class Narrowing(Settings):
    """pass@k of the training groups fell by more than `points` while avg@k rose."""

    type: Literal["narrowing"] = "narrowing"
    points: float = Field(default=0.05, gt=0.0, lt=1.0)
    action: Action | None = None


class Pull(Settings):
    """The teacher gives markers less, relative to other tokens, by more than `nats` on average."""

    type: Literal["pull"] = "pull"
    nats: float = Field(default=math.log(2), gt=0.0)
    action: Action | None = None


class Loops(Settings):
    """The share of responses that end in a loop rose by more than `points`."""

    type: Literal["loops"] = "loops"
    points: float = Field(default=0.05, gt=0.0, lt=1.0)
    action: Action | None = None


Rule = Annotated[Fall | Narrowing | Pull | Loops, Field(discriminator="type")]
DEFAULT_RULES = (
    Fall(measure=DENSITY, share=0.5),
    Fall(measure=ENTROPY, share=0.8),
    Narrowing(),
    Pull(action="log"),
    Loops(),
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


class Watcher:
    """Looks at a run row by row.

    Args:
        settings: The rules; None never fires.
    """

    def __init__(self, settings: Monitor | None) -> None:
        self._settings = settings
        self._row: Mapping[str, Any] = {}
        self._known: dict[str, list[float]] = {name: [] for name in _MEASURES}
        self._seen = 0
        self._last: dict[str, int] = {}  # rule to the row at which it last fired
        self.alarms: list[Alarm] = []

    def observe(self, row: Mapping[str, Any]) -> list[Alarm]:
        """Take in one step's numbers; return the alarms it raised.

        Rows that are not on-policy (`"on_policy": false`) say nothing about the student and are
        passed over; so is, measure by measure, a row whose value is absent or None.
        """
        if self._settings is None or not row.get("on_policy", True):
            return []
        self._row = row
        self._seen += 1
        for name, values in self._known.items():
            if row.get(name) is not None:
                values.append(float(row[name]))
        found = [
            alarm
            for rule in self._settings.rules
            if (alarm := self._judge(rule, self._settings)) is not None
        ]
        self.alarms += found
        return found

    @property
    def stop(self) -> Alarm | None:
        """The first alarm that asks for the end of the run."""
        return next((alarm for alarm in self.alarms if alarm.action == "stop"), None)

    @property
    def factor(self) -> float:
        """What the teacher's weight is multiplied by after the alarms so far."""
        lowered = sum(alarm.action == "lower" for alarm in self.alarms)
        return 1.0 if self._settings is None else self._settings.lower_factor**lowered

    def _judge(self, rule: Rule, settings: Monitor) -> Alarm | None:
        name = f"fall:{rule.measure}" if isinstance(rule, Fall) else rule.type
        step = int(self._row["step"])
        last = self._last.get(name)
        if last is not None and self._seen - last < settings.window_steps:
            return None
        match rule:
            case Fall():
                found = _fall(rule, self._change(rule.measure, settings), settings)
            case Narrowing():
                passed, mean = (self._change(m, settings) for m in (PASS_AT_K, AVG_AT_K))
                found = _narrowing(rule, passed, mean, settings)
            case Pull():
                found = self._pull(rule, settings)
            case Loops():
                found = _loops(rule, self._change(LOOPING, settings), settings)
        if found is None:
            return None
        baseline, value, threshold, message = found
        self._last[name] = self._seen
        action = rule.action or settings.action
        return Alarm(step, name, action, baseline, value, threshold, f"step {step}: {message}")

    def _change(self, measure: str, settings: Monitor) -> _Change | None:
        values = self._known[measure]
        enough = len(values) >= settings.baseline_steps + settings.window_steps
        if not enough or self._row.get(measure) is None:
            return None
        return _Change.between(values[: settings.baseline_steps], values[-settings.window_steps :])

    def _pull(self, rule: Pull, settings: Monitor) -> _Found | None:
        names = (PULL_ON_MARKERS, PULL_ELSEWHERE)
        if any(self._row.get(name) is None for name in names):
            return None
        on_markers, others = (self._known[name][-settings.window_steps :] for name in names)
        if min(len(on_markers), len(others)) < settings.window_steps:
            return None
        both = list(zip(on_markers, others, strict=True))
        gaps = [on - elsewhere for on, elsewhere in both]
        error = math.sqrt(variance(gaps) / len(gaps))
        gap = fmean(gaps)
        if not (gap < -rule.nats and -gap - rule.nats > settings.standard_errors * error):
            return None
        on, elsewhere = (fmean(values) for values in zip(*both, strict=True))
        return (
            elsewhere,
            on,
            elsewhere - rule.nats,
            f"the teacher pushes markers down by {-gap:.2f} nats per token more than other tokens "
            f"(limit {rule.nats:.2f}): their density is going to fall",
        )


_Found = tuple[float, float, float, str]  # baseline, value, threshold, message


@dataclass(frozen=True, slots=True)
class _Change:
    """Means of baseline and window, and the standard error of their difference."""

    before: float
    now: float
    error: float

    @classmethod
    def between(cls, before: Sequence[float], now: Sequence[float]) -> _Change:
        error = math.sqrt(variance(before) / len(before) + variance(now) / len(now))
        return cls(fmean(before), fmean(now), error)

    def fell(self, settings: Monitor, *, beyond: float) -> bool:
        """Whether the fall exceeds `beyond` and the standard errors."""
        lost = self.before - self.now
        return lost > beyond and lost > settings.standard_errors * self.error

    def rose(self, settings: Monitor) -> bool:
        gained = self.now - self.before
        return gained > 0 and gained > settings.standard_errors * self.error


def _fall(rule: Fall, change: _Change | None, settings: Monitor) -> _Found | None:
    if change is None or not change.fell(settings, beyond=rule.share * change.before):
        return None
    return (
        change.before,
        change.now,
        (1 - rule.share) * change.before,
        f"{rule.measure} fell from {change.before:.3g} (first {settings.baseline_steps} steps) to "
        f"{change.now:.3g} (last {settings.window_steps}), by more than {rule.share:.0%}",
    )


def _narrowing(
    rule: Narrowing, passed: _Change | None, mean: _Change | None, settings: Monitor
) -> _Found | None:
    if passed is None or mean is None:
        return None
    if not (passed.fell(settings, beyond=rule.points) and mean.rose(settings)):
        return None
    return (
        passed.before,
        passed.now,
        passed.before - rule.points,
        f"pass@k fell from {passed.before:.3f} to {passed.now:.3f} while avg@k rose from "
        f"{mean.before:.3f} to {mean.now:.3f}: fewer problems are solved, more often",
    )


def _loops(rule: Loops, change: _Change | None, settings: Monitor) -> _Found | None:
    if change is None or change.now - change.before <= rule.points or not change.rose(settings):
        return None
    return (
        change.before,
        change.now,
        change.before + rule.points,
        f"{change.now:.0%} of the responses end in a loop ({change.before:.0%} in the first "
        f"{settings.baseline_steps} steps): markers in them are collapse, not doubt",
    )


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
