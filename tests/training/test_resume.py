"""Killed with SIGKILL and resumed: metrics and weights equal those of an undisturbed run, bit for bit."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest
from safetensors.torch import load_file

from epistill.config import RunConfig
from epistill.methods import method
from epistill.store import RunStore

STEPS = 8
METHOD_SETTINGS = {
    "grpo": {},
    "sdpo": {"teacher": {"type": "ema", "rate": 0.2}},
    "sft-unguided": {"traces": {"count": 16}},
}

CHILD = """
import sys, torch
torch.set_num_threads(1)
from pathlib import Path
from epistill.config import RunConfig
from epistill.studies.run_arm import run
run(RunConfig.model_validate_json(sys.argv[2]), Path(sys.argv[1]))
"""


def config(name):
    return RunConfig.model_validate(
        {
            "model": "lab",
            "task": {"type": "star_search", "arms": 3, "depth": 2},
            "method": method(name, **METHOD_SETTINGS[name]).model_dump(),
            "coverage": 6,
            "sampling": {"max_new_tokens": 24},
            "steps": STEPS,
            "problems_per_step": 4,
            "samples_per_problem": 4,
            "updates_per_batch": 2,
            "learning_rate": 1e-3,
            "checkpoint_every": 3,
            "eval_every": 2,
            "evaluations": [
                {
                    "name": "test",
                    "task": {"type": "star_search", "arms": 3, "depth": 2, "split": "test"},
                    "problems": 4,
                    "samples": 2,
                    "curve_problems": 2,
                }
            ],
        }
    )


def start(folder, settings):
    return subprocess.Popen([sys.executable, "-c", CHILD, str(folder), settings.model_dump_json()])


def finish(folder, settings):
    assert start(folder, settings).wait(timeout=300) == 0


@pytest.mark.parametrize("name", list(METHOD_SETTINGS))
def test_a_killed_and_resumed_run_is_bit_identical(name, tmp_path):
    settings = config(name)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    finish(whole, settings)
    process = start(broken, settings)
    metrics = broken / "metrics.jsonl"
    deadline = time.monotonic() + 240
    # Past the first checkpoint (3 steps) and into steps that must be done again.
    while not (metrics.is_file() and metrics.read_bytes().count(b"\n") >= 5):
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert RunStore(broken).result is None
    finish(broken, settings)
    assert metrics.read_bytes() == (whole / "metrics.jsonl").read_bytes()
    one, other = (load_file(f / "model" / "model.safetensors") for f in (whole, broken))
    assert one.keys() == other.keys()
    assert all((one[k] == other[k]).all() for k in one)
    for table in RunStore(whole).record_names("evaluations"):
        assert RunStore(whole).read_records("evaluations", table) == RunStore(broken).read_records(
            "evaluations", table
        )


def test_two_runs_of_one_configuration_give_identical_metrics(tmp_path):
    settings = config("sdpo")
    for name in ("a", "b"):
        finish(tmp_path / name, settings)
    first, second = ((tmp_path / n / "metrics.jsonl").read_bytes() for n in ("a", "b"))
    assert first == second
    other = settings.model_copy(update={"seed": 1})
    finish(tmp_path / "c", other)
    assert (tmp_path / "c" / "metrics.jsonl").read_bytes() != first
