"""Measured throughputs: what is counted, against a clock that is known."""

from __future__ import annotations

import json
import os
import re

import pytest

from epistill.errors import EpistillError
from epistill.rollouts.load_model import lab_directory, load_model
from epistill.rollouts.prompts import render_prompt
from epistill.studies import calibrate
from epistill.studies.calibrate import calibrated
from epistill.studies.hardware import GIB, Architecture
from epistill.studies.plan import plan_study
from epistill.studies.spec import StudySpec
from epistill.tasks.coverage import make_curriculum
from tests.helpers.families import tiny_model
from tests.helpers.models import make_tiny_model

SECONDS = 2.0
SHAPE = json.loads((lab_directory() / "config.json").read_text())
PROMPT, LIMIT = 20, 12


def study(method, peak=0.2, **changes):
    shape = {key: value for key, value in SHAPE.items() if key in Architecture.model_fields}
    arms = [{"id": "base", "label": "base"}, {"id": "one", "label": "one", "method": method}]
    return StudySpec.model_validate(
        {
            "name": "timed", "question": "?", "about": "", "seeds": [0], "arms": arms,
            "run": {"model": "lab", "steps": 2, "problems_per_step": 3, "samples_per_problem": 4,
                    "task": {"type": "star_search"}, "sampling": {"max_new_tokens": LIMIT}},
            "hardware": {"gpu": "a core", "gpus": 1, "memory_gib": 8, "peak_tflops": peak,
                         "utilisation": 0.5, "sampling_tokens_per_second": 7.0, "source": "a guess"},
            "lengths": {"prompt": PROMPT, "source": "a test"},
            "architectures": {"lab": {**shape, "source": "config.json"}},
            **changes,
        }
    )  # fmt: skip


@pytest.mark.parametrize(
    ("method", "teacher_passes"), [("sdpo", 1), ("grpo", 0), ("sft-unguided", 0)]
)
def test_rates_are_counted_tokens_and_flops_by_seconds(method, teacher_passes, monkeypatch):
    rows, inner = [], calibrate.gradients_of_step

    def seen(config, state, some, *rest):
        rows[:] = some
        result = inner(config, state, some, *rest)
        assert result.trained_rows == len(some)  # every row counts
        return result

    monkeypatch.setattr(calibrate, "gradients_of_step", seen)
    monkeypatch.setattr(calibrate, "_timed", lambda action, device: (SECONDS, action()))
    machine = calibrated(spec := study(method)).hardware
    shape = spec.architectures["lab"]
    assert machine.measured
    trained = sum(len(row.prompt_ids) + len(row.completion_ids) for row in rows)
    assert len(rows) == 12
    many, alone = machine.sampling_tokens_per_second, machine.sequence_tokens_per_second
    assert many * SECONDS == sum(len(row.completion_ids) for row in rows)
    assert 1 <= alone * SECONDS <= LIMIT
    flops = 3 * shape.forward_flops(PROMPT + LIMIT, trained)
    if teacher_passes:  # it reads a context as long as a response besides
        assert all(len(row.teacher_prompt_ids) == PROMPT + LIMIT for row in rows)
        flops += shape.forward_flops(PROMPT + 2 * LIMIT, trained + len(rows) * LIMIT)
    assert machine.utilisation * 0.2e12 * SECONDS == pytest.approx(flops)
    assumed = plan_study(calibrated(spec))["assumed"]
    assert assumed == {"sampling_tokens_per_second": many, "utilisation": machine.utilisation}


UNSTATED = {"hardware": None, "lengths": None, "architectures": {}}


def test_what_a_study_does_not_state_is_read_from_machine_model_and_task(monkeypatch):
    monkeypatch.setattr(calibrate, "_timed", lambda action, device: (SECONDS, action()))
    stated = study("sdpo")
    found = calibrated(study("sdpo", **UNSTATED, resources={"processes": 3}))
    shape, expected = found.architectures["lab"], stated.architectures["lab"]
    assert shape.model_copy(update={"source": expected.source}) == expected
    machine = found.hardware
    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < machine.memory_gib <= round(pages / GIB, 1)
    assert (machine.gpus, machine.utilisation) == (3, 1.0)
    run = found.config_of(found.arms[1], 0)
    problems = make_curriculum(run.task, None, 0).at(0, 3)
    tokenizer = load_model("lab").tokenizer
    prompts = [len(render_prompt(tokenizer, p.messages).ids) for p in problems]
    assert found.lengths.prompt == round(sum(prompts) / 3) > 1
    assert found.lengths.response is None
    # With a peak that is known, the same rates and hours.
    told = calibrated(study("sdpo", lengths=found.lengths.model_dump()))
    hours, as_told = (plan_study(spec)["arms"]["one"]["gpu_hours"] for spec in (found, told))
    assert hours == pytest.approx(as_told)
    assert machine.peak_tflops == pytest.approx(told.hardware.utilisation * 0.2)


def test_a_world_that_is_not_made_yet_has_the_shape_of_its_start(monkeypatch):
    monkeypatch.setattr(calibrate, "_timed", lambda action, device: (SECONDS, action()))
    arms = [{"id": "w", "label": "w", "method": "grpo", "changes": {"model": "world:w"}}]
    worlds = [{"id": "w", "dials": {"rescue": 0.5}}]
    found = calibrated(study("sdpo", **UNSTATED | {"arms": arms, "worlds": worlds}))
    assert list(found.architectures) == ["worlds/w/model"]
    assert plan_study(found)["arms"]["w"]["parameters"] == 164_960


def test_what_cannot_be_measured_is_one_line(tmp_path):
    with pytest.raises(EpistillError, match="none of its arms trains"):
        calibrated(study("sdpo").model_copy(update={"arms": study("sdpo").arms[:1]}))
    with pytest.raises(EpistillError, match="more than hardware"):
        calibrated(study("sdpo", peak=1e-9))
    tokenizer = make_tiny_model().tokenizer
    tokenizer.save_pretrained(tmp_path)
    for family, changes, said in (
        ("gemma2", {}, "'qwen3', 'qwen2', 'olmo3' or 'llama' (found 'gemma2')"),
        ("llama", {"mlp_bias": True}, "expected a model without additions"),
    ):
        tiny_model(family, tokenizer, **changes).network.config.save_pretrained(tmp_path)
        spec = study("sdpo", **UNSTATED)
        spec = spec.model_copy(update={"run": {**spec.run, "model": str(tmp_path)}})
        with pytest.raises(EpistillError, match=re.escape(said)) as found:
            calibrated(spec)
        assert "\n" not in str(found.value)
