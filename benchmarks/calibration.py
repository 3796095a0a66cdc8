"""What `epistill plan --calibrate` predicts beside what the run then takes, for a small real model.

    OMP_NUM_THREADS=1 python benchmarks/calibration.py MODEL_DIRECTORY [--out FILE.json]

OPSD on number pairs: every response has a context (the solution), so nothing a plan counts is
skipped. Calibration and runs are timed in processor seconds of one thread: other work on the
machine waits for them or makes them wait, and is in neither.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from common import report

from epistill.studies.calibrate import calibrated
from epistill.studies.hardware import Architecture
from epistill.studies.plan import plan_study
from epistill.studies.run_arm import run
from epistill.studies.spec import StudySpec

STEPS, PROBLEMS, SAMPLES = 2, 2, 2  # of each run; its first step is left out
LIMITS = (32, 96)  # tokens of a response; calibration writes at most 64
PROMPT = 75  # tokens, about: of the question with SmolLM2's template


def study(model: Path, limit: int) -> StudySpec:
    shape = json.loads((model / "config.json").read_text())
    shape = {key: value for key, value in shape.items() if key in Architecture.model_fields}
    return StudySpec.model_validate(
        {
            "name": "calibration", "question": "How long?", "about": "", "seeds": [0],
            "run": {
                "model": str(model), "steps": STEPS, "problems_per_step": PROBLEMS,
                "samples_per_problem": SAMPLES, "microbatch_tokens": 1024, "monitor": "off",
                "task": {"type": "number_pairs"}, "sampling": {"max_new_tokens": limit},
                "dtype": "bfloat16", "lora": {"rank": 16, "alpha": 32.0},
            },
            "hardware": {"gpu": "a core", "gpus": 1, "memory_gib": 24, "peak_tflops": 10.0,
                         "source": "any peak: the share of it is what is measured"},
            "lengths": {"prompt": PROMPT, "source": "responses to the limit"},
            "architectures": {str(model): {**shape, "source": "config.json"}},
            "arms": [{"id": "opsd", "label": "OPSD", "method": "opsd", "baseline": None}],
        }
    )  # fmt: skip


def compared(model: Path, limit: int) -> dict[str, object]:
    spec = calibrated(study(model, limit))
    hours = plan_study(spec)["arms"]["opsd"]["gpu_hours"]
    with TemporaryDirectory() as folder:
        store = run(spec.config_of(spec.arms[0], 0), Path(folder), save_model=False)
        taken, rows = store.timing()[1:], store.metrics()[1:]
    line: dict[str, object] = {"limit": limit}
    line["length"] = sum(row["length_tokens"] for row in rows) / len(rows)
    for part, name in (("sampling", "rollout_seconds"), ("training", "update_seconds")):
        predicted = hours[part] * 3600 / STEPS
        measured = sum(row[name] for row in taken) / len(taken)
        line |= {f"{part} predicted s": predicted, f"{part} measured s": measured}
        line[f"{part} predicted / measured"] = predicted / measured
    return line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--limits", type=int, nargs="+", default=LIMITS)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    time.perf_counter = time.process_time  # what calibration and the loop time with
    table = [compared(options.model, limit) for limit in options.limits]
    report("a step of OPSD, predicted and measured, processor seconds", table, options.out)


if __name__ == "__main__":
    main()
