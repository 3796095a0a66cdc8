"""A whole study at toy size: runs, resumes, refuses other settings, and its page opens."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from rich.console import Console

from epistill.errors import EpistillError
from epistill.report.study_page import write_report
from epistill.store import RunStore
from epistill.studies.executors import LocalProcesses, workers_at_once
from epistill.studies.load_study import load_study, shipped_studies
from epistill.studies.runner import jobs_of, run_study
from epistill.studies.spec import Resources, StudySpec
from epistill.studies.study_summary import summarise_study
from tests.helpers.browser import needs_chromium, opened
from tests.helpers.toy_study import SPEC


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("study") / "toy"
    path = run_study(StudySpec.model_validate(SPEC), out, workers=2)
    return out, path


def report_of(out):
    return json.loads((out / "report.json").read_text())


def test_everything_is_reported(finished):
    out, path = finished
    report = report_of(out)
    assert path == out / "report.html"
    assert (report["runs_finished"], report["runs_total"]) == (10, 10)
    assert [c["id"] for c in report["claims"]] == ["one"]
    for c in (*report["claims"], *report["controls"]):
        assert set(c) == {"id", "text", "verdict", "numbers"}
        assert c["verdict"] in ("reproduced", "not reproduced", "not distinguishable")
        assert all(n["difference"] is not None for n in c["numbers"])
    for arm in report["arms"]:
        assert arm["seeds"] == [0, 1]
        assert arm["evaluations"]["ood"]["score"]["problems"] == 5
    assert report["arms"][1]["curves"]["reward"]["steps"] == [0, 1, 2]
    assert [p["step"] for p in report["arms"][1]["evaluation_curve"]["0"]] == [0, 2]
    assert set(report["probes"][0]["contexts"]) == set(SPEC["probes"][0]["contexts"])
    assert report["settings"]["run"]["steps"] == 3
    assert report["environment"]["packages"]["torch"]


def test_the_page_repeats_the_json_and_escapes_everything(finished):
    _, path = finished
    html = path.read_text()
    assert "<script>alert(1)" not in html
    assert "&lt;script&gt;alert(1)" in html
    assert "Does &lt;b&gt;this&lt;/b&gt; work?" in html
    assert "SDPO differs." in html


def test_nothing_outside_is_referred_to(finished):
    _, path = finished
    html = re.sub(r"<script>.*?</script>", "", path.read_text(), flags=re.DOTALL)
    assert not re.search(r"""(src|href)\s*=""", html)
    assert "default-src 'none'" in html


@needs_chromium
def test_in_a_browser_every_plot_has_data_and_nothing_is_fetched(finished, tmp_path):
    _, path = finished
    facts, dom = opened(path, tmp_path)
    assert int(facts["plots"]) == 5  # probe, two curve plots, change, coverage
    assert facts["plots-with-data"] == facts["plots"]
    assert facts["requests"] == "0"
    assert "<mark>" in dom  # highlighted traces were filled in by the page's script


def test_a_finished_study_is_not_done_again(finished):
    out, _ = finished
    before = {p: p.stat().st_mtime_ns for p in out.rglob("metrics.jsonl")}
    run_study(StudySpec.model_validate(SPEC), out, workers=2)
    assert {p: p.stat().st_mtime_ns for p in out.rglob("metrics.jsonl")} == before


def test_an_unfinished_study_goes_on_and_ends_with_the_same_numbers(finished, tmp_path):
    out, _ = finished
    copy = tmp_path / "toy"
    shutil.copytree(out, copy)
    shutil.rmtree(copy / "runs" / "sdpo" / "seed-1")
    (copy / "runs" / "grpo" / "seed-0" / "result.json").unlink()
    log = Console(file=io.StringIO(), width=200)  # no terminal: a line for each run that ends
    run_study(StudySpec.model_validate(SPEC), copy, workers=1, console=log)  # they change nothing
    all_runs = len(jobs_of(StudySpec.model_validate(SPEC), copy))
    said = log.file.getvalue().splitlines()
    assert f"grpo seed 0 finished: {all_runs - 1} of {all_runs} runs" in said
    assert f"sdpo seed 1 finished: {all_runs} of {all_runs} runs" in said
    for part in ("claims", "controls", "arms", "probes"):
        one, other = report_of(out)[part], report_of(copy)[part]
        for arm in (*one, *other):
            arm.pop("seconds", None)
        assert one == other


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seeds": [0]}, "seeds"),
        ({"arms": SPEC["arms"][:-1]}, "arms.sdpo"),
        ({"arms": SPEC["arms"][::-1]}, "the order of arms"),
        ({"arms": [*SPEC["arms"][:2], {**SPEC["arms"][2], "coverage": 1}, SPEC["arms"][3]]}, "arms.grpo-2.coverage"),
        ({"run": {**SPEC["run"], "steps": 4}}, "run.steps"),
    ],
)  # fmt: skip
def test_other_settings_are_refused_and_named(change, named, finished):
    out, _ = finished
    changed = StudySpec.model_validate({**SPEC, "claims": [], **change})
    with pytest.raises(EpistillError, match=rf"a study with other settings \(differs in {named}\)"):
        run_study(changed, out)


def test_a_second_process_on_one_study_is_refused(finished):
    out, _ = finished
    with RunStore(out).locked(), pytest.raises(EpistillError, match="in use by another process"):
        run_study(StudySpec.model_validate(SPEC), out)


def test_a_study_of_an_older_version_is_migrated_or_refused_with_the_way_out(finished, tmp_path):
    out, _ = finished
    copy = shutil.copytree(out, tmp_path / "toy")
    old = json.loads((copy / "study.json").read_text())
    del old["resources"]  # a setting that it did not have: its default is what it did
    (copy / "study.json").write_text(json.dumps(old))
    run_study(StudySpec.model_validate(SPEC), copy)
    (copy / "study.json").write_text(json.dumps({**old, "scheduler": "greedy"}))
    with pytest.raises(EpistillError, match=r"begun by another version .* choose another --out"):
        run_study(StudySpec.model_validate(SPEC), copy)


def test_a_mistake_in_one_arm_is_reported_as_such(tmp_path):
    settings = {
        **SPEC,
        "run": {**SPEC["run"], "model": str(tmp_path / "none")},
        "probes": [],
        "controls": [],
    }
    with pytest.raises(EpistillError, match=r"no such directory"):
        run_study(StudySpec.model_validate(settings), tmp_path / "out", workers=1)


def test_shipped_studies_are_valid():
    assert {"lab", "lab-phase", "lab-cure"} <= set(shipped_studies())
    cure = load_study("lab-cure")
    assert sum(arm.label.startswith("ours") and arm.coverage is None for arm in cure.arms) == 25
    assert (len(cure.worlds), cure.with_preset("quick").worlds) == (4, ())  # none is made in vain
    assert {e.kind for e in cure.evaluations} == {"in_domain", "ood", "hard", "budget"}
    lab = load_study("lab")
    assert len(lab.seeds) >= 3
    assert [c.id[0] for c in lab.claims] == list("123456")
    quick = lab.with_preset("quick")
    assert quick.note
    assert len(quick.seeds) == 1
    assert 0 < len(quick.arms) < len(lab.arms)


def test_a_preset_lowers_the_problems_of_what_is_measured_but_never_raises_them():
    whole = load_study("smollm2")
    quick = whole.with_preset("quick")
    measured = [
        (*spec.evaluations, *(p.settings for p in spec.preflights)) for spec in (whole, quick)
    ]
    assert {one.problems for one in measured[1]} == {12}
    assert min(one.problems for one in measured[0]) > 12
    more = whole.model_copy(update={"presets": {"quick": whole.presets["quick"].model_copy(
        update={"problems": 10_000})}}).with_preset("quick")  # fmt: skip
    assert more.evaluations == whole.evaluations
    assert {claim.id[0] for claim in whole.claims} == set("12345")


def test_the_grid_is_multiplied_out(tmp_path):
    phase = load_study("lab-phase")
    assert phase.grid is not None
    assert len(phase.worlds) == len(phase.grid.points()) == 25
    assert len(phase.arms) == 25 * len(phase.grid.arms)
    jobs = jobs_of(phase, tmp_path)
    models = {job.payload["run"]["model"] for job in jobs}
    assert models == {str(tmp_path / "worlds" / world.id / "model") for world in phase.worlds}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"arms": []}, "names 'sdpo'"),
        ({"arms": [*SPEC["arms"], SPEC["arms"][0]]}, "repeat"),
        ({"claims": [{"id": "x", "text": "y", "tests": [
            {"measure": "score", "on": "ood", "arm": "nobody", "versus": "base", "expect": "below"}]}]}, "names 'nobody'"),
        ({"seeds": []}, "at least 1"),
        ({"what": 1}, "Extra inputs"),
    ],
)  # fmt: skip
def test_a_study_that_does_not_fit_is_refused(change, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        StudySpec.model_validate({**SPEC, **change})


def test_arms_that_want_gpus_run_one_at_a_time_without_ray(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(64))
    assert workers_at_once(Resources(cpus=16)) == 4
    assert workers_at_once(Resources(cpus=100)) == 1
    assert workers_at_once(Resources(cpus=16, gpus=4)) == 1
    with pytest.raises(EpistillError, match=r"--workers is 2 and \[resources\] gpus is 0.5"):
        LocalProcesses(2, Resources(gpus=0.5), jobs=3)


SCRIPT = """
from concurrent.futures import wait
from pathlib import Path
from epistill.studies.executors import LocalProcesses
from epistill.studies.spec import Resources

with LocalProcesses(1, Resources(), jobs=1) as processes:
    future = processes.submit({}, Path("x"))
    wait([future])
    print("once:", type(future.exception()).__name__)
"""


def test_a_script_that_starts_a_study_needs_no_main_guard(tmp_path):
    """A job without settings fails, in the worker: the script is not run there again."""
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout == "once: KeyError\n", done.stderr


@pytest.mark.parametrize("name", shipped_studies())
def test_a_page_is_drawn_before_the_first_run_has_ended(tmp_path, name):
    spec = load_study(name)
    report = summarise_study(spec, {}, worlds={}, finished=0, total=9, seconds=1.0)
    assert "0 of 9 runs finished" in write_report(report, tmp_path / "page.html").read_text()
