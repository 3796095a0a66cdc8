"""Processes of one run: who waits for whom, and how long."""

from __future__ import annotations

import json

import pytest

from epistill.world import HANG_MINUTES, World
from tests.helpers.two_processes import run_two

# Rank 0 works for longer than a process may be silent.
WORKS = """
import json, sys, time
from epistill.errors import EpistillError
from epistill.interrupts import ended_before_finalization
from epistill.world import joined

def fails():
    raise EpistillError("no server")

with ended_before_finalization(), joined() as world:
    found = world.on_first(lambda: time.sleep(24) or [1, None], slow=True)
    try:
        world.on_first(fails, slow=True)
    except EpistillError as error:
        print(json.dumps([found, str(error)]))
"""


def test_what_the_first_waits_for_may_take_longer_than_a_process_may_be_silent(monkeypatch):
    monkeypatch.setenv(HANG_MINUTES, "0.25")
    for done in run_two("-c", WORKS):
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == [[1, None], "no server"]


def test_alone_nobody_is_waited_for():
    assert World().on_first(lambda: 3, slow=True) == 3
    World().wait_for_first(None)
    with pytest.raises(ZeroDivisionError):
        World().on_first(lambda: 1 // 0, slow=True)
