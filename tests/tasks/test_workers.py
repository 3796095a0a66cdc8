"""Worker processes: started from anywhere, ended by the kernel at their limit, replaced."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from epistill.tasks.grading import Grader
from epistill.tasks.workers import MEMORY, Lost, Workers

SCRIPT = r"""
from epistill.tasks import grade_responses
print([g.status.value for g in grade_responses([("math", "1/2", r"\boxed{0.5}")])])
"""


@pytest.mark.parametrize("way", ["script", "stdin", "command"])
def test_grading_needs_no_main_guard(tmp_path, way):
    path = tmp_path / "run.py"
    path.write_text(SCRIPT, encoding="utf-8")
    arguments = {"script": [str(path)], "stdin": ["-"], "command": ["-c", SCRIPT]}[way]
    done = subprocess.run(
        [sys.executable, *arguments],
        input=SCRIPT if way == "stdin" else None,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "['correct']", done.stderr


def test_a_worker_that_was_killed_is_replaced():
    with Grader(workers=2) as grader:
        items = [("math", "2", r"\boxed{2}"), ("math", "3", r"\boxed{3}")]
        grader.grade(items)
        used = list(filter(None, grader._math._running))  # one may have been quick enough for both
        assert used
        for process in used:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        assert [g.status.value for g in grader.grade(items)] == ["correct", "correct"]


def test_the_next_of_the_same_function_gets_the_processes_that_wait_and_live():
    first = Workers("math:sqrt", limit_s=5, workers=2)
    assert first.map([4, 9, 16]) == [2, 3, 4]
    one, *others = filter(None, first._running)  # one may have been quick enough for all
    first.close()
    one.kill()
    one.wait()
    second = Workers("math:sqrt", limit_s=5, workers=2)
    assert second.map([4, 9, 16]) == [2, 3, 4]
    assert {*others} <= {*second._running}
    assert one not in second._running
    third = Workers("math:sqrt", limit_s=5, workers=1)  # what another has is not shared
    assert third.map([4]) == [2]
    assert third._running[0] not in second._running
    second.close()
    third.close()


def test_the_limit_is_processor_time_and_is_tried_twice():
    workers = Workers("time:sleep", limit_s=0.2, workers=1)
    assert workers.map([0.6]) == [None]  # waiting costs no processor time
    workers.close()
    workers = Workers("math:factorial", limit_s=0.2, workers=2)
    found = workers.map([5, 10**7, 3])
    workers.close()
    assert (found[0], found[2]) == (120, 6)
    assert found[1] == Lost(True, "it took longer than 0.2 s of processor time")


def test_memory_is_limited():
    workers = Workers("secrets:token_hex", limit_s=5, workers=1)
    assert workers.map([2 * MEMORY, 0]) == [Lost(False, "MemoryError"), ""]
    workers.close()


def test_a_worker_that_stands_still_is_given_up_by_the_clock(monkeypatch):
    monkeypatch.setattr("epistill.tasks.workers.PATIENCE", 10)
    workers = Workers("time:sleep", limit_s=0.1, workers=1)
    assert workers.map([60, 0]) == [Lost(True, "no reply within 1 s"), None]
    workers.close()


def test_a_session_may_grade_again_and_again():
    lines = (*SCRIPT.strip().splitlines(), SCRIPT.strip().splitlines()[-1])
    done = subprocess.run(
        [sys.executable, "-i", "-q"],
        input="\n".join(lines) + "\n",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split("\n")[:2] == ["['correct']"] * 2, done.stderr
