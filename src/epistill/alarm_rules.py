"""The rules of the monitor: what in a run's numbers is an alarm. Imports no torch.

Enters: a `History`, to which every step and every evaluation on the way has added its row. Leaves:
what a rule found, or nothing. The reasons for the default thresholds are in docs/monitor.md; none
was fitted to a run.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Real
from statistics import fmean, variance
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, get_args

from pydantic import Field

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


HeldOutMeasure = Literal[
    "score",
    "length_tokens",
    "density_per_1k_tokens",
    "verified_share",
    "committed_share",
    "candidates",
]
HELD_OUT: tuple[HeldOutMeasure, ...] = get_args(HeldOutMeasure)  # of evaluations on the way


class Finding(NamedTuple):
    """What a rule has to say."""

    baseline: float
    value: float
    threshold: float
    message: str


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


@dataclass(slots=True)
class History:
    """Every number of a run so far, row by row, and the windows in which rules compare them.

    Attributes:
        baseline_steps, window_steps, standard_errors: Of the `Monitor`.
        rows: How many rows so far name a measure, be it as None.
    """

    baseline_steps: int
    window_steps: int
    standard_errors: float
    rows: Counter[str] = field(default_factory=Counter[str])
    _row: Mapping[str, Any] = field(default_factory=dict[str, Any])
    _known: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def add(self, row: Mapping[str, Any]) -> None:
        """Take in a row; what is absent or None in it is not known of it."""
        self._row = row
        self.rows.update(row.keys())
        for name, value in row.items():
            if isinstance(value, Real):
                self._known[name].append(float(value))

    def all(self, measure: str) -> list[float]:
        """A measure in all rows so far; empty where this row has none."""
        return [] if self._row.get(measure) is None else self._known[measure]

    def last(self, measure: str) -> list[float]:
        """The window of a measure, shorter while the run is; empty where this row has none."""
        return self.all(measure)[-self.window_steps :]

    def change(self, measure: str) -> Change | None:
        """From the baseline to the window; None while they are not whole and apart."""
        values, now = self._known[measure], self.last(measure)
        before = values[: self.baseline_steps]
        if not now or len(values) < self.baseline_steps + self.window_steps:
            return None
        error = math.sqrt(variance(before) / len(before) + variance(now) / len(now))
        return Change(fmean(before), fmean(now), self.standard_errors * error)


class Fall(Settings):
    """A measure lost more than `share` of its baseline. An action of None takes the monitor's.

    Every rule has `reads`: the measure whose rows it looks at.
    """

    type: Literal["fall"] = "fall"
    measure: Literal[
        "density_per_1k_tokens",
        "entropy_nats_per_token",
        "length_tokens",
        "verified_share",
        "candidates",
    ]
    share: float = Field(gt=0.0, lt=1.0)
    action: Action | None = None

    @property
    def reads(self) -> str:
        """As above."""
        return self.measure

    def look(self, run: History) -> Finding | None:
        """What it found in the run so far; None for nothing."""
        change = run.change(self.measure)
        if change is None or not change.fell(beyond=self.share * change.before):
            return None
        return Finding(
            change.before,
            change.now,
            (1 - self.share) * change.before,
            f"{self.measure} fell from {change.before:.3g} (first {run.baseline_steps} steps) "
            f"to {change.now:.3g} (last {run.window_steps}), by more than {self.share:.0%}",
        )


class Narrowing(Settings):
    """pass@k of the training groups fell by more than `points` while avg@k rose."""

    reads: ClassVar[str] = PASS_AT_K
    type: Literal["narrowing"] = "narrowing"
    points: float = Field(default=0.05, gt=0.0, lt=1.0)
    action: Action | None = None

    def look(self, run: History) -> Finding | None:
        """As `Fall.look`."""
        passed, mean = run.change(PASS_AT_K), run.change(AVG_AT_K)
        if passed is None or mean is None:
            return None
        if not (passed.fell(beyond=self.points) and mean.rose(beyond=0.0)):
            return None
        return Finding(
            passed.before,
            passed.now,
            passed.before - self.points,
            f"pass@k fell from {passed.before:.3f} to {passed.now:.3f} while avg@k rose from "
            f"{mean.before:.3f} to {mean.now:.3f}: fewer problems are solved, more often",
        )


class Pull(Settings):
    """The teacher gives markers less, relative to other tokens, by more than `nats` on average."""

    reads: ClassVar[str] = PULL_ON_MARKERS
    type: Literal["pull"] = "pull"
    nats: float = Field(default=math.log(2), gt=0.0)
    action: Action | None = None

    def look(self, run: History) -> Finding | None:
        """As `Fall.look`; it needs no baseline."""
        lasts = run.last(PULL_ON_MARKERS), run.last(PULL_ELSEWHERE)
        if min(map(len, lasts)) < run.window_steps:
            return None
        gaps = [elsewhere - on for on, elsewhere in zip(*lasts, strict=True)]
        gap, error = fmean(gaps), math.sqrt(variance(gaps) / len(gaps))
        if not (gap > self.nats and gap - self.nats > run.standard_errors * error):
            return None
        on, elsewhere = map(fmean, lasts)
        return Finding(
            elsewhere,
            on,
            elsewhere - self.nats,
            f"the teacher pushes markers down by {gap:.2f} nats per token more than other tokens "
            f"(limit {self.nats:.2f}): their density is going to fall",
        )


class RiseOfShare(Settings):
    """A share rose by more than `points`; a kind names it, and says it with now, before, steps."""

    reads: ClassVar[str]
    said: ClassVar[str]
    type: Any
    points: float = Field(gt=0.0, lt=1.0)
    action: Action | None = None

    def look(self, run: History) -> Finding | None:
        """As `Fall.look`."""
        change = run.change(self.reads)
        if change is None or not change.rose(beyond=self.points):
            return None
        before, now = change.before, change.now
        message = self.said.format(now=now, before=before, steps=run.baseline_steps)
        return Finding(before, now, before + self.points, message)


class Loops(RiseOfShare):
    """The share of responses that end in a loop rose by more than `points`."""

    reads: ClassVar[str] = LOOPING
    said: ClassVar[str] = (
        "{now:.0%} of the responses end in a loop ({before:.0%} in the first {steps} steps): "
        "markers in them are collapse, not doubt"
    )
    type: Literal["loops"] = "loops"
    points: float = Field(default=0.05, gt=0.0, lt=1.0)


class Commits(RiseOfShare):
    """The share of answers given without a check rose by more than `points`."""

    reads: ClassVar[str] = COMMITTED
    said: ClassVar[str] = (
        "{now:.0%} of the answers are given without a check ({before:.0%} in the first {steps} "
        "steps)"
    )
    type: Literal["commits"] = "commits"
    points: float = Field(default=0.15, gt=0.0, lt=1.0)


class HeldOut(Settings):
    """Early stop: `patience` evaluations in a row are worse than the best before by more than `by`.

    Of `committed_share` more is worse, of every other measure less.

    Attributes:
        set: Name of one of the run's `evaluations`, made every `eval_every` steps.
        measure: Of its responses.
        by: In the measure's own unit.
    """

    type: Literal["held_out"] = "held_out"
    set: str
    measure: HeldOutMeasure = "score"
    by: float = Field(default=0.05, gt=0.0)
    patience: int = Field(default=2, ge=1)
    action: Action | None = None

    @property
    def reads(self) -> str:
        """As of `Fall`."""
        return f"{self.set}/{self.measure}"

    def look(self, run: History) -> Finding | None:
        """As `Fall.look`; of a row that is an evaluation."""
        sign, side = (-1, "above") if self.measure == COMMITTED else (1, "below")
        values = [sign * value for value in run.all(self.reads)]
        before, last = values[: -self.patience], values[-self.patience :]
        if not before or max(last) >= (limit := max(before) - self.by):
            return None
        best, now = sign * max(before), sign * last[-1]
        return Finding(
            best,
            now,
            sign * limit,
            f"{self.measure} on {self.set!r} has been more than {self.by:g} {side} its best "
            f"({best:.3g}) for {self.patience} evaluations: {now:.3g}",
        )


Rule = Annotated[Fall | Narrowing | Pull | Loops | Commits | HeldOut, Field(discriminator="type")]
DEFAULT_RULES = (
    Fall(measure=DENSITY, share=0.5),
    Fall(measure=ENTROPY, share=0.8),
    Narrowing(),
    Pull(action="log"),
    Loops(),
    Commits(),
)
