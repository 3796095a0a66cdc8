"""A whole preflight: controls, prompts, modes, and what an interrupted call leaves behind."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest

from epistill.config import SamplingConfig, StarSearchTask
from epistill.errors import EpistillError
from epistill.preflights.preflight_config import PreflightConfig
from epistill.preflights.preflight_run import run_preflight
from epistill.rollouts.in_process_engine import InProcessEngine
from epistill.rollouts.model import LanguageModel
from epistill.settings import checked

CONFIG = PreflightConfig(
    model="lab",
    task=StarSearchTask(arms=3, depth=2, split="preflight-test"),
    contexts=("sibling", "answer"),
    problems=5,
    samples=4,
    sampling=SamplingConfig(max_new_tokens=32),
)
CONTROLS = {"none", "wrong-answer", "other-solution", "shuffled-solution"}


@pytest.fixture(scope="module")
def report(lab_model, tmp_path_factory):
    return run_preflight(CONFIG, InProcessEngine(lab_model), tmp_path_factory.mktemp("cache"))


class Counting(InProcessEngine):
    """Counts what it is asked, and dies after `survives` calls."""

    def __init__(self, model, survives=10**9):
        super().__init__(model)
        self.calls, self.survives = 0, survives

    def _count(self):
        self.calls += 1
        if self.calls > self.survives:
            raise KeyboardInterrupt

    def sample(self, *args, **settings):
        self._count()
        return super().sample(*args, **settings)

    def score(self, *args, **settings):
        self._count()
        return super().score(*args, **settings)


def comparable(report):
    return json.dumps({k: v for k, v in report.items() if k not in ("chunks", "environment")})


def test_controls_always_run_and_no_context_is_zero(report):
    assert set(report["contexts"]) == {"sibling", "answer", *CONTROLS}
    assert {n for n, c in report["contexts"].items() if c["control"]} == CONTROLS
    none = report["contexts"]["none"]
    assert report["control"]["holds"]
    assert none["largest_u_nats"] < 1e-4
    assert none["rows"] == 20
    for part, key in (
        ("richness", "own_nats_per_response"),
        ("richness", "trace_nats_per_response"),
        ("pressure", "change_per_1k_tokens"),
        ("pressure", "kl_nats_per_token"),
        ("reweighted", "gain_score"),
        ("forks", "change"),
    ):
        assert abs(none[part][key]["value"]) < 1e-3, key
    # A real context is told from none by far more than rounding.
    assert report["contexts"]["sibling"]["largest_u_nats"] > 0.5


def test_zero_is_measured_in_other_company(lab_model, tmp_path):
    """The control scores the same rows in another order and batch: a look-up would prove nothing."""
    engine = Counting(lab_model)
    found = run_preflight(
        CONFIG.model_copy(update={"contexts": ("answer",), "problems": 2}), engine, tmp_path
    )
    assert found["chunks"]["computed"] == engine.calls
    # The student takes 3 calls and each of 5 contexts 5; only what "none" says of its own fresh
    # responses, guided and bare, is the same question twice.
    assert engine.calls == 3 + 5 * 5 - 1


def test_the_solution_is_rich_and_takes_markers(report):
    sibling = report["contexts"]["sibling"]
    assert sibling["richness"]["own_nats_per_response"]["low"] > 0
    assert sibling["pressure"]["change_per_1k_tokens"]["high"] < 0
    total = sibling["pressure"]
    parts = total["change_written_per_1k_tokens"], total["change_elsewhere_per_1k_tokens"]
    assert total["change_per_1k_tokens"]["value"] == pytest.approx(
        sum(part["value"] for part in parts)
    )
    # Summed over draws, the probability of a marker is the count of markers (within sampling).
    density = report["student"]["density_per_1k_tokens"]
    mass = total["student_mass_per_1k_tokens"]["value"]
    assert density["low"] * 0.7 < mass < density["high"] * 1.3


def test_prompts_are_kept_with_their_hashes(report):
    prompt = report["contexts"]["sibling"]["prompt"]
    assert "Solution:" in prompt["teacher"]
    assert "Solution:" not in prompt["student"]
    assert len({prompt["student_sha256"], prompt["teacher_sha256"], prompt["all_sha256"]}) == 3
    assert prompt["student_mode"] == prompt["teacher_mode"] == "open"
    assert report["contexts"]["none"]["prompt"]["teacher"] == prompt["student"]


def test_the_trace_lines_up(report):
    trace = report["trace"]
    assert len(trace["pieces"]) == len(trace["classes"])
    assert {len(u) for u in trace["u_nats"].values()} == {len(trace["pieces"])}
    assert "marker" in trace["classes"]
    assert np.abs(trace["u_nats"]["none"]).max() < 1e-4


@pytest.mark.parametrize("survives", [1, 6, 15])
def test_an_interrupted_call_goes_on(lab_model, report, tmp_path, survives):
    with pytest.raises(KeyboardInterrupt):
        run_preflight(CONFIG, Counting(lab_model, survives), tmp_path)
    assert len(list(tmp_path.glob("*.parquet"))) == survives
    assert not list(tmp_path.glob(".*.tmp"))
    engine = Counting(lab_model)
    found = run_preflight(CONFIG, engine, tmp_path)
    assert found["chunks"]["reused"] >= survives
    assert engine.calls == report["chunks"]["computed"] - survives
    assert comparable(found) == comparable(report)
    again = Counting(lab_model)
    run_preflight(CONFIG, again, tmp_path)
    assert again.calls == 0


def test_a_changed_setting_or_model_is_not_served_from_the_cache(lab_model, tmp_path):
    small = CONFIG.model_copy(update={"contexts": ("answer",), "problems": 2, "samples": 2})
    fresh = Counting(lab_model)
    run_preflight(small, fresh, tmp_path)
    engine = Counting(lab_model)
    run_preflight(small.model_copy(update={"seed": 1}), engine, tmp_path)
    assert engine.calls == fresh.calls
    other = LanguageModel(copy.deepcopy(lab_model.network), lab_model.tokenizer, "lab")
    next(iter(other.network.parameters())).data[0, 0] += 1.0
    engine = Counting(other)
    run_preflight(small, engine, tmp_path)
    assert engine.calls == fresh.calls


SWITCH = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n{% if enable_thinking is defined and not enable_thinking %}"
    "<think>\n</think>\n{% else %}<think>\n{% endif %}"
)


def with_switch(model):
    tokenizer = copy.deepcopy(model.tokenizer)
    tokenizer.chat_template = SWITCH
    return LanguageModel(model.network, tokenizer, model.name)


def test_unlike_thinking_modes_are_refused_before_anything_is_sampled(lab_model, tmp_path):
    engine = Counting(with_switch(lab_model))
    unlike = CONFIG.model_copy(update={"teacher_thinking": False})
    with pytest.raises(EpistillError, match="thinking open but the teacher's closed"):
        run_preflight(unlike, engine, tmp_path)
    assert engine.calls == 0


def test_unlike_thinking_modes_can_be_allowed(lab_model, tmp_path):
    allowed = CONFIG.model_copy(
        update={"teacher_thinking": False, "allow_mode_mismatch": True, "problems": 2,
                "contexts": ("answer",)}
    )  # fmt: skip
    found = run_preflight(allowed, InProcessEngine(with_switch(lab_model)), tmp_path)
    prompt = found["contexts"]["none"]["prompt"]
    assert (prompt["student_mode"], prompt["teacher_mode"]) == ("open", "closed")
    assert not found["control"]["holds"]  # the modes differ, and the control says so


def test_an_unknown_context_is_named_before_a_model_is_loaded():
    with pytest.raises(EpistillError, match=r"no context 'solutoin'; .*; did you mean 'solution'"):
        checked(PreflightConfig, {**CONFIG.model_dump(), "contexts": ["solutoin"]})


def test_a_prompt_that_does_not_fit_is_left_out_and_counted(lab_model, tmp_path):
    short = InProcessEngine(lab_model)
    short.max_positions = 60  # question and response fit, a solution in front of them does not
    found = run_preflight(CONFIG, short, tmp_path)
    assert found["contexts"]["sibling"]["too_long"] > 0
    assert found["contexts"]["none"]["too_long"] == 0
    assert found["contexts"]["sibling"]["problems"] < 5
