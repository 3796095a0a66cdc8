"""Examples in docstrings run, and public functions have one."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import epistill
from epistill import evaluation, metrics, tasks

ROOMS = ("evaluation", "metrics", "traces", "comparison", "report", "tasks")
MODULES = [
    module.name
    for room in ROOMS
    for module in pkgutil.walk_packages(
        [f"{epistill.__path__[0]}/{room}"], prefix=f"epistill.{room}."
    )
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_run(name):
    found = doctest.testmod(importlib.import_module(name))
    assert found.failed == 0


@pytest.mark.parametrize("room", [evaluation, metrics, tasks], ids=lambda room: room.__name__)
def test_every_public_name_has_an_example(room):
    shown_by_another = {"Grader"}  # it keeps worker processes; `grade` is its short form
    for name in set(room.__all__) - shown_by_another:
        assert ">>>" in getattr(room, name).__doc__, name
