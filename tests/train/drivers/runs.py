"""Carries out runs, [[folder, configuration], ...] in a JSON file; alone or under torchrun."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from epistill.config import RunConfig
from epistill.study.run import run
from epistill.world import joined

torch.set_num_threads(1)
with joined():
    for folder, config in json.loads(Path(sys.argv[1]).read_text()):
        run(RunConfig.model_validate(config), Path(folder))
