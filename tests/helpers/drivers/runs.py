"""Carries out runs, [[folder, configuration, *spoiled], ...] in a JSON file; alone or under torchrun.

Processes that are not the first see no metrics on disk, and count responses as longer and longer:
a machine whose view of the folder lags and whose arithmetic differs. No decision may rest on it.
At the optimiser steps named by `spoiled` their gradients, and theirs alone, are not numbers.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor

import epistill.training.loop
import epistill.training.optimiser_steps
from epistill.config import RunConfig
from epistill.errors import EpistillError, StoppedElsewhere
from epistill.interrupts import ended_before_finalization
from epistill.store import RunStore
from epistill.studies.run_arm import run
from epistill.world import joined
from tests.helpers.known_answers import known_where_watched


def see_otherwise():
    inner = epistill.training.loop._batch_metrics

    def longer(*args):
        found, longer.calls = inner(*args), longer.calls + 1
        return {**found, "length_tokens": found["length_tokens"] * 2**longer.calls}

    longer.calls = 0
    epistill.training.loop._batch_metrics = longer
    RunStore.metrics = RunStore.alarms = lambda self: []


def spoil(steps, inner):
    def spoiled(student, *args, **options):
        found = inner(student, *args, **options)
        for parameter in student.network.parameters():
            if spoiled.step in steps and (grad := parameter.grad) is not None:
                (grad.to_local() if isinstance(grad, DTensor) else grad).fill_(torch.nan)
        spoiled.step += 1
        return found

    spoiled.step = 0
    epistill.training.optimiser_steps.accumulate_gradients = spoiled


torch.set_num_threads(1)
gradients = epistill.training.optimiser_steps.accumulate_gradients
with ended_before_finalization(), joined() as world:
    if not world.first:
        see_otherwise()
    for folder, config, *spoiled in json.loads(Path(sys.argv[1]).read_text()):
        spoil(() if world.first else spoiled, gradients)
        try:
            with known_where_watched(config):
                run(RunConfig.model_validate(config), Path(folder))
        except (EpistillError, StoppedElsewhere) as error:
            if not spoiled:
                raise
            told = {"type": type(error).__name__, "message": str(error)}
            (Path(folder) / f"stopped-{world.rank}.json").write_text(json.dumps(told))
