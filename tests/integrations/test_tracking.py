"""A tracker is told what the run directory says: every step once, then the evaluations."""

from __future__ import annotations

import json
import os
import struct

import pytest

from epistill.errors import EpistillError
from epistill.integrations import tracking
from epistill.integrations.tracking import check_tracker, mirrored
from epistill.store import RunStore
from tests.helpers.damage import EVERY_FILE, JSON, content
from tests.helpers.python import run_python

ROWS = [
    {"step": n, "reward": 0.5 + n / 10, "loss": None if n == 1 else 1 / (n + 1), "on_policy": True}
    for n in range(4)
]
RESULT = {
    "steps": 4,
    "evaluations": {"ood": {"kind": "ood", "score": {"value": 0.75, "low": 0.5, "high": 1.0}}},
}


def begun(folder):
    store = RunStore(folder)
    store.begin({"seed": 3, "method": {"name": "sdpo"}}, {})
    return store


def carried_out(folder, tool):
    """Two sittings: two steps, a stop, two more steps, the result."""
    said = []
    store = begun(folder)
    with mirrored(tool, folder, "lab", "sdpo seed 0", said.append) as catch_up:
        catch_up()
        for row in ROWS[:2]:
            store.append("metrics", row)
            catch_up()
    store.write_evaluation("curve", [{"step": 2, "ood/score": 0.625}])
    with mirrored(tool, folder, "lab", "sdpo seed 0", said.append) as catch_up:
        for row in ROWS[2:]:
            store.append("metrics", row)
        catch_up()
        store.finish(RESULT)
    with mirrored(tool, folder, "lab", "sdpo seed 0", said.append) as catch_up:
        catch_up()  # finished: nothing is new
    assert said == []
    return store


def names_of(numbers):
    return {name: value for name, value in numbers.items() if "/" in name}


EXPECTED = {
    0: {"train/reward": 0.5, "train/loss": 1.0},
    1: {"train/reward": 0.6},  # no loss is not a loss of 0
    2: {"train/reward": 0.7, "train/loss": 1 / 3, "curve/ood/score": 0.625},
    3: {"train/reward": 0.8, "train/loss": 0.25},
    4: {"final/ood/score": 0.75, "final/ood/score/low": 0.5, "final/ood/score/high": 1.0},
}


def test_every_step_is_told_once_and_the_directory_stays_as_it_is(tmp_path, monkeypatch):
    heard = []

    def opened(folder, project, name, config):
        assert (project, config["seed"]) == ("lab", 3)
        heard.append(name)
        return lambda numbers, step: heard.append((step, dict(numbers))), lambda: None

    monkeypatch.setitem(tracking.TRACKERS, "wandb", opened)
    store = carried_out(tmp_path / "run", "wandb")
    first, *told = heard
    assert first.startswith("sdpo-seed-0-")
    assert [one for one in told if one != first] == [
        (step, pytest.approx(numbers)) for step, numbers in EXPECTED.items()
    ]
    assert told.count(first) == 1  # the second sitting; the third had nothing to open for
    assert store.metrics() == ROWS
    assert store.result == RESULT


def test_a_tracker_that_fails_ends_nothing_and_says_it_once(tmp_path, monkeypatch):
    def opened(*_):
        raise RuntimeError("no route\nto anywhere")

    monkeypatch.setitem(tracking.TRACKERS, "wandb", opened)
    said, store = [], begun(tmp_path)
    with mirrored("wandb", tmp_path, "lab", "x", said.append) as catch_up:
        for row in ROWS:
            store.append("metrics", row)
            catch_up()
    assert said == [f"wandb is told no more of {tmp_path}: no route"]
    assert not (tmp_path / ".mirrored-wandb.json").exists()


MARKER = EVERY_FILE | JSON | {"step": content(b'{"step": "2", "finished": false}')}
HARMLESS = {"another run's", "flipped bit", "last byte lost", "missing"}


