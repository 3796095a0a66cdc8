"""A study killed with SIGKILL at random points, again and again: nothing finished is lost or torn."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time

import pytest
from safetensors.torch import load_file

from epistill.store import RunStore, read_json, read_jsonl
from epistill.studies.jobs import carry_out
from epistill.studies.runner import run_study
from epistill.studies.spec import LabWorld, StudySpec
from tests.helpers.python import Program
from tests.helpers.toy_study import SPEC

TOY = {
    **SPEC,
    "seeds": [0],
    "run": {**SPEC["run"], "steps": 12, "checkpoint_every": 1, "eval_every": 4},
    "evaluations": SPEC["evaluations"],
    "arms": [arm for arm in SPEC["arms"] if arm["id"] in ("base", "grpo", "sdpo")],
    "controls": [],
    "probes": [],
}

CHILD = """
import sys, json
from pathlib import Path
from epistill.studies.runner import run_study
from epistill.studies.spec import StudySpec
if __name__ == "__main__":
    run_study(StudySpec.model_validate_json(Path(sys.argv[1]).read_text()), Path(sys.argv[2]), workers=2)
"""


def start(folder):
    script, spec = folder / "child.py", folder / "spec.json"
    script.write_text(CHILD)
    spec.write_text(json.dumps(TOY))
    return Program(script, spec, folder / "study", new_session=True)


def done_of(out):
    """Finished runs by folder, and finished steps of the others: those before their checkpoint."""
    results, steps = {}, {}
    for path in sorted((out / "runs").glob("*/seed-*")):
        if (path / "result.json").is_file():
            results[path] = (path / "result.json").read_bytes()
        kept = sorted((path / "checkpoints").glob("step-*"))
        if kept:
            done = int(kept[-1].name.removeprefix("step-"))
            rows = read_jsonl(path / "metrics.jsonl")
            steps[path] = [row for row in rows if row["step"] < done]
            assert len(steps[path]) == done
    return results, steps


def assert_whole(out):
    """Every file under its own name can be read from end to end; temporary ones have other names."""
    for path in out.rglob("*"):
        if not path.is_file() or any(part.startswith(".") for part in path.relative_to(out).parts):
            continue
        if path.suffix == ".json":
            read_json(path)
        elif path.suffix == ".jsonl":
            read_jsonl(path)
        elif path.suffix == ".safetensors":
            assert load_file(path)


def assert_nothing_lost(before, after):
    (results, steps), (new_results, new_steps) = before, after
    for path, content in results.items():
        assert new_results[path] == content
    for path, rows in steps.items():
        assert new_steps[path][: len(rows)] == rows


def kill_again_and_again(folder, times):
    rng = random.Random(6)
    out = folder / "study"
    before, interrupted = done_of(out), 0
    for _ in range(times):
        process = start(folder)
        until, lines = time.monotonic() + 120, _lines(out)
        # Let it come to work, so that kills fall into steps and checkpoints, not into imports.
        while process.poll() is None and _lines(out) == lines and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(rng.uniform(0.0, 0.6))
        if process.poll() is None:
            interrupted += 1
            # Mostly the study alone: its workers must end with it and let go of their locks.
            group = rng.random() < 0.3
            (os.killpg if group else os.kill)(process.pid, signal.SIGKILL)
        process.wait()
        _, problem = process.said()
        assert "in use by another process" not in problem, problem
        _wait_for_workers(process.pid)
        assert_whole(out)
        now = done_of(out)
        assert_nothing_lost(before, now)
        before = now
    return interrupted


def _lines(out):
    return sum(p.read_bytes().count(b"\n") for p in out.rglob("metrics.jsonl"))


def _wait_for_workers(session):
    """The kernel ends the workers when their parent dies; wait until it has."""
    deadline = time.monotonic() + 20
    while subprocess.run(["pgrep", "-s", str(session)], capture_output=True).returncode == 0:
        assert time.monotonic() < deadline, "workers outlive their study"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "study"
    run_study(StudySpec.model_validate(TOY), out, workers=2)
    return out


@pytest.mark.parametrize("times", [5, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_again_and_again(undisturbed, tmp_path, times):
    interrupted = kill_again_and_again(tmp_path, times)
    assert interrupted >= 3
    last = start(tmp_path)
    assert last.wait() == 0, last.said()
    out = tmp_path / "study"
    for path in sorted((undisturbed / "runs").glob("*/seed-*")):
        here = out / path.relative_to(undisturbed)
        assert RunStore(here).metrics() == RunStore(path).metrics()
        assert RunStore(here).result == RunStore(path).result
        for table in RunStore(path).evaluation_names():
            one, other = (RunStore(p).read_evaluation(table) for p in (path, here))
            assert one == other
    one, other = (read_json(p / "report.json") for p in (undisturbed, out))
    assert one["claims"] == other["claims"]


def test_a_world_that_was_killed_begins_again(tmp_path):
    """Its model is made in one go; what the killed process left of its numbers is no part of it."""
    world = LabWorld(id="w", dials={"recovery": 0.5}, steps=3)
    store = RunStore(tmp_path)
    store.begin({"world": world.model_dump(mode="json")}, {})
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "loss": 1.0}\n{"step": 1, "lo')
    carry_out({"world": world.model_dump(mode="json")}, tmp_path)
    assert [row["step"] for row in store.metrics()] == [0, 1, 2]
    assert store.result["measured"]
