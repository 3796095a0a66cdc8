"""Every file of a study's folder, damaged in every way: never used silently.

Each case ends in one line that names what is damaged, or in the report of the untouched study.
"""

from __future__ import annotations

import hashlib
import json
import shutil

import pytest
from rich.console import Console
from typer.testing import CliRunner

from epistill.cli import app
from epistill.environment import describe_environment
from epistill.errors import EpistillError, FolderInUse
from epistill.integrity import sealed, unsealed
from epistill.store import RunStore, read_json
from epistill.studies import runner
from epistill.studies.draw_report import draw_again
from epistill.studies.jobs import carry_out
from epistill.studies.load_study import load_study
from epistill.studies.runner import jobs_of, run_study
from epistill.studies.spec import StudySpec
from tests.helpers.damage import EVERY_FILE, JSON, LINES, MARKUP, STEP, cases, content, one_line
from tests.helpers.toy_study import SPEC, TASK

SMALL = {
    **SPEC,
    "seeds": [0, 1],
    "run": {**SPEC["run"], "steps": 2, "eval_every": 1},
    "evaluations": [{**one, "problems": 2} for one in SPEC["evaluations"]],
    "arms": [arm for arm in SPEC["arms"] if arm["id"] in ("base", "sdpo")],
    "probes": [{**SPEC["probes"][0], "problems": 3, "contexts": ["none", "solution-no-think"]}],
    "claims": [{**SPEC["claims"][0], "tests": SPEC["claims"][0]["tests"][:1]}],
    "controls": [],
}
ESTIMATED = ("claims", "controls", "arms", "probes", "outcomes", "settings")


def finish(spec, out):
    """In this process: a worker's imports take longer than a run."""
    for job in jobs_of(spec, out.resolve()):
        carry_out(job.payload, job.folder)
    return run_study(spec, out, workers=1)


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    root = tmp_path_factory.mktemp("studies")
    finish(StudySpec.model_validate(SMALL), root / "whole")
    other = {**SMALL, "name": "other", "run": {**SMALL["run"], "learning_rate": 1e-4, "steps": 1}}
    finish(StudySpec.model_validate({**other, "learning_rates": {}}), root / "other")
    return root


def numbers_of(out):
    report = read_json(out / "report.json")
    for arm in report["arms"]:
        del arm["seconds"]
    return {part: report[part] for part in ESTIMATED}


ARM = "runs/sdpo/seed-1"
OTHER_SCHEMA = {"other schema": content(b'{"format": 99, "arms": {"a": 1}}\n')}
FILES = {
    "study.json": EVERY_FILE | JSON | OTHER_SCHEMA,
    "duration.json": EVERY_FILE | JSON | OTHER_SCHEMA
    | {"word": content(b'{"seconds": "long"}'), "negative": content(b'{"seconds": -1}')},
    "report.json": EVERY_FILE | MARKUP | OTHER_SCHEMA,
    "manifest.json": EVERY_FILE | MARKUP | OTHER_SCHEMA,
    f"{ARM}/result.json": EVERY_FILE | JSON | OTHER_SCHEMA,
    f"{ARM}/manifest.json": EVERY_FILE | MARKUP | OTHER_SCHEMA,
    f"{ARM}/config.json": EVERY_FILE | JSON | OTHER_SCHEMA,
    f"{ARM}/metrics.jsonl": EVERY_FILE | LINES | STEP,
    f"{ARM}/timing.jsonl": EVERY_FILE | LINES,
    f"{ARM}/evaluations/final-deeper.jsonl": EVERY_FILE | LINES,
    f"{ARM}/evaluations/curve.jsonl": EVERY_FILE | LINES,
    "runs/teacher/seed-0/evaluations/final-none.jsonl": EVERY_FILE | LINES,
    "runs/teacher/seed-0/config.json": EVERY_FILE | JSON | OTHER_SCHEMA,
}  # fmt: skip


@pytest.mark.parametrize(("name", "way"), cases(FILES))
def test_a_study_ends_with_its_numbers_or_names_what_is_damaged(name, way, studies, tmp_path):
    out = shutil.copytree(studies / "whole", tmp_path / "study")
    way(out / name, studies / "other" / name)
    try:
        run_study(StudySpec.model_validate(SMALL), out, workers=1)
    except EpistillError as error:
        another = str(error).startswith(f"{out} ")  # study's settings: the folder is named
        one_line(error, str(out) if another else name)
        return
    assert numbers_of(out) == numbers_of(studies / "whole")


