"""A study file whose names lead nowhere is refused at load, in one line that offers the near one."""

from __future__ import annotations

import copy
import json

import pytest

from epistill.errors import EpistillError
from epistill.inputs import load_run_config
from epistill.studies.draw_report import draw_again
from epistill.studies.load_study import load_study
from epistill.studies.runner import run_study
from epistill.studies.spec import StudySpec, without_analysis

TASK = {"type": "star_search", "arms": 3, "depth": 2}
TEST = {"measure": "score", "on": "ood", "arm": "sdpo", "versus": "base", "expect": "below"}
SPEC = {
    "name": "toy",
    "question": "?",
    "about": "A test.",
    "seeds": [0, 1],
    "run": {"model": "lab", "steps": 1, "problems_per_step": 2, "samples_per_problem": 2, "task": TASK,
            "sampling": {"max_new_tokens": 8}},
    "evaluations": [
        {"name": "held out", "kind": "in_domain", "task": TASK, "problems": 2, "samples": 2},
        {"name": "deeper", "kind": "ood", "task": TASK, "problems": 2, "samples": 2},
    ],
    "arms": [
        {"id": "base", "label": "base"},
        {"id": "sdpo", "label": "SDPO", "method": "sdpo"},
        {"id": "narrow", "label": "SDPO, one set", "method": "sdpo",
         "evaluations": [{"name": "held out", "kind": "in_domain", "task": TASK}]},
    ],
    "probes": [{"id": "teacher", "label": "T", "model": "lab", "task": TASK, "problems": 2, "samples": 2,
                "contexts": ["none", "sibling"], "sampling": {"max_new_tokens": 8}}],
    "preflights": [{"id": "before", "label": "P", "settings": {"model": "lab", "task": TASK, "contexts": ["answer"],
                    "sampling": {"max_new_tokens": 8}}}],
    "claims": [{"id": "one", "text": "Less.", "tests": [TEST]}],
    "presets": {"quick": {"arms": ["base", "sdpo"], "probes": ["teacher"], "seeds": [0], "note": "n"}},
    "learning_rates": {"sdpo": 1e-3},
}  # fmt: skip


def changed(path, value):
    spec = copy.deepcopy(SPEC)
    *parents, last = path
    place = spec
    for part in parents:
        place = place[part]
    place[last] = value
    return spec


CLAIM = ("claims", 0, "tests", 0)
GRID = {"dials": {"commit": [0.5]}, "arms": [{"id": "base", "label": "b"}, {"id": "g", "label": "g", "method": "grpo"}],
        "pairs": {"GRPO": ["g", "base"]}}  # fmt: skip


@pytest.mark.parametrize(
    ("path", "value", "near"),
    [
        ((*CLAIM, "measure"), "scor", "score"),
        ((*CLAIM, "measure"), "train_rewards", "train_reward"),
        ((*CLAIM, "on"), "odd", "ood"),
        ((*CLAIM, "arm"), "spdo", "sdpo"),
        ((*CLAIM, "versus"), "bas", "base"),
        ((*CLAIM, "versus_on"), "in_domian", "in_domain"),
        ((*CLAIM, "expect"), "bellow", "below"),
        ((*CLAIM, "marign"), 0.1, "margin"),
        (("controls",), [{"id": "c", "text": "", "tests": [
            {"measure": "score", "on": "siblin", "arm": "teacher", "versus": "teacher", "expect": "above"}]}], "sibling"),
        (("arms", 1, "baseline"), "bse", "base"),
        (("arms", 1, "method"), "sdop", "sdpo"),
        (("arms", 1, "coverge"), 8, "coverage"),
        (("arms", 1, "changes"), {"stepps": 3}, "steps"),
        (("arms", 1, "method_settings"), {"contxt": {}}, "context"),
        (("arms", 1, "changes"), {"model": "world:wrld"}, None),
        (("probes", 0, "contexts"), ["none", "sibblings"], "sibling"),
        (("preflights", 0, "settings", "contexts"), ["anser"], "answer"),
        (("evaluations", 0, "kind"), "indomain", "in_domain"),
        (("run", "sampling", "max_tokens"), 3, "max_new_tokens"),
        (("run", "batch_size"), 3, "problems_per_step"),
        (("learning_rates", "grp"), 1e-3, "grpo"),
        (("presets", "quick", "arms"), ["base", "sdp"], "sdpo"),
        (("presets", "quick", "probes"), ["teachr"], "teacher"),
        (("presets", "quick", "changes"), {"step": 1}, "steps"),
        (("worlds",), [{"id": "w", "dials": {"comit": 0.5}}], "commit"),
        (("grid",), {**GRID, "dials": {"recovry": [0.5]}}, "recovery"),
        (("grid",), {**GRID, "pairs": {"GRPO": ["g", "bse"]}}, "base"),
    ],
)  # fmt: skip
def test_a_wrong_name_is_one_line_with_the_near_one(path, value, near, tmp_path):
    with pytest.raises(EpistillError) as found:
        load_study(toml_file(tmp_path, changed(path, value)))
    assert "\n" not in str(found.value)
    assert near is None or f"did you mean {near!r}?" in str(found.value)


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("seeds",), [0, 1, 0], "seeds repeat: 0"),
        (("evaluations", 1, "name"), "held out", "evaluations repeat"),
        (("controls",), SPEC["claims"], "ids of claims and controls repeat"),
        (("run", "coverage"), 3, r"changes 'coverage'"),
        ((*CLAIM, "arm"), "narrow", "'narrow' is not measured on 'ood'"),
        ((*CLAIM, "arm"), "before", "names 'before'"),
        ((*CLAIM, "measure"), "train_reward", "expected training"),
        (("claims", 0, "tests", 0), {**TEST, "measure": "train_reward", "on": "training"}, "'base'.*does not train"),
        (("run",), {"task": TASK}, "model: Field required"),
        (("arms",), "sdpo", "arms"),
        (("grid",), 3, "grid"),
    ],
)  # fmt: skip
def test_what_would_be_dropped_or_never_measured_is_refused(path, value, words, tmp_path):
    with pytest.raises(EpistillError, match=words):
        load_study(toml_file(tmp_path, changed(path, value)))


