"""Alarms on the numbers of a training run: rules with stated thresholds. Imports no torch.

Enters: settings, and one row of metrics per step (`metrics.jsonl`, or what a callback measured).
Leaves: `Alarm`s, whether the run should stop, and a method whose teacher weighs less. A pure
function of the rows: a resumed run replays them and is where it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from epistill.alarm_rules import DEFAULT_RULES, Action, HeldOut, History, Rule
from epistill.axes import Method
from epistill.errors import EpistillError, did_you_mean
from epistill.settings import Settings


class Monitor(Settings):
    """When to raise an alarm, and what one does.

    Attributes:
        action: "log" writes alarms.jsonl; "stop" also ends the training after that step; "lower"
            also multiplies the teacher's weight by `lower_factor`.
        rules: Each is looked at after every step.
        baseline_steps: The first so many steps are what a run is compared with.
        window_steps: The last so many steps are compared; they never overlap the baseline. After
            an alarm its rule rests for as many rows that name its measure.
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

    def check_sets(self, evaluated: Sequence[str]) -> None:
        """Refuse a rule on a set that is not evaluated during training, by a ValueError."""
        for rule in self.rules:
            if isinstance(rule, HeldOut) and rule.set not in evaluated:
                raise ValueError(
                    f"monitor.rules: held_out watches {rule.set!r}; expected eval_every and one of "
                    f"the evaluations{did_you_mean(rule.set, evaluated)}"
                )

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


class Watcher:
    """Looks at a run row by row.

    Args:
        settings: The rules; None never fires.
    """

    def __init__(self, settings: Monitor | None) -> None:
        self._settings = settings
        if settings is not None:
            numbers = settings.baseline_steps, settings.window_steps, settings.standard_errors
            self._history = History(*numbers)
        self._last_alarm: dict[str, int] = {}  # rule to its rows until it last fired
        self.alarms: list[Alarm] = []

    def observe(self, row: Mapping[str, Any]) -> list[Alarm]:
        """Take in the numbers of one step, or of an evaluation after it; return what it raised.

        Rows that are not on-policy (`"on_policy": false`) say nothing about the student and are
        passed over; so is, measure by measure, a row whose value is absent or None.
        """
        settings = self._settings
        if settings is None or not row.get("on_policy", True):
            return []
        step = int(row["step"])
        self._history.add(row)
        raised: list[Alarm] = []
        for rule in settings.rules:
            parts = rule.type, getattr(rule, "set", None), getattr(rule, "measure", None)
            name = ":".join(filter(None, parts))
            seen = self._history.rows[rule.reads]
            rests = seen - self._last_alarm.get(name, -settings.window_steps)
            if rests >= settings.window_steps and (found := rule.look(self._history)) is not None:
                self._last_alarm[name] = seen
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
