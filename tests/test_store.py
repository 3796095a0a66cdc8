from __future__ import annotations

import errno
import multiprocessing
import os
from pathlib import Path

import pytest

from epistill import integrity
from epistill.environment import code_of, codes_of
from epistill.errors import EpistillError, FolderInUse
from epistill.store import RunStore, read_jsonl, write_atomic, write_json


def test_another_configuration_is_refused_by_name(tmp_path):
    store = RunStore(tmp_path / "run")
    store.begin({"a": {"b": 1}, "c": 2}, {})
    store.begin({"a": {"b": 1}, "c": 2}, {})
    store.append("metrics", {"step": 0})
    with pytest.raises(EpistillError, match=r"differs in a\.b, d"):
        store.begin({"a": {"b": 2}, "c": 2, "d": 0}, {})


def test_a_run_that_failed_before_its_first_step_leaves_its_folder_free(tmp_path):
    store = RunStore(tmp_path)
    with store.locked():
        store.begin({"model": "mistyped"}, {})
    store.begin({"model": "right"}, {})
    assert store.config == {"model": "right"}


def test_a_lone_surrogate_is_written_as_a_question_mark(tmp_path):
    write_atomic(tmp_path / "page.html", "bad \ud800 wait")
    assert (tmp_path / "page.html").read_text() == "bad ? wait"


