"""Steps that change nothing say so, with the reason."""

from __future__ import annotations

import pytest

from epistill.config import RunConfig
from epistill.methods import method
from epistill.studies import step_lines
from epistill.studies.run_arm import run
from epistill.studies.step_lines import (
    idle_steps_line,
    step_line,
    steps_without_signal,
    why_no_signal,
)

BOTH = method("rlsd")  # a verifier's signal and a teacher's
ROW = {"step": 4, "reward": 0.0, "length_tokens": 8.0, "density_per_1k_tokens": 0.0, "loss": 0.0}


@pytest.mark.parametrize(
    ("numbers", "reason"),
    [
        ({"trained_rows": 1, "rows_with_context": 0, "rows_with_unequal_rewards": 0}, None),
        ({"trained_rows": 0, "rows_with_context": 3, "rows_with_unequal_rewards": 0}, step_lines.EQUAL_REWARDS),
        ({"trained_rows": 0, "rows_with_context": 0, "rows_with_unequal_rewards": 2}, step_lines.NO_CONTEXT),
        ({"trained_rows": 0, "rows_with_context": 1, "rows_with_unequal_rewards": 2}, step_lines.NO_WEIGHT),
        ({}, None),  # of an older version, which did not count them
    ],
)  # fmt: skip
def test_the_reason(numbers, reason):
    assert why_no_signal({**ROW, **numbers}, BOTH) == reason
    assert ("nothing to learn from" in step_line({**ROW, **numbers}, 9, BOTH)) == (
        reason is not None
    )


def test_nothing_is_said_where_every_step_had_a_signal():
    assert idle_steps_line(steps_without_signal([{**ROW, "trained_rows": 2}], BOTH), 1) is None


def test_a_step_without_a_loss_is_one_line_too():
    assert (
        step_line({**ROW, "loss": None, "trained_rows": None}, 9, BOTH)
        == "step 5 of 9: no finite loss, skipped"
    )


@pytest.mark.parametrize(
    ("name", "reason"),
    [("grpo", step_lines.EQUAL_REWARDS), ("sdpo", step_lines.NO_CONTEXT)],
)
def test_a_run_whose_responses_are_all_wrong_says_so(name, reason, tmp_path):
    config = RunConfig.model_validate(
        {
            "model": "lab", "method": method(name).model_dump(), "steps": 2, "problems_per_step": 2,
            "samples_per_problem": 2, "sampling": {"max_new_tokens": 2},  # too short for any answer
            "task": {"type": "star_search", "arms": 3, "depth": 2},
        }
    )  # fmt: skip
    store = run(config, tmp_path / "run", save_model=False)
    without = store.result["steps_without_signal"]
    assert sum(without.values()) == 2
    assert set(without) == {reason}
    assert "2 of 2 steps" in idle_steps_line(without, 2)
