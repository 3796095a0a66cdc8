"""Every command of the README runs as printed: each path by itself, in a fresh folder."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from epistill.cli import app
from epistill.studies.load_study import load_study
from tests.helpers.python import run_python

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PATHS = [
    [shlex.split(line, comments=True) for line in block.replace("\\\n", " ").splitlines()]
    for block in re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
]
COMMANDS = [command for path in PATHS for command in path]
NOT_RUN = {
    "pip install -c constraints.txt -e .[dev]": "what CI itself begins with",
    "epistill study recipes/math-ds-7b --processes 8": "8 GPUs; its arms are read below",
    "epistill study lab --preset quick --out runs/quick": "90 seconds; CI runs it by itself",
    "epistill study lab": "15 minutes; the same study as quick, which CI runs",
}


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """What the commands read, and nothing that an earlier one wrote."""
    for name in ("examples", "docs"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("path", PATHS, ids=lambda path: " ".join(path[0][:3]))
def test_every_path_runs_as_printed(path, checkout):
    assert 1 <= len(path) <= 5
    for command in path:
        if " ".join(command) in NOT_RUN:
            continue
        program, *arguments = command
        if program == "epistill":
            done = CliRunner().invoke(app, arguments)
            assert done.exit_code == 0, (command, done.output, done.exception)
            assert done.stdout.strip(), command
        else:
            assert program == "python", command
            ran = run_python(*arguments)
            assert ran.returncode == 0, (command, ran.stderr)


def test_what_is_not_run_is_in_the_readme_and_no_more_than_a_fifth():
    printed = {" ".join(command) for command in COMMANDS}
    assert set(NOT_RUN) <= printed
    assert 5 * len(NOT_RUN) <= len(COMMANDS)


def test_the_study_for_8_gpus_shards_every_arm():
    study = next(command for command in COMMANDS if "--processes" in command)
    spec = load_study(study[2])
    assert {spec.config_of(arm, 0).parallel for arm in spec.arms} == {"shard"}


def test_the_sample_data_are_what_their_script_writes(tmp_path):
    code = f"import sys; sys.path.insert(0, {str(ROOT / 'scripts')!r}); import sample_traces as s; "
    code += "from pathlib import Path; s.write(Path('.'))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    written = {p.relative_to(tmp_path): p.read_bytes() for p in tmp_path.rglob("*.jsonl")}
    shipped = ROOT / "examples" / "data"
    assert len(written) == 5
    assert written == {
        p.relative_to(shipped): p.read_bytes() for p in shipped.rglob("*") if p.is_file()
    }
    assert sum(len(data) for data in written.values()) <= 50_000
