"""Measured throughputs: what is counted, against a clock that is known."""

from __future__ import annotations

import json

import pytest

from epistill.errors import EpistillError
from epistill.rollouts.load_model import lab_directory
from epistill.studies import calibrate
from epistill.studies.calibrate import calibrated
from epistill.studies.hardware import Architecture
from epistill.studies.plan import plan_study
from epistill.studies.spec import StudySpec

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


def test_what_cannot_be_measured_is_one_line():
    base = study("sdpo").arms[:1]
    for missing in ({"hardware": None}, {"architectures": {}}, {"arms": base}):
        with pytest.raises(EpistillError, match="cannot be calibrated"):
            calibrated(study("sdpo").model_copy(update=missing))
    with pytest.raises(EpistillError, match="more than hardware"):
        calibrated(study("sdpo", peak=1e-9))
