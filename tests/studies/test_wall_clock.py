"""How long a run takes by the clock: what it waits for, and what is made ahead."""

from __future__ import annotations

import functools
import itertools

import pytest

from epistill.config import RunConfig
from epistill.methods import method
from epistill.studies.load_study import load_study
from epistill.studies.plan import plan_study
from epistill.studies.wall_clock import evaluation_sizes, one_step_ahead, wall_hours
from tests.helpers.plans import ARCHITECTURES


@pytest.mark.parametrize(("steps", "points"), [(0, 0), (1, 0), (4, 0), (5, 1), (8, 1), (9, 2)])
def test_points_of_the_curve_are_those_that_a_run_makes(steps, points):
    """Every fourth step but the last, which the whole evaluation follows."""
    task = {"type": "star_search"}
    sets = [
        {"name": "many", "task": task, "problems": 99, "samples": 3, "curve_problems": 7},
        {"name": "few", "task": task, "problems": 5, "samples": 2, "curve_problems": 64},
    ]
    config = RunConfig.model_validate({
        "model": "lab", "task": task, "method": method("grpo"), "steps": steps, "eval_every": 4,
        "evaluations": sets,
    })  # fmt: skip
    assert (
        list(evaluation_sizes(config))
        == [(99, 3)] + [(7, 1)] * points + [(5, 2)] + [(5, 1)] * points
    )


def made_ahead(sampling: float, training: float, steps: int) -> float:
    """Hours until the last update, step by step; both are those of all steps."""
    written, trained = sampling / steps, 0.0
    for _ in range(steps):
        begun = max(written, trained)  # then servers have new weights, and write the next batch
        written, trained = begun + sampling / steps, begun + training / steps
    return trained


def test_sampling_ahead_is_found_as_if_every_split_was_tried():
    spec = load_study("recipes/math-qwen3-8b-think")
    shape, config = ARCHITECTURES["Qwen/Qwen3-8B"], spec.config_of(spec.arms[2], 0)
    best = set()
    for problems, samples, gather, alone, seconds in itertools.product(
        (1, 2, 3, 7, 12), (1, 4), (None, 20.0, 400.0), (None, 50.0), (1e3, 1e5, 1e7)
    ):
        sizes = {"problems_per_step": problems, "samples_per_problem": samples}
        rates = {"gather_gb_per_second": gather, "sequence_tokens_per_second": alone}
        run = config.model_copy(update={**sizes, "updates_per_batch": 1, "steps": 3})
        machine = spec.hardware.model_copy(update=rates)
        hours = functools.cache(
            functools.partial(
                wall_hours, run, shape, machine, spec.lengths,
                rate=2500.0, update_seconds=seconds, microbatch_tokens=22_528,
            )
        )  # fmt: skip
        for gpus in (2, 3, 5, 13, 29):
            splits = [
                (k, hours(gpus=k)["sampling"], hours(gpus=gpus - k)["training"])
                for k in range(1, gpus)
            ]
            ahead, servers = min((made_ahead(s, t, run.steps), k) for k, s, t in splits)
            found = one_step_ahead(hours, hours, run, gpus)
            assert found["servers"] == servers
            assert found["hours_ahead"] == pytest.approx(ahead)
            assert found["hours_in_turn"] == min(sum(one[1:]) for one in splits)
            best.add((servers == 1, servers == gpus - 1))
    assert len(best) == 4


def test_a_clock_stops_at_the_longest_response_and_at_whole_rows():
    """By hand: DS-7B's mean and limit differ; rows and problems are dealt whole."""
    spec = load_study("recipes/math-ds-7b")
    spec = spec.model_copy(
        update={"run": {**spec.run, "problems_per_step": 4}, "arms": spec.arms[1:2]}
    )  # GRPO: 100 steps of 4 x 8 rows, two updates each
    clocks = {n: plan_study(spec, gpus=n)["arms"]["grpo"]["wall_hours"] for n in (1, 4, 5, 17)}
    rate, alone = spec.hardware.sampling_tokens_per_second, spec.hardware.sequence_tokens_per_second
    assert clocks[1]["sampling"] == pytest.approx(100 * 4 * 8 * 13_054 / rate / 3600)
    assert clocks[4]["sampling"] == clocks[17]["sampling"]  # no problem for the others
    assert clocks[17]["sampling"] == pytest.approx(100 * 20_480 / alone / 3600)
    assert clocks[17]["idle_sampling_share"] == pytest.approx(13 / 17)
    assert clocks[1]["training"] == pytest.approx(4 * clocks[4]["training"])
    assert clocks[5]["training"] == clocks[4]["training"]  # four rows of 16 are the most
    assert clocks[17]["training"] == pytest.approx(clocks[1]["training"] / 16)
    slow = spec.hardware.model_copy(update={"gather_gb_per_second": 1.0})
    found = plan_study(spec.model_copy(update={"hardware": slow}), gpus=17)["arms"]["grpo"]
    shape = spec.architectures[next(iter(spec.architectures))]
    # 200 updates of one micro-batch: twice the weights in bfloat16, the float32 gradient; and per
    # step the whole float32 copy.
    moved = 200 * shape.parameters * (2 * 2 + 4) + 100 * shape.parameters * 4
    assert found["wall_hours"]["training"] == pytest.approx(moved / 1e9 / 3600)
    assert found["wall_hours"]["training_bound"] == "gathering weights"
