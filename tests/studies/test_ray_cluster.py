"""A study on a real local Ray cluster: the same results, also when a node dies in the middle."""

from __future__ import annotations

import io
import json
import os
import threading
import time
from pathlib import Path

import pytest
from rich.console import Console

from epistill.errors import EpistillError
from epistill.studies.load_study import load_study
from epistill.studies.runner import run_study
from epistill.studies.spec import StudySpec
from epistill.world import HANG_MINUTES
from tests.helpers.killed import kill_when
from tests.helpers.python import LIMIT_S, run_epistill
from tests.helpers.two_processes import run_by_two

ray = pytest.importorskip("ray", reason="the extra 'ray' is not installed")

TASK = {"type": "star_search", "arms": 3, "depth": 2}
STEPS = 50  # from step 7 on a node is killed, and its arm must not end before it is gone
SPEC = {
    "name": "ray",
    "question": "The same?",
    "about": "A test.",
    "seeds": [0],
    "run": {
        "model": "lab", "steps": STEPS, "problems_per_step": 4, "samples_per_problem": 4,
        "checkpoint_every": 5, "task": TASK, "sampling": {"max_new_tokens": 24},
    },
    "learning_rates": {"grpo": 1e-3, "sdpo": 1e-3},
    "evaluations": [
        {"name": "held out", "task": {**TASK, "split": "test"}, "problems": 4, "samples": 2},
    ],
    "arms": [
        {"id": "grpo", "label": "GRPO", "method": "grpo", "baseline": None},
        {"id": "sdpo", "label": "SDPO", "method": "sdpo", "baseline": None},
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def serial(tmp_path_factory):
    out = tmp_path_factory.mktemp("serial") / "study"
    run_study(StudySpec.model_validate(SPEC), out, workers=1)
    return out


@pytest.fixture(scope="module")
def two_nodes():
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # Else whatever runs beside the tests goes first.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - so Ray spells it
    # A worker looks every second whether its node is there, the cluster every third.
    os.environ["RAY_raylet_death_check_interval_milliseconds"] = "20"  # noqa: SIM112
    os.environ["RAY_health_check_period_ms"] = "200"  # noqa: SIM112
    small = {"num_cpus": 1, "object_store_memory": 80 * 1024**2}
    cluster = Cluster(initialize_head=True, head_node_args={**small, "include_dashboard": False})
    other = cluster.add_node(**small)
    yield cluster, other
    ray.shutdown()
    cluster.shutdown()


def equal_runs(one, other):
    for arm in SPEC["arms"]:
        folder = f"runs/{arm['id']}/seed-0"
        for name in ("metrics.jsonl", "result.json", "evaluations/final-held out.jsonl"):
            assert (one / folder / name).read_bytes() == (other / folder / name).read_bytes(), name


def test_mistakes_are_one_line_and_nobody_waits_for_a_node_that_never_comes(two_nodes, tmp_path):
    cluster, _ = two_nodes
    wrong = StudySpec.model_validate(
        {
            **SPEC,
            "run": {**SPEC["run"], "model": str(tmp_path / "no")},
            "arms": SPEC["arms"][:1],
        }
    )
    with pytest.raises(EpistillError, match="no such directory") as found:
        run_study(wrong, tmp_path / "wrong", ray=cluster.address)
    assert "\n" not in str(found.value)
    large = StudySpec.model_validate({**SPEC, "resources": {"cpus": 1, "gpus": 8}})
    with pytest.raises(EpistillError, match="asks for 1 x 1 CPU and 8 GPU"):
        run_study(large, tmp_path / "large", ray=cluster.address)
    many = StudySpec.model_validate({**SPEC, "resources": {"processes": 3}})
    with pytest.raises(EpistillError, match="asks for 3 x 1 CPU and 0 GPU"):
        run_study(many, tmp_path / "many", ray=cluster.address)


def test_a_node_dies_in_the_middle_and_nothing_changes(two_nodes, serial, tmp_path):
    cluster, other = two_nodes
    out, timings = tmp_path / "study", {}

    def kill():
        """Both nodes have one processor and one arm each; kill one when both are well under way."""
        deadline = time.monotonic() + LIMIT_S
        files = [out / "runs" / arm["id"] / "seed-0" / "timing.jsonl" for arm in SPEC["arms"]]
        while time.monotonic() < deadline:
            done = [f.read_bytes().count(b"\n") if f.is_file() else 0 for f in files]
            if min(done) >= 7:
                timings.update(
                    {f.parent.parent.name: f.read_text().splitlines()[:5] for f in files}
                )
                cluster.remove_node(other, allow_graceful=False)
                timings["at"] = done
                return
            time.sleep(0.02)

    killer = threading.Thread(target=kill)
    killer.start()
    said = io.StringIO()
    run_study(
        StudySpec.model_validate(SPEC),
        out,
        ray=cluster.address,
        console=Console(file=said, width=300),
    )
    killer.join()
    assert max(timings.pop("at")) < STEPS, "an arm had ended before its node was killed"
    lost = [arm for arm in timings if f"{arm} seed 0: its worker was lost" in said.getvalue()]
    assert len(lost) == 1
    equal_runs(serial, out)
    # It went on from its checkpoint: the first steps were not done again (they would take another
    # time to the last digit).
    again = (out / "runs" / lost[0] / "seed-0" / "timing.jsonl").read_text().splitlines()[:5]
    assert again == timings[lost[0]]


def test_an_arm_lies_over_both_nodes_and_one_of_its_processes_is_killed(
    two_nodes, tmp_path, monkeypatch
):
    """Each arm takes both processors, one of each node; the lost one goes on from its checkpoint."""
    cluster, _ = two_nodes
    monkeypatch.setenv(HANG_MINUTES, "29")  # after the cluster was started: it is told to workers
    cluster.add_node(num_cpus=1, object_store_memory=80 * 1024**2)  # one was killed above
    arm = {**SPEC["arms"][1]}
    spec = StudySpec.model_validate(
        {**SPEC, "arms": [arm], "run": {**SPEC["run"], "steps": 12}, "resources": {"processes": 2}}
    )
    run_by_two(spec, tmp_path / "quiet")
    folder, said = tmp_path / "study" / "runs" / "sdpo" / "seed-0", io.StringIO()
    killer = kill_when(7, folder, "_carry_out", "\0RANK=1\0", f"\0{HANG_MINUTES}=29\0")
    console = Console(file=said, width=300)
    run_study(spec, tmp_path / "study", ray=cluster.address, console=console)
    killer.join()
    assert "sdpo seed 0: " in said.getvalue()
    assert "it goes on elsewhere" in said.getvalue()
    for name in ("metrics.jsonl", "result.json", "evaluations/final-held out.jsonl"):
        path = f"runs/sdpo/seed-0/{name}"
        assert (tmp_path / "quiet" / path).read_bytes() == (tmp_path / "study" / path).read_bytes()


FILE = """
name = "ray"
question = "The same?"
about = "A test."
seeds = [0]
learning_rates = {grpo = 1e-3}
resources = {cpus = 1}
[run]
model = "lab"
steps = 20
problems_per_step = 4
samples_per_problem = 4
checkpoint_every = 5
task = {type = "star_search", arms = 3, depth = 2}
sampling = {max_new_tokens = 24}
[[evaluations]]
name = "held out"
task = {type = "star_search", arms = 3, depth = 2, split = "test"}
problems = 4
samples = 2
[[arms]]
id = "grpo"
label = "GRPO"
method = "grpo"
"""


def test_a_users_file_on_a_cluster_of_its_own(tmp_path):
    """From the command line; arms have the threads of the serial run, so the same bits."""
    (tmp_path / "mine.toml").write_text(FILE)
    run_study(load_study(str(tmp_path / "mine.toml")), tmp_path / "serial", workers=1)
    command = ("study", "mine.toml", "--ray", "auto", "--out", "out", "--workers", "1")
    done = run_epistill(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / done.stdout.strip()).resolve() == tmp_path / "out" / "report.html"
    for name in ("metrics.jsonl", "result.json", "evaluations/final-held out.jsonl"):
        path = Path("runs/grpo/seed-0") / name
        one, other = (tmp_path / folder / path for folder in ("serial", "out"))
        assert one.read_bytes() == other.read_bytes()


def test_arms_get_the_gpus_that_the_file_names(two_nodes, tmp_path):
    """Ray counts what a node says it has: an arm that asks for a GPU waits for a node with one."""
    cluster, _ = two_nodes
    node = cluster.add_node(num_cpus=1, num_gpus=1, object_store_memory=80 * 1024**2)
    spec = StudySpec.model_validate(
        {**SPEC, "run": {**SPEC["run"], "steps": 2}, "resources": {"cpus": 1, "gpus": 1}}
    )
    used, stop = set(), threading.Event()

    def look():
        while not stop.wait(0.1):
            if ray.is_initialized():
                used.add(ray.cluster_resources().get("GPU", 0) - ray.available_resources().get("GPU", 0))  # fmt: skip

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        run_study(spec, tmp_path / "study", ray=cluster.address)
    finally:
        stop.set()
        watcher.join()
        cluster.remove_node(node)
    assert max(used) == 1.0


def test_a_cluster_that_is_not_there(tmp_path):
    with pytest.raises(EpistillError, match=r"no Ray cluster at '127\.0\.0\.1:1'"):
        run_study(StudySpec.model_validate(SPEC), tmp_path / "out", ray="127.0.0.1:1")
    with pytest.raises(EpistillError, match="leave one of the two out"):
        run_study(StudySpec.model_validate(SPEC), tmp_path / "two", ray="127.0.0.1:1", workers=2)


def test_resources_are_checked_and_kept():
    spec = StudySpec.model_validate({**SPEC, "resources": {"cpus": 4, "gpus": 0.5}})
    assert (spec.resources.cpus, spec.resources.gpus) == (4, 0.5)
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        StudySpec.model_validate({**SPEC, "resources": {"cpus": 0}})


def test_payloads_are_plain_json(tmp_path):
    """What is handed over is text: no object of this project crosses the border of a process."""
    from epistill.studies.runner import jobs_of

    for job in jobs_of(StudySpec.model_validate(SPEC), tmp_path):
        assert json.loads(json.dumps(job.payload)) == job.payload
