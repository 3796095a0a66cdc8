"""One step of TRL's SDPO with epistill's loss: rows and gradients of each process, by torchrun."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

from safetensors.torch import save_file
from trl.experimental.sdpo import SDPOConfig, SDPOTrainer

from epistill.interrupts import ended_before_finalization
from tests.helpers.trl_steps import SDPO, one_step, rows_of


def main(folder: Path) -> None:
    """Write rows-RANK.json and gradients-RANK.safetensors."""
    trainer, gradients, _ = one_step(SDPOTrainer, SDPOConfig, folder, **SDPO)
    rank = os.environ["RANK"]
    rows = [asdict(row) for row in rows_of(trainer)]
    (folder / f"rows-{rank}.json").write_text(json.dumps(rows))
    save_file(gradients, folder / f"gradients-{rank}.safetensors")


if __name__ == "__main__":
    with ended_before_finalization():
        main(Path(sys.argv[1]))
