"""Examples in docstrings run, and public functions have one."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import epistill
from epistill import evaluate

ROOMS = ("evaluate", "metrics", "traces", "report", "tasks")
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


def test_every_public_statistic_has_an_example():
    for name in evaluate.__all__:
        thing = getattr(evaluate, name)
        if not isinstance(thing, type):
            assert ">>>" in thing.__doc__, name
