"""What would end a run after its training is found before it."""

from __future__ import annotations

import copy

import pytest

from epistill.errors import EpistillError
from epistill.studies.run_arm import run
from epistill.studies.runner import run_study
from epistill.studies.spec import StudySpec
from tests.helpers.toy_study import SPEC

ABSENT = {"type": "file", "path": "absent.jsonl"}
LONG = {"max_new_tokens": 500}
FAULTS = [
    (("run",), {"sampling": LONG}, "base seed 0: evaluation 'held out': .* 512 positions"),
    (("evaluations", 1), LONG, "base seed 0: evaluation 'deeper': .* 512 positions of 'lab'"),
    (("evaluations", 1), {"task": ABSENT}, "evaluation 'deeper': no file 'absent.jsonl'"),
    (("arms", 2), {"changes": {"sampling": LONG}, "evaluations": []}, "grpo-2 seed 0: a prompt .*"),
    (("arms", 2, "changes"), {"eval_sampling": LONG}, "grpo-2 seed 0: evaluation .* 512 positions"),
    (("arms", 2, "changes"), {"task": ABSENT}, "grpo-2 seed 0: no file 'absent.jsonl'"),
    (("probes", 0), {"sampling": LONG}, "teacher seed 0: a prompt .* 512 positions"),
    (("probes", 0), {"task": ABSENT}, "teacher seed 0: no file"),
    (("preflights", 0, "settings"), {"sampling": LONG}, "before seed 0: a prompt .* 512 positions"),
]


def changed(place, change):
    spec = copy.deepcopy(SPEC)
    task, sampling = spec["run"]["task"], spec["run"]["sampling"]
    settings = {"model": "lab", "task": task, "sampling": sampling}
    spec["preflights"] = [{"id": "before", "label": "P", "settings": settings}]
    for arm in spec["arms"]:
        arm["changes"] = {}
    part = spec
    for key in place:
        part = part[key]
    part |= change
    return spec


@pytest.mark.parametrize(("place", "change", "words"), FAULTS)
def test_a_study_begins_nothing(place, change, words, tmp_path):
    spec = StudySpec.model_validate(changed(place, change))
    with pytest.raises(EpistillError, match=words) as caught:
        run_study(spec, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "out").glob("runs/*"))


def test_a_run_does_not_train(tmp_path):
    spec = StudySpec.model_validate(changed(("evaluations", 1), LONG))
    config = spec.config_of(spec.arms[1], 0)
    with pytest.raises(EpistillError, match=r"evaluation 'deeper': .* 512 positions of 'lab'"):
        run(config, tmp_path)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_the_long_prompt_of_a_file_counts(tmp_path):
    """It is the last of many, and not in the first batch."""
    file = tmp_path / "problems.jsonl"
    long = '{"question": "' + "3 + 4 = " * 200 + '", "answer": "7"}\n'
    short = "".join(f'{{"question": "{i} + 4 = ", "answer": "7"}}\n' for i in range(20))
    spec = changed(("run",), {"task": {"type": "file", "path": str(file)}})
    spec["evaluations"], spec["claims"] = [], []
    chosen = StudySpec.model_validate(spec)
    config = chosen.config_of(chosen.arms[1], 0)
    file.write_text(short + long)
    with pytest.raises(EpistillError, match="512 positions"):
        run(config, tmp_path / "run")
