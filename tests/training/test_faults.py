"""What goes wrong in a run: steps that are no number, full disks, two at once, older versions."""

from __future__ import annotations

import json
import subprocess

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from epistill.config import RunConfig
from epistill.errors import EpistillError
from epistill.methods import method
from epistill.rollouts.load_model import load_model
from epistill.store import RunStore, read_json, write_json
from epistill.studies.run_arm import run
from epistill.tasks.grading import Grader
from epistill.training.loop import train_student
from tests.helpers.known_answers import know_star_answers
from tests.helpers.python import run_epistill, run_python
from tests.helpers.two_processes import run_two

TOML = """
model = "lab"
method = "grpo"
steps = {steps}
problems_per_step = 2
samples_per_problem = 4
learning_rate = 1e-3
checkpoint_every = 1
[task]
type = "star_search"
arms = 3
depth = 2
[sampling]
max_new_tokens = 24
"""


def configuration(**changes):
    return RunConfig.model_validate(
        {
            "model": "lab",
            "task": {"type": "star_search", "arms": 3, "depth": 2},
            "method": method("grpo").model_dump(),
            "sampling": {"max_new_tokens": 24},
            "steps": 5, "problems_per_step": 3, "samples_per_problem": 4,
            "learning_rate": 1e-3, "checkpoint_every": 1, **changes,
        }
    )  # fmt: skip


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m")


# ---- steps that are no number


@pytest.fixture
def known(monkeypatch):
    """Right and wrong responses in every group, so that every step has a gradient."""
    know_star_answers(monkeypatch)


class Breaking:
    """Training passes of chosen steps give NaN; sampling does not."""

    def __init__(self, student, steps):
        self.student, self.steps, self.step = student, steps, 0
        self.weights = {}
        student.decoder().register_forward_hook(self._spoil)

    def _spoil(self, module, inputs, output):
        if module.training and self.step in self.steps:
            output[0].mul_(torch.nan)

    def on_step(self, done, student):
        self.step = done
        parameters = student.network.state_dict()
        self.weights[done] = {name: p.clone() for name, p in parameters.items()}


def go(folder, config, steps):
    student = load_model("lab")
    breaking = Breaking(student, steps)
    kept = sorted((folder / "checkpoints").glob("step-*"))
    breaking.step = int(kept[-1].name.removeprefix("step-")) if kept else 0
    store = RunStore(folder)
    store.begin(config.model_dump(mode="json"), {})
    with Grader() as grader:
        train_student(config, store, student, grader, on_step=breaking.on_step)
    return store, breaking.weights


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.usefixtures("known")
def test_a_step_that_is_no_number_is_skipped_and_counted(tmp_path):
    store, weights = go(tmp_path, configuration(problems_per_step=8, updates_per_batch=2), {1, 3})
    rows = store.metrics()
    assert [row["skipped_steps"] for row in rows] == [0, 2, 0, 2, 0]
    assert [row["gradient_norm"] is None for row in rows] == [False, True, False, True, False]
    assert rows[1]["loss"] is None
    assert same(weights[1], weights[2])
    assert same(weights[3], weights[4])
    assert not same(weights[0], weights[1])
    assert not same(weights[4], weights[5])  # it goes on learning
    assert all(bool(t.isfinite().all()) for t in weights[5].values())


@pytest.mark.usefixtures("known")
def test_three_in_a_row_stop_the_run_and_the_batch_is_kept(tmp_path):
    with pytest.raises(
        EpistillError, match=r"3 optimiser steps in a row.*stopped/step-000003.json"
    ):
        go(tmp_path, configuration(), steps={1, 2, 3})
    store = RunStore(tmp_path)
    assert [row["skipped_steps"] for row in store.metrics()] == [0, 1, 1]
    batch = read_json(tmp_path / "stopped" / "step-000003.json")
    assert batch["gradient_norm"] == "nan"
    assert len(batch["rows"]) == len(batch["texts"]) == 12
    assert all(row["completion_ids"] and row["prompt_ids"] for row in batch["rows"])
    assert store.result is None
    # Two of the three were before the checkpoint: a resumed run counts them.
    with pytest.raises(EpistillError, match="3 optimiser steps in a row"):
        go(tmp_path, configuration(), steps={3})
    # Mended, it goes on from there to its end.
    done, weights = go(tmp_path, configuration(), steps=set())
    assert [row["step"] for row in done.metrics()] == [0, 1, 2, 3, 4]
    assert all(bool(t.isfinite().all()) for t in weights[5].values())


# ---- disks and locks, from the command line


def run_train(folder, steps, **options):
    settings = folder.parent / "run.toml"
    settings.write_text(TOML.format(steps=steps))
    return run_epistill("train", settings, "--out", folder, **options)


def assert_one_line(done, *words):
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if not line.startswith("step ")]
    assert len(lines) == 1, done.stderr
    assert all(word in lines[0] for word in words), lines[0]