REPORT = {name: FILES[name] for name in ("report.json", "manifest.json")}


@pytest.mark.parametrize(("name", "way"), cases(REPORT))
def test_a_page_is_drawn_from_the_whole_report_or_not_at_all(name, way, studies, tmp_path):
    out = shutil.copytree(studies / "whole", tmp_path / "study")
    before = numbers_of(out)
    way(out / name, studies / "other" / name)
    page = tmp_path / "page.html"
    try:
        draw_again(out, page)
    except EpistillError as error:
        one_line(error, "report.json" if "report.json" in str(error) else "manifest.json")
        assert not page.exists()
        return
    assert numbers_of(out) == before
    assert (out / "manifest.json").is_file()  # without it nothing says that the report is whole


@pytest.mark.parametrize("edited", ["runs/sdpo/seed-1", "runs/teacher/seed-0"])
def test_the_folder_of_another_job_is_not_taken_for_this_one(edited, studies, tmp_path):
    """Whole in itself, checksums and all: of another seed, arm or study."""
    out = shutil.copytree(studies / "whole", tmp_path / "study")
    others = [out / "runs/sdpo/seed-0", studies / "other" / edited] if "sdpo" in edited else [
        out / "runs/teacher/seed-1"]  # fmt: skip
    for other in others:
        shutil.rmtree(out / edited)
        shutil.copytree(other, out / edited)
        with pytest.raises(EpistillError, match="holds a run of another configuration") as found:
            run_study(StudySpec.model_validate(SMALL), out, workers=1)
        assert edited in str(found.value)


def test_arms_that_are_gone_are_run_again(studies, tmp_path):
    out = shutil.copytree(studies / "whole", tmp_path / "study")
    shutil.rmtree(out / "runs" / "sdpo")
    (out / "study.json").unlink()
    finish(StudySpec.model_validate(SMALL), out)
    assert numbers_of(out) == numbers_of(studies / "whole")


def toml(folder):
    path = folder / "study.toml"
    path.write_text(
        'name = "x"\nquestion = "?"\nabout = "."\nseeds = [0]\n[run]\nmodel = "lab"\nsteps = 1\n'
        f'task = {{type = "star_search", arms = {TASK["arms"]}, depth = 2}}\n'
        '[[arms]]\nid = "base"\nlabel = "b"\n'
    )
    return path


NO_STUDY = {k: v for k, v in (EVERY_FILE | MARKUP | OTHER_SCHEMA).items()
            if k not in ("another run's", "last byte lost")}  # fmt: skip


@pytest.mark.parametrize("told", NO_STUDY)
def test_a_damaged_study_file_is_one_line(told, tmp_path):
    path = toml(tmp_path)
    assert load_study(str(path)).name == "x"
    NO_STUDY[told](path, None)
    with pytest.raises(EpistillError) as found:
        load_study(str(path))
    assert "\n" not in str(found.value)
    assert "study.toml" in str(found.value)


def test_the_report_of_another_study_is_not_drawn_for_this_one(studies, tmp_path):
    """Whole in itself, manifest and all."""
    out = shutil.copytree(studies / "whole", tmp_path / "study")
    for name in ("report.json", "manifest.json"):
        shutil.copy(studies / "other" / name, out)
    with pytest.raises(EpistillError, match=r"report\.json is of another study \(other\)"):
        draw_again(out)
    run_study(StudySpec.model_validate(SMALL), out, workers=1)
    assert numbers_of(out) == numbers_of(studies / "whole")


def test_runs_of_other_code_are_said_and_shown(studies, tmp_path, monkeypatch):
    out, console = shutil.copytree(studies / "whole", tmp_path / "study"), Console(record=True)
    page = out / "report.html"
    assert "of different code" not in page.read_text()
    shutil.rmtree(out / "runs" / "base" / "seed-1")
    now = {**describe_environment(), "commit": 40 * "f"}
    monkeypatch.setattr(runner, "describe_environment", lambda: now)
    run_study(StudySpec.model_validate(SMALL), out, workers=1, console=console)
    said = " ".join(console.export_text().split())
    assert "finished runs are of epistill" in said
    assert "the others run with epistill 0.1.0 at fffffff" in said
    manifest = out / "runs/sdpo/seed-0/manifest.json"  # a run that went on with other code
    environment = manifest.with_name("environment.json")
    told = json.dumps({**read_json(environment), "went_on_with": ["epistill 9 at <fff>"]})
    files = unsealed(manifest, read_json(manifest))["files"]
    files["environment.json"] = hashlib.sha256(told.encode()).hexdigest()
    environment.write_text(told)
    manifest.write_text(json.dumps(sealed({"files": files})))
    run_study(StudySpec.model_validate(SMALL), out, workers=1)
    assert "of different code" in page.read_text()
    assert "epistill 9 at &lt;fff&gt;" in page.read_text()


