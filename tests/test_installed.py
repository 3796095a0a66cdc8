"""The wheel works outside the checkout, and the package imports where Linux's own calls are not."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import epistill
from epistill.errors import EpistillError
from epistill.store import RunStore
from epistill.studies.executors import cores

ROOT = Path(__file__).resolve().parents[1]


def run(*command, **options):
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=300, **options
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The wheel, built and installed into a folder of its own; the packages it needs are ours."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("installed")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=ROOT)
    (wheel,) = folder.glob("*.whl")
    install = (sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index")
    run(*install, "--target", folder / "site", wheel)
    shutil.copy(ROOT / "examples" / "data" / "base.jsonl", folder)
    return folder


def in_wheel(folder, *command):
    environment = {**os.environ, "PYTHONPATH": str(folder / "site")}
    return run(*command, cwd=folder, env=environment)


def test_the_wheel_runs_outside_the_checkout(installed):
    program = (sys.executable, installed / "site" / "bin" / "epistill")
    where = in_wheel(installed, sys.executable, "-c", "import epistill; print(epistill.__file__)")
    assert Path(where.strip()).is_relative_to(installed)
    told = in_wheel(installed, *program, "--help")
    assert all(name in told for name in ("preflight", "train", "measure", "compare"))
    measured = json.loads(in_wheel(installed, *program, "measure", "base.jsonl", "--json"))
    (file,) = measured["files"]
    assert file["reading"]["responses_used"] > 0
    assert "lab-phase" not in in_wheel(installed, *program, "plan")  # recipes ship, and only they


def test_the_wheel_holds_everything_that_is_not_python(installed):
    source, there = ROOT / "src" / "epistill", installed / "site" / "epistill"
    data = [
        path.relative_to(source)
        for path in source.rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    ]
    assert len(data) > 150
    assert [str(path) for path in data if not (there / path).is_file()] == []


def test_every_module_imports_without_what_only_linux_has():
    code = """
import os, pkgutil, sys
import psutil  # which on Linux reads Linux's own
sys.modules["fcntl"] = sys.modules["resource"] = None  # importing them is an ImportError
for name in ("sched_getaffinity", "sched_setaffinity", "O_PATH", "memfd_create", "pidfd_open"):
    if hasattr(os, name):
        delattr(os, name)
import epistill
for module in pkgutil.walk_packages(epistill.__path__, "epistill."):
    __import__(module.name)
from epistill.studies.executors import cores
assert cores() == os.cpu_count()
"""
    run(sys.executable, "-c", code)


def test_no_locks_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with pytest.raises(EpistillError, match="WSL"), RunStore(tmp_path).locked():
        pass
    assert list(tmp_path.iterdir()) == []


def test_cores_are_those_that_this_process_may_use():
    if hasattr(os, "sched_getaffinity"):
        assert cores() == len(os.sched_getaffinity(0))
    assert 1 <= cores() <= (os.cpu_count() or 1)


def test_the_citation_says_the_version_and_licence_that_the_package_has():
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    said = dict(re.findall(r"^([\w-]+): (.+)$", text, flags=re.MULTILINE))
    assert said["version"] == epistill.__version__
    assert said["license"] == project["license"]
    assert "2603.24472" in text


def test_the_index_of_the_docs_leads_to_every_page():
    docs = ROOT / "docs"
    linked = set(re.findall(r"\]\(([\w.-]+\.md)\)", (docs / "index.md").read_text("utf-8")))
    assert linked == {path.name for path in docs.glob("*.md")} - {"index.md"}