@pytest.fixture
def small_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=5m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("this machine does not let us mount a small disk")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_is_one_line_and_the_last_checkpoint_stays_readable(small_disk):
    folder = small_disk / "run"
    assert_one_line(
        run_train(folder, 8), "could not write checkpoint", "No space left", "make room"
    )
    checkpoints = sorted((folder / "checkpoints").glob("step-*"))
    assert checkpoints
    for path in checkpoints:
        assert read_json(path / "state.json")["step"] == int(path.name.removeprefix("step-"))
        assert all(load_file(part) for part in path.glob("*.safetensors"))
    assert not list((folder / "checkpoints").glob(".*"))  # what was half written made room
    first = RunStore(folder).metrics()
    subprocess.run(["mount", "-o", "remount,size=50m", str(small_disk)], check=True)
    assert run_train(folder, 8).returncode == 0
    rows = RunStore(folder).metrics()
    assert [row["step"] for row in rows] == list(range(8))
    assert rows[: len(first)] == first


def test_a_file_that_cannot_grow_is_one_line(tmp_path):
    """The same without a disk of our own: no file may be larger than 300 kB."""
    folder = tmp_path / "run"
    limit = {"most_bytes": 300_000}
    assert_one_line(run_train(folder, 3, **limit), "could not write checkpoint", "File too large")
    assert_one_line(run_train(folder, 1, **limit), "holds a run of another configuration")
    other = tmp_path / "other"  # one step: no checkpoint, only the model at the end
    assert_one_line(run_train(other, 1, **limit), "could not write the model", "make room")
    assert not (other / "model").exists()
    assert RunStore(other).result is None


def test_a_second_process_on_one_directory_is_refused(tmp_path):
    folder = tmp_path / "run"
    with RunStore(folder).locked():
        before = sorted(folder.rglob("*"))
        assert_one_line(run_train(folder, 1), str(folder), "in use by another process")
        assert sorted(folder.rglob("*")) == before
    assert run_train(folder, 1).returncode == 0


def by_two(folder, steps, **options):
    settings = folder.parent / "run.toml"
    settings.write_text(TOML.format(steps=steps))
    return run_two("-m", "epistill", "train", settings, "--out", folder, **options)


def test_under_torchrun_the_first_process_alone_speaks_and_holds_the_lock(tmp_path):
    folder = tmp_path / "run"
    with RunStore(folder).locked():
        first, other = by_two(folder, 1)
    assert first.returncode == other.returncode == 2
    assert "in use by another process" in first.stderr
    assert not other.stderr
    train = ("epistill", "train", folder.parent / "run.toml", "--out", folder)
    done = run_python(*TORCHRUN, *train)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count(str(folder)) == 1
    assert RunStore(folder).result is not None


def test_of_two_processes_both_stop_where_a_file_cannot_grow(tmp_path):
    folder = tmp_path / "run"
    first, other = by_two(folder, 3, most_bytes=300_000)
    assert first.returncode == other.returncode == 2
    assert first.stderr.count("could not write checkpoint") == 1, first.stderr[-3000:]
    assert not other.stderr
    assert not list((folder / "checkpoints").iterdir())
    for done in by_two(folder, 3):
        assert done.returncode == 0, done.stderr[-2000:]
    assert [row["step"] for row in RunStore(folder).metrics()] == [0, 1, 2]


# ---- older versions


def unfinished(folder, config):
    run(config, folder)
    (folder / "result.json").unlink()
    return folder


def test_settings_that_an_older_version_did_not_have_are_migrated(tmp_path):
    config = configuration(steps=2)
    folder = unfinished(tmp_path / "run", config)
    old = read_json(folder / "config.json")
    for name in ("precision", "activation_checkpointing", "parallel", "attention"):
        del old[name]
    write_json(folder / "config.json", old)
    assert run(config, folder).result is not None
    with pytest.raises(EpistillError, match="another configuration"):
        run(configuration(steps=2, precision="bf16"), folder)


def test_settings_that_this_version_does_not_know_are_refused_with_the_way_out(tmp_path):
    config = configuration(steps=2)
    folder = unfinished(tmp_path / "run", config)
    old = read_json(folder / "config.json")
    write_json(folder / "config.json", {**old, "optimizer": "lion"})
    with pytest.raises(
        EpistillError, match=r"begun by epistill \S+, whose settings .*another folder"
    ):
        run(config, folder)


def test_a_checkpoint_of_another_format_is_refused_with_the_way_out(tmp_path):
    config = configuration(steps=2)
    folder = unfinished(tmp_path / "run", config)
    path = folder / "checkpoints" / "step-000001" / "state.json"
    write_json(path, {**read_json(path), "format": 1})
    with pytest.raises(
        EpistillError, match="has checkpoint format 1, this version reads 4; finish"
    ):
        run(config, folder)


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    config = configuration(steps=2)
    folder = unfinished(tmp_path / "run", config)
    other = configuration(steps=2, lora={"rank": 2})
    found = {"microbatch_tokens": read_json(folder / "config.json")["microbatch_tokens"]}
    write_json(folder / "config.json", {**other.model_dump(mode="json"), **found})
    with pytest.raises(EpistillError, match="of another model or method"):
        run(other, folder)


def test_a_checkpoint_is_safetensors_and_json_only(tmp_path):
    folder = unfinished(tmp_path / "run", configuration(steps=2))
    files = [p for p in (folder / "checkpoints").rglob("*") if p.is_file()]
    assert {p.suffix for p in files} == {".safetensors", ".json"}
    for path in files:
        if path.suffix == ".json":
            json.loads(path.read_text())
        else:
            with safe_open(path, framework="pt") as tensors:
                assert tensors.keys()
