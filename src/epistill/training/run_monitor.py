"""The live monitor of a run: replays what was recorded, looks at each new step, acts on alarms.

Enters: the run's configuration and store, one row of metrics per step and evaluation. Leaves:
alarms.jsonl, and for the loop: the configuration of the next step, and whether there is one. Its
only state are these rows, so that a resumed run needs nothing from a checkpoint. Where several
processes train together, all decide by the first one's numbers: one that stopped alone would leave
the others waiting for ever.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from epistill.config import RunConfig
from epistill.monitor import Watcher, with_less_teacher
from epistill.store import RunStore
from epistill.world import World


class RunMonitor:
    """Monitors one run; its making and `observe` are collective.

    Args:
        config: The run.
        store: Its directory, rewound to the step that comes next.
        world: The processes that train together.
    """

    def __init__(self, config: RunConfig, store: RunStore, world: World) -> None:
        self._config = config
        self._store = store
        self._world = world
        self._watcher = Watcher(config.monitor)
        for row in world.on_first(self._recorded):  # the others may not see its files yet
            self._watcher.observe(row)

    def _recorded(self) -> list[dict[str, Any]]:
        """What was observed before, in its order."""
        rows, curve = self._store.metrics(), self._store.curve()
        made = [_after_its_step(point) for point in curve if point["step"] <= len(rows)]
        return sorted([*rows, *made], key=lambda row: row["step"])

    @property
    def goes_on(self) -> bool:
        """False once an alarm asked for the end of the run."""
        return self._watcher.stop is None

    @property
    def config(self) -> RunConfig:
        """The run's configuration, its teacher's weight lowered as the alarms so far ask."""
        method = with_less_teacher(self._config.method, self._watcher.factor)
        return self._config.model_copy(update={"method": method})

    def observe(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """The step's record with what the monitor says about it; alarms are written down."""
        record = self._world.on_first(lambda: dict(record))
        factor = self._watcher.factor
        return {**record, "teacher_weight_factor": factor, "alarms": self._raised(record)}

    def evaluated(self, point: Mapping[str, Any] | None) -> None:
        """Look at an evaluation during training, if there was one: in all processes or in none."""
        if point is not None:
            self._raised(self._world.on_first(lambda: _after_its_step(point)))

    def _raised(self, row: Mapping[str, Any]) -> list[str]:
        """Rules that the row sets off; their alarms are written down."""
        alarms = self._watcher.observe(row)
        for alarm in alarms:
            self._store.append("alarms", asdict(alarm))
        return [alarm.rule for alarm in alarms]


def _after_its_step(point: Mapping[str, Any]) -> dict[str, Any]:
    """A point counts the steps done before it, a row of metrics is named by its step."""
    return {**point, "step": point["step"] - 1}
