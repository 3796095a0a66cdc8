"""Arms of several processes, started by the study itself: one is killed, nothing changes."""

from __future__ import annotations

import io
import json
import os

import pytest
from rich.console import Console
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from epistill.errors import EpistillError, LostProcess
from epistill.store import RunStore
from epistill.studies.arm_processes import _why, launch
from epistill.studies.executors import workers_at_once
from epistill.studies.runner import jobs_of, run_study
from epistill.studies.spec import Resources, StudySpec
from tests.helpers.killed import kill_when
from tests.helpers.python import run_python
from tests.helpers.toy_study import SPEC
from tests.helpers.two_processes import run_by_two

STEPS = 12
TWO = {
    **SPEC,
    "seeds": [0],
    "run": {**SPEC["run"], "steps": STEPS, "checkpoint_every": 3, "eval_every": None},
    "evaluations": SPEC["evaluations"][:1],
    "arms": [{**arm, "baseline": None} for arm in SPEC["arms"] if arm["id"] in ("grpo", "sdpo")],
    "probes": [],
    "claims": [],
    "controls": [],
    "resources": {"processes": 2},
}


def test_one_of_two_processes_of_one_of_two_arms_is_killed(tmp_path):
    spec, said = StudySpec.model_validate(TWO), io.StringIO()
    run_by_two(spec, tmp_path / "quiet")
    folder = tmp_path / "study" / "runs" / "sdpo" / "seed-0"
    killer = kill_when(7, folder, "epistill.studies.arm_processes", folder, "\0RANK=1\0")
    run_study(spec, tmp_path / "study", workers=2, console=Console(file=said, width=300))
    killer.join()
    assert "sdpo seed 0: process 1 of 2 was ended by SIGKILL; it goes on" in said.getvalue()
    for arm in ("grpo", "sdpo"):
        for name in ("metrics.jsonl", "result.json", "evaluations/final-held out.jsonl"):
            path = f"runs/{arm}/seed-0/{name}"
            quiet, disturbed = ((tmp_path / one / path) for one in ("quiet", "study"))
            assert quiet.read_bytes() == disturbed.read_bytes(), path


def test_a_mistake_that_all_processes_meet_is_one_line(tmp_path):
    (job, *_) = jobs_of(StudySpec.model_validate(TWO), tmp_path)
    with RunStore(job.folder).locked(), pytest.raises(EpistillError, match="is in use") as found:
        launch(json.dumps(job.payload), str(job.folder), 2)
    assert "\n" not in str(found.value)
    assert not isinstance(found.value, LostProcess)


def failures(*statuses):
    return {
        rank: ProcessFailure(rank, 100 + rank, status, "no file")
        for rank, status in enumerate(statuses)
        if status
    }


@pytest.mark.parametrize(
    ("statuses", "kind", "told"),
    [
        ((3, -9), LostProcess, "process 1 of 2 was ended by SIGKILL"),
        ((-15, 0, -11, 3), LostProcess, "process 2 of 4 was ended by SIGSEGV"),
        ((3, 2, -15), EpistillError, ""),
        ((3, 3), LostProcess, ""),
        ((-15, 1, 3), RuntimeError, ""),
    ],
)
def test_the_cause_is_told_from_what_it_did_to_the_others(statuses, kind, told):
    found = _why(failures(*statuses), len(statuses))
    assert type(found) is kind
    assert told in str(found)


# They wait for each other's imports, which on a busy machine take longer than a hang may.
SILENT = """
import os, signal, time
from pathlib import Path
from epistill.errors import LostProcess
from epistill.world import joined
Path("ready-" + os.environ["RANK"]).touch()
while len(list(Path().glob("ready-*"))) < 2:
    time.sleep(0.01)
try:
    with joined() as world:
        world.gather(world.rank)
        if not world.first:
            os.kill(os.getpid(), signal.SIGSTOP)
        world.gather(world.rank)
except LostProcess as error:
    print(error, flush=True)
    os._exit(3)
"""


# Between SIGTERM and SIGKILL torchrun waits 30 s, for which it has no setting.
TORCHRUN = """
from torch.distributed.elastic.multiprocessing.api import PContext
from torch.distributed.run import main
PContext.close.__defaults__ = (None, 1)
main()
"""


def test_a_process_that_hangs_is_waited_for_so_long_and_no_longer(tmp_path):
    """The other one ends by itself; then torchrun ends the one that does not answer."""
    (tmp_path / "silent.py").write_text(SILENT)
    arguments = ("--standalone", "--nproc-per-node=2", "silent.py")
    environment = {**os.environ, "EPISTILL_HANG_MINUTES": "0.05"}
    done = run_python("-c", TORCHRUN, *arguments, cwd=tmp_path, env=environment)
    assert done.returncode == 1
    assert done.stdout.strip() == (
        "another process of this run was silent for 0.05 minutes; the same command goes on, from the "
        "last checkpoint if there is one"
    )


def test_processes_are_counted(monkeypatch):
    monkeypatch.setattr("epistill.studies.executors.cores", lambda: 16)
    assert workers_at_once(Resources(processes=4, cpus=2)) == 2
