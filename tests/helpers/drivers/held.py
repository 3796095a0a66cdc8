"""Carries out runs, [[folder, configuration], ...] in a JSON file, and tells what processes hold.

held.json in each folder: of every process after every step, the bytes of plain tensors in memory
that have the shape of one of the model's matrices, and all of its numbers.
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path

import torch

from epistill.config import RunConfig
from epistill.interrupts import ended_before_finalization
from epistill.rollouts.load_model import load_model
from epistill.studies import run_arm
from epistill.world import joined


def whole_bytes(shapes):
    gc.collect()
    found = {}
    for one in gc.get_objects():
        if type(one) in (torch.Tensor, torch.nn.Parameter) and tuple(one.shape) in shapes:
            storage = one.untyped_storage()
            if one.is_floating_point() and storage.nbytes() >= one.numel() * one.element_size():
                found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())


def train_student(*args, on_step, **more):
    def counted(done, student):
        held.append(whole_bytes(shapes))
        return on_step(done, student)

    train(*args, on_step=counted, **more)


train, run_arm.train_student = run_arm.train_student, train_student
torch.set_num_threads(1)
with ended_before_finalization(), joined() as world:
    weights = load_model("lab").network.parameters()
    shapes = {tuple(weight.shape) for weight in weights if weight.ndim == 2}
    del weights
    for folder, config in json.loads(Path(sys.argv[1]).read_text()):
        held = []
        run_arm.run(RunConfig.model_validate(config), Path(folder))
        everyone = world.gather(held)
        if world.first:
            (Path(folder) / "held.json").write_text(json.dumps(everyone))