@pytest.mark.parametrize("name", [".", "..", "folder", "file/x.json"])
def test_what_cannot_be_a_file_is_one_clear_line(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("file").write_text("old")
    with pytest.raises(EpistillError, match="could not write") as caught:
        write_json(Path(name), {})
    assert "\n" not in str(caught.value)
    assert ("it is a folder" in str(caught.value)) == Path(name).is_dir()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


def test_a_half_written_last_line_is_left_out_and_rewinding_drops_later_steps(tmp_path):
    store = RunStore(tmp_path)
    for step in range(4):
        store.append("metrics", {"step": step})
    with (tmp_path / "metrics.jsonl").open("a") as out:
        out.write('{"step": 4, "rew')
    assert [row["step"] for row in store.metrics()] == [0, 1, 2, 3]
    store.rewind(2)
    assert [row["step"] for row in store.metrics()] == [0, 1]


def test_what_was_read_of_a_growing_log_is_not_read_again(tmp_path):
    store, path = RunStore(tmp_path), tmp_path / "metrics.jsonl"
    new = store.new_metrics()
    assert new() == []
    store.append("metrics", {"step": 0})
    store.append("metrics", {"step": 1})
    assert [row["step"] for row in new()] == [0, 1]
    path.write_bytes(b"x" * path.stat().st_size + b'{"step": 2, "word": "\xc3')  # half of an umlaut
    assert new() == []
    with path.open("ab") as out:
        out.write(b'\xa4"}\n')
    assert new() == [{"step": 2, "word": "ä"}]
    store.append("metrics", {"step": 2})
    with pytest.raises(EpistillError, match=r"metrics\.jsonl.* line 4 is of step 2, after step 2"):
        new()


def test_nan_is_never_written(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        RunStore(tmp_path).append("metrics", {"step": 0, "loss": float("nan")})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", {"x": float("inf")})


def test_a_full_disk_is_one_clear_line_and_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    write_atomic(path, "old")

    def full(self, *args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(EpistillError, match="No space left on device; make room"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def _hold(folder, held, release):
    with RunStore(folder).locked():
        held.set()
        release.wait(30)


def test_a_second_process_is_refused(tmp_path):
    context = multiprocessing.get_context("spawn")
    held, release = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(tmp_path, held, release))
    process.start()
    assert held.wait(30)
    try:
        with (
            pytest.raises(EpistillError, match="in use by another process"),
            RunStore(tmp_path).locked(),
        ):
            pass
    finally:
        release.set()
        process.join()
    with RunStore(tmp_path).locked():
        pass


def test_result_comes_last(tmp_path):
    store = RunStore(tmp_path)
    assert store.result is None
    store.finish({"done": True})
    assert store.result == {"done": True}
    assert read_jsonl(tmp_path / "absent.jsonl") == []


def test_a_lock_that_is_granted_to_two_ends_the_first_before_it_writes(tmp_path, monkeypatch):
    """As on some network file systems, or after somebody removed the lock file."""
    first, second = RunStore(tmp_path), RunStore(tmp_path)
    monkeypatch.setattr("fcntl.flock", lambda *_: None)
    monkeypatch.setattr("time.time_ns", iter(range(9)).__next__)
    with first.locked():
        first.append("metrics", {"step": 0})
        with second.locked():
            second.append("metrics", {"step": 1})
            for write in (
                lambda: first.append("metrics", {"step": 1}),
                lambda: first.finish({"steps": 2}),
                lambda: first.write_final(write_json, "report.json", {}),
            ):
                with pytest.raises(FolderInUse, match="was taken by another process") as told:
                    write()
                assert "\n" not in str(told.value)
            second.append("metrics", {"step": 2})
    assert [row["step"] for row in first.metrics()] == [0, 1, 2]
    assert {p.name for p in tmp_path.iterdir()} == {".lock", "metrics.jsonl"}


def test_a_removed_lock_file_stops_nobody_until_another_comes(tmp_path):
    first, second = RunStore(tmp_path), RunStore(tmp_path)
    with first.locked():
        (tmp_path / ".lock").unlink()
        first.append("metrics", {"step": 0})
        with second.locked(), pytest.raises(FolderInUse, match="lock file was removed"):
            first.append("metrics", {"step": 1})


def test_whoever_is_refused_leaves_the_holder_alone(tmp_path):
    first = RunStore(tmp_path)
    with first.locked():
        with pytest.raises(FolderInUse, match="is in use"), RunStore(tmp_path).locked():
            pass
        first.append("metrics", {"step": 0})


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EIO])
def test_a_file_system_without_locks_is_one_line(number, tmp_path, monkeypatch):
    def none(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", none)
    told = "expected a file system with file locks"
    with pytest.raises(EpistillError, match=told), RunStore(tmp_path).locked():
        pass
    assert {p.name for p in tmp_path.iterdir()} <= {".lock"}


def test_a_file_that_is_written_anew_while_it_is_checked_is_no_damage(tmp_path, monkeypatch):
    """A study renews its report while `epistill report` reads it."""
    store = RunStore(tmp_path)
    store.write_final(write_json, "report.json", {"runs": 1})
    sha256_of, times = integrity.sha256_of, iter([2])

    def renewing(path, folder=None):
        if next(times, None):
            store.write_final(write_json, "report.json", {"runs": 2})
        return sha256_of(path, folder)

    monkeypatch.setattr(integrity, "sha256_of", renewing)
    store.check("report.json")
    (tmp_path / "report.json").write_text("{}")
    with pytest.raises(EpistillError, match=r"report\.json is damaged"):
        store.check("report.json")


OLD = {"packages": {"epistill": "0.1.0", "torch": "2.9.0"}, "commit": "a" * 40}
NEW = {**OLD, "commit": "b" * 40}


def test_a_run_that_goes_on_with_other_code_says_so_once(tmp_path, caplog):
    store, config = RunStore(tmp_path), {"a": 1}
    store.begin(config, OLD)
    store.begin(config, NEW)  # nothing came of it yet: it is all of the new code
    assert (store.environment, caplog.text) == (NEW, "")
    store.append("metrics", {"step": 0})
    store.begin(config, NEW)
    assert caplog.text == ""
    for environment in (OLD, OLD, NEW):
        store.begin(config, environment)
    store.begin(config, {})  # of somebody who does not run it
    lines = [record.getMessage() for record in caplog.records]
    assert [line.partition(" and goes on with ")[2][:22] for line in lines] == [
        "epistill 0.1.0 at aaaaaaa"[:22], "epistill 0.1.0 at bbbbbbb"[:22]]  # fmt: skip
    assert all(line.startswith(f"{tmp_path} was begun with epistill 0.1.0") for line in lines)
    new, old = "bbbbbbb", "aaaaaaa"
    assert [code[18:25] for code in codes_of(store.environment)] == [new, old, new]
    store.finish({"steps": 1})
    store.begin(config, OLD)
    assert len(caplog.records) == 2


def test_other_versions_of_what_computes_are_other_code():
    packages = {"epistill": "0.1.0", "torch": "2.9.0", "transformers": "5.0.0", "plotly": "6"}
    told = code_of({"packages": packages, "commit": None})
    assert told == "epistill 0.1.0 with torch 2.9.0, transformers 5.0.0"
    for name in packages:
        other = code_of({"packages": {**packages, name: "9"}, "commit": None})
        assert (other != told) == (name != "plotly")
