"""Carries out runs, [[folder, configuration], ...] in a JSON file; alone or under torchrun.

Processes that are not the first see no metrics on disk, and count responses as longer and longer:
a machine whose view of the folder lags and whose arithmetic differs. No decision may rest on it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

import epistill.train.loop
from epistill.config import RunConfig
from epistill.store import RunStore
from epistill.study.run import run
from epistill.world import joined


def see_otherwise():
    inner = epistill.train.loop._batch_metrics

    def longer(*args):
        found, longer.calls = inner(*args), longer.calls + 1
        return {**found, "length_tokens": found["length_tokens"] * 2**longer.calls}

    longer.calls = 0
    epistill.train.loop._batch_metrics = longer
    RunStore.metrics = RunStore.alarms = lambda self: []


torch.set_num_threads(1)
with joined() as world:
    if not world.first:
        see_otherwise()
    for folder, config in json.loads(Path(sys.argv[1]).read_text()):
        run(RunConfig.model_validate(config), Path(folder))