def test_a_page_is_not_drawn_into_a_study_that_is_running(studies, tmp_path):
    """It would write an older report over a newer one."""
    out = shutil.copytree(studies / "whole", tmp_path / "study")
    with RunStore(out).locked():
        with pytest.raises(FolderInUse):
            draw_again(out)
        draw_again(out, tmp_path / "page.html")


# ---- drawn again from the outcomes


def without_manifest(studies, tmp_path):
    folder = tmp_path / "committed"
    folder.mkdir()
    shutil.copy(studies / "whole" / "report.json", folder)
    return folder


def test_every_estimate_is_made_again_from_the_outcomes(studies, tmp_path):
    """As committed data are: without the runs. What an older method gave is replaced."""
    folder, before = without_manifest(studies, tmp_path), numbers_of(studies / "whole")

    def older(value):
        if isinstance(value, dict) and {"value", "low", "high"} <= set(value):
            return {**value, "value": -1.0, "low": -2.0, "high": 0.0}
        if isinstance(value, dict):
            return {name: older(one) for name, one in value.items()}
        return [older(one) for one in value] if isinstance(value, list) else value

    report = read_json(folder / "report.json")
    kept = {"outcomes": report["outcomes"], "settings": report["settings"]}
    changed = {**{name: older(value) for name, value in report.items()}, **kept}
    assert changed["arms"] != report["arms"]
    (folder / "report.json").write_text(json.dumps(changed))
    page = tmp_path / "page.html"
    done = CliRunner().invoke(app, ["report", str(folder), "--out", str(page)])
    assert done.exit_code == 0, done.output
    assert "-1.000 [-2.000" not in page.read_text()
    assert read_json(folder / "report.json") == changed  # a page elsewhere leaves it alone
    draw_again(folder)
    assert numbers_of(folder) == before


def test_outcomes_are_those_of_the_records_and_small(studies):
    whole = studies / "whole"
    found = read_json(whole / "report.json")["outcomes"]
    one = found["runs"]["sdpo"]["1"]["sets"]["deeper"]
    lines = (whole / ARM / "evaluations" / "final-deeper.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    names = found["problems"][one["problem_id"]]
    assert names == list(dict.fromkeys(row["problem_id"] for row in rows))
    right = [sum(r["correct"] for r in rows if r["problem_id"] == name) for name in names]
    assert one["correct"] == "".join(map(str, right))
    assert one["samples"] == "2" * len(names)
    assert len(found["problems"]) == 3  # shared by arms, seeds and contexts


@pytest.mark.parametrize("number", ["1e400", "NaN", "1" + 400 * "0"])
def test_a_number_that_is_none_in_a_report_without_manifest_is_one_line(number, studies, tmp_path):
    """In what no outcome decides: a point of the learning curve, which is drawn."""
    folder = without_manifest(studies, tmp_path)
    report = read_json(folder / "report.json")
    report["arms"][1]["evaluation_curve"]["0"][0]["deeper/score"] = "HERE"
    text = json.dumps(report).replace('"HERE"', number)
    (folder / "report.json").write_text(text)
    with pytest.raises(EpistillError, match=r"report\.json is not") as caught:
        draw_again(folder)
    one_line(caught.value, "report.json")


def test_outcomes_that_do_not_fit_are_refused(studies, tmp_path):
    folder = without_manifest(studies, tmp_path)
    report = read_json(folder / "report.json")
    for key, value in (("correct", "1"), ("problem_id", 99), ("n_tokens", None), ("samples", "x")):
        changed = json.loads(json.dumps(report))
        changed["outcomes"]["runs"]["sdpo"]["1"]["sets"]["deeper"][key] = value
        (folder / "report.json").write_text(json.dumps(changed))
        with pytest.raises(EpistillError, match=r"report\.json is not a report"):
            draw_again(folder)