@pytest.mark.parametrize("told", sorted(MARKER.keys() - HARMLESS))
def test_a_damaged_marker_ends_no_run_and_tells_nothing_twice(told, tmp_path, monkeypatch):
    monkeypatch.setitem(tracking.TRACKERS, "wandb", lambda *_: (lambda *_: None, lambda: None))
    carried_out(tmp_path, "wandb")
    MARKER[told](tmp_path / ".mirrored-wandb.json", None)
    monkeypatch.setitem(tracking.TRACKERS, "wandb", lambda *_: pytest.fail("opened"))
    said = []
    with mirrored("wandb", tmp_path, "lab", "sdpo seed 0", said.append) as catch_up:
        catch_up()
    (line,) = said
    assert ".mirrored-wandb.json is damaged" in line
    assert "\n" not in line


def test_a_run_that_was_refused_is_not_told(tmp_path, monkeypatch):
    store = begun(tmp_path)
    store.append("metrics", ROWS[0])
    monkeypatch.setitem(tracking.TRACKERS, "wandb", lambda *_: pytest.fail("opened"))
    with pytest.raises(EpistillError), mirrored("wandb", tmp_path, "lab", "x", pytest.fail):
        raise EpistillError("in use")


def test_an_unknown_or_absent_tracker_is_one_line(monkeypatch):
    with pytest.raises(EpistillError, match=r"--track is 'wanbd'.*did you mean 'wandb'"):
        check_tracker("wanbd")
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    with pytest.raises(EpistillError, match="pip install trackio"):
        check_tracker("trackio")
    check_tracker(None)


def test_trackio_has_every_number(tmp_path):
    pytest.importorskip("trackio")
    code = f"""
import json, sys
sys.path.insert(0, {os.getcwd()!r})
import importlib.util
spec = importlib.util.spec_from_file_location("here", {__file__!r})
here = importlib.util.module_from_spec(spec); spec.loader.exec_module(here)
from pathlib import Path
here.carried_out(Path("run"), "trackio")
import trackio
(run,) = trackio.Api().runs("lab")
print(json.dumps([run.name, run.config, trackio.SQLiteStorage.get_logs("lab", run.name)]))
"""
    environment = {**os.environ, "TRACKIO_DIR": str(tmp_path / "trackio")}
    done = run_python("-c", code, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()  # what trackio says of itself went to stderr
    name, config, logs = json.loads(line)
    assert name.startswith("sdpo-seed-0-")
    assert config["method"] == {"name": "sdpo"}
    assert {log["step"]: names_of(log) for log in logs} == {
        step: pytest.approx(numbers) for step, numbers in EXPECTED.items()
    }
    assert len(logs) == len(EXPECTED)


def test_tensorboard_has_every_number(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    store = carried_out(tmp_path, "tensorboard")
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    found = {}
    for name in events.Tags()["scalars"]:
        for scalar in events.Scalars(name):
            assert name not in found.setdefault(scalar.step, {})
            found[scalar.step][name] = scalar.value
    assert found == {step: pytest.approx(numbers) for step, numbers in EXPECTED.items()}
    listed = json.loads((tmp_path / "manifest.json").read_text())["files"]
    assert not any("tensorboard" in name for name in listed)  # it grows after the result
    assert store.result == RESULT


def test_wandb_offline_has_every_number(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    for name, value in {
        "WANDB_MODE": "offline",
        "WANDB_DIR": str(tmp_path),
        "WANDB_SILENT": "true",
    }.items():
        monkeypatch.setenv(name, value)
    carried_out(tmp_path / "run", "wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    found = {}
    for path in sorted(tmp_path.glob("wandb/offline-run-*/*.wandb")):
        data, at = path.read_bytes(), 7  # a LevelDB log, here of one block: checksum, length, kind
        while at + 7 <= len(data):
            length, kind = struct.unpack_from("<HB", data, at + 4)
            assert kind == 1  # a whole record
            history = Record.FromString(data[at + 7 : at + 7 + length]).history
            at += 7 + length
            items = {
                i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in history.item
            }
            if items:
                assert items["_step"] not in found
                found[items["_step"]] = names_of(items)
    assert found == {step: pytest.approx(numbers) for step, numbers in EXPECTED.items()}