def test_a_study_whose_names_are_right_is_loaded(tmp_path):
    assert load_study(toml_file(tmp_path, SPEC)) == StudySpec.model_validate(SPEC)
    assert StudySpec.model_validate({**SPEC, "grid": GRID}).worlds


def toml_file(folder, spec):
    """TOML as far as it and JSON are one: inline tables."""

    def text(value):
        if isinstance(value, dict):
            return "{" + ", ".join(f"{json.dumps(k)} = {text(v)}" for k, v in value.items()) + "}"
        if isinstance(value, list):
            return "[" + ", ".join(map(text, value)) + "]"
        return json.dumps(value)

    path = folder / "study.toml"
    path.write_text("".join(f"{key} = {text(value)}\n" for key, value in spec.items()))
    return str(path)


@pytest.mark.parametrize(
    "content",
    [b"\xff\xfe\x00\x01", b"name = ", b"", b"x = " + b"[" * 3000, b"name = 3", b"a = 1\x00", b"[run]\n[run]\n"],
)  # fmt: skip
def test_files_that_are_no_study_are_one_line(content, tmp_path):
    path = tmp_path / "study.toml"
    path.write_bytes(content)
    for read in (load_study, lambda name: load_run_config(tmp_path / "study.toml", {})):
        with pytest.raises(EpistillError) as found:
            read(str(path))
        assert len(str(found.value)) < 700
        assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    "content", [b"\xff\xfe", b"[1, 2]", b"{}", b'{"format": 1, "arms": 3}', b'{"arms": [{}]}', b"{"]
)
def test_a_report_of_another_kind_is_one_line(content, tmp_path):
    (tmp_path / "report.json").write_bytes(content)
    with pytest.raises(EpistillError) as found:
        draw_again(tmp_path)
    assert "\n" not in str(found.value)
    assert not (tmp_path / "report.html").exists()


def test_data_and_models_are_looked_at_before_anything_trains(tmp_path):
    problems = tmp_path / "few.jsonl"
    problems.write_text('{"prompt": "1 + 1?", "answer": "2"}\n')
    few = {"type": "file", "path": str(problems)}
    for path, value, words in (
        (("arms", 2), {"id": "late", "label": "l", "method": "sdpo", "coverage": 8, "changes": {"task": few}},
         "late seed 0: coverage 8 asks for more than the 1"),
        (("arms", 2), {"id": "late", "label": "l", "method": "sdpo", "changes": {"model": "./none"}},
         "late seed 0.*no such directory"),
        (("probes", 0, "task"), {**few, "path": str(tmp_path / "none.jsonl")}, "teacher seed 0.*none.jsonl"),
    ):  # fmt: skip
        with pytest.raises(EpistillError, match=words):
            run_study(StudySpec.model_validate(changed(path, value)), tmp_path / "out")
        assert not (tmp_path / "out" / "runs").exists()


def test_only_the_analysis_and_where_it_runs_may_change_afterwards():
    spec = StudySpec.model_validate(SPEC).model_dump(mode="json")
    same = without_analysis(spec)
    for path, value in (
        (("claims",), []),
        (("question",), "another"),
        (("arms", 1, "label"), "other"),
        (("probes", 0, "label"), "other"),
        (("preflights", 0, "label"), "other"),
        (("presets",), {}),
        (("resources",), {"cpus": 2}),
    ):
        assert without_analysis(StudySpec.model_validate(changed(path, value)).model_dump(mode="json")) == same  # fmt: skip
    for path, value in (
        (("run", "steps"), 2),
        (("seeds",), [0]),
        (("probes", 0, "samples"), 3),
        (("preflights", 0, "settings", "samples"), 3),
        (("evaluations", 0, "problems"), 3),
        (("arms", 1, "method_settings"), {"divergence": {"alpha": 1.0}}),
    ):
        assert without_analysis(StudySpec.model_validate(changed(path, value)).model_dump(mode="json")) != same  # fmt: skip
