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
from tests.helpers.python import Program

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
for folder, config in zip(sys.argv[1::2], sys.argv[2::2], strict=True):
    run(RunConfig.model_validate_json(config), Path(folder))
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


def told(runs):
    return [word for folder, settings in runs for word in (str(folder), settings.model_dump_json())]


def start(*runs):
    return Program("-c", CHILD, *told(runs))


def kill_on_the_way(folder, settings):
    """Past the first checkpoint (3 steps) and into steps that must be done again."""
    process, metrics = start((folder, settings)), folder / "metrics.jsonl"
    deadline = time.monotonic() + 240
    while not (metrics.is_file() and metrics.read_bytes().count(b"\n") >= 5):
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert RunStore(folder).result is None


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Undisturbed ones by one process; a killed process each, and one that goes on with all."""
    root = tmp_path_factory.mktemp("resume")
    settings = {name: config(name) for name in METHOD_SETTINGS}
    other = settings["sdpo"].model_copy(update={"seed": 1})
    wholes = [(root / f"whole-{name}", one) for name, one in settings.items()]
    # A Python of its own: another order of sets than in those that are forked.
    whole = subprocess.Popen([sys.executable, "-c", CHILD, *told(wholes)])
    for name, one in settings.items():
        kill_on_the_way(root / f"broken-{name}", one)
    broken = [(root / f"broken-{name}", one) for name, one in settings.items()]
    resumed = start(*broken, (root / "again", settings["sdpo"]), (root / "other", other))
    assert whole.wait(timeout=300) == 0
    assert resumed.wait() == 0, resumed.said()
    return root


@pytest.mark.parametrize("name", list(METHOD_SETTINGS))
def test_a_killed_and_resumed_run_is_bit_identical(name, runs):
    whole, broken = runs / f"whole-{name}", runs / f"broken-{name}"
    first, second = ((f / "metrics.jsonl").read_bytes() for f in (whole, broken))
    assert first == second
    one, other = (load_file(f / "model" / "model.safetensors") for f in (whole, broken))
    assert one.keys() == other.keys()
    assert all((one[k] == other[k]).all() for k in one)
    for table in RunStore(whole).evaluation_names():
        assert RunStore(whole).read_evaluation(table) == RunStore(broken).read_evaluation(table)


def test_two_runs_of_one_configuration_give_identical_metrics(runs):
    names = ("whole-sdpo", "again", "other")
    first, second, other = ((runs / n / "metrics.jsonl").read_bytes() for n in names)
    assert first == second
    assert other != first
