"""Ctrl-C and SIGTERM: one line that says how to go on, the signal's exit status, no children left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.helpers.python import Program

TRAIN = """
model = "lab"
method = "grpo"
steps = 400
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
STUDY = """
name = "toy"
question = "?"
about = "?"
seeds = [0, 1]
[run]
model = "lab"
steps = 400
checkpoint_every = 1
problems_per_step = 2
samples_per_problem = 4
task = { type = "star_search", arms = 3, depth = 2 }
sampling = { max_new_tokens = 24 }
[learning_rates]
grpo = 1e-3
[[arms]]
id = "grpo"
label = "GRPO"
method = "grpo"
"""
COMMANDS = {
    "train": (["train", "run.toml", "--out", "out"], "out/checkpoints/step-*"),
    "train, no checkpoint": (["train", "late.toml", "--out", "out"], "out/metrics.jsonl"),
    "study": (["study", "study.toml", "--out", "out"], "out/runs/*/*/checkpoints/step-*"),
    "study, no checkpoint": (["study", "late.toml", "--out", "out"], "out/runs/*/*/metrics.jsonl"),
    "preflight": (
        ["preflight", "lab", "--data", "star-search:3x2", "--problems", "2000",
         "--max-new-tokens", "24", "--out", "out"],
        "out/cache/*.parquet",
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("command", "sent", "to_all"),
    [
        ("train", signal.SIGINT, True),
        pytest.param("train", signal.SIGTERM, False, marks=pytest.mark.slow),
        # As a terminal does: to the workers too.
        pytest.param("study", signal.SIGINT, True, marks=pytest.mark.slow),
        ("study", signal.SIGTERM, False),
        ("preflight", signal.SIGTERM, False),
        ("train, no checkpoint", signal.SIGTERM, False),
        ("study, no checkpoint", signal.SIGINT, False),
    ],
)
def test_a_signal_ends_a_command_in_one_line(command, sent, to_all, tmp_path):
    (tmp_path / "run.toml").write_text(TRAIN)
    (tmp_path / "study.toml").write_text(STUDY)
    late = TRAIN if "train" in command else STUDY
    (tmp_path / "late.toml").write_text(late.replace("every = 1\n", "every = 400\n"))
    arguments, sign_of_work = COMMANDS[command]
    process = Program("-m", "epistill", *arguments, cwd=tmp_path, new_session=True)
    deadline = time.monotonic() + 200
    while not list(tmp_path.glob(sign_of_work)):
        assert process.poll() is None, process.said()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    (os.killpg if to_all else os.kill)(process.pid, sent)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 128 + sent, said
    begins_again = "no checkpoint" in command
    assert said.splitlines()[-1] == (
        "stopped; nothing is kept yet, the same command begins again"
        if begins_again
        else "stopped; the same command goes on from here"
    )
    assert not any(word in said for word in ("Traceback", "Warning", "Error", "Exception"))
    while subprocess.run(["pgrep", "-s", str(process.pid)], capture_output=True).returncode == 0:
        assert time.monotonic() < deadline, "children outlive the command"
        time.sleep(0.02)


WHILE_IMPORTED = """
import os, signal, sys

class Finder:
    def find_spec(self, name, *_):
        if name == "typer":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Finder())
sys.argv = ["epistill", "train"]
from epistill.__main__ import main
main()
"""


def test_a_signal_while_the_command_is_imported_is_one_line(tmp_path):
    program = [sys.executable, "-c", WHILE_IMPORTED]
    done = subprocess.run(program, capture_output=True, text=True, timeout=60)
    assert done.returncode == 128 + signal.SIGINT
    assert done.stderr == "stopped; it had not begun; start the same command again\n"


PROGRAM = """
import atexit, sys, threading
from epistill.interrupts import ended_before_finalization

class Last:  # what a module holds is freed while Python is finalizing
    def __del__(self):
        sys.__stdout__.write("finalized\\n")

with ended_before_finalization():
    last = Last()
    atexit.register(print, "exit function", end="")
    {end}
"""


@pytest.mark.parametrize(
    ("end", "status"),
    [("pass", 0), ("sys.exit(0)", 0), ("sys.exit(3)", 3), ("sys.exit('why')", 1), ("1 / 0", 1)],
)
def test_a_process_ends_before_python_is_finalized(end, status):
    program = [sys.executable, "-c", PROGRAM.format(end=end)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=60)
    assert done.returncode == status
    assert done.stdout == "exit function"
    assert ("ZeroDivisionError" in done.stderr) == ("/" in end)
    assert ("why" in done.stderr) == ("why" in end)
