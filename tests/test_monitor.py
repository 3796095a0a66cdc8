"""Alarms: on rows whose answer is known; where they must keep still; what they change."""

from __future__ import annotations

import random

import pytest
from pydantic import ValidationError

from epistill.alarm_rules import Commits, Fall, HeldOut, Loops, Narrowing, Pull
from epistill.blends import Convex
from epistill.config import RunConfig
from epistill.errors import EpistillError
from epistill.methods import METHODS, method
from epistill.monitor import Monitor, Watcher, with_less_teacher

DENSITY, ENTROPY = "density_per_1k_tokens", "entropy_nats_per_token"


def rows(steps, **series):
    """One row per step; a series is a function of the step, with 5 % of noise around it."""
    noise = random.Random(0)
    return [
        {
            "step": step,
            **{
                name: None if (value := of(step)) is None else value * noise.uniform(0.95, 1.05)
                for name, of in series.items()
            },
        }
        for step in range(steps)
    ]


def fired(settings, recorded):
    watcher = Watcher(settings)
    return [(a.step, a.rule) for row in recorded for a in watcher.observe(row)]


def only(rule, **settings):
    return Monitor(rules=(rule,), **settings)


def test_a_fall_beyond_the_share_fires_and_one_short_of_it_does_not():
    settings = only(Fall(measure=DENSITY, share=0.5))
    gone = rows(20, **{DENSITY: lambda step: 100.0 if step < 10 else 40.0})
    less = rows(20, **{DENSITY: lambda step: 100.0 if step < 10 else 60.0})
    # The window's mean passes 50 when its last five steps hold 5 of 40 (4 would be 52).
    assert fired(settings, gone) == [
        (14, "fall:density_per_1k_tokens"),
        (19, "fall:density_per_1k_tokens"),
    ]
    assert fired(settings, less) == []


def test_baseline_and_window_never_overlap():
    settings = only(Fall(measure=DENSITY, share=0.5), baseline_steps=4, window_steps=3)
    falling = rows(7, **{DENSITY: lambda step: 100.0 if step < 4 else 10.0})
    assert fired(settings, falling[:6]) == []
    assert [step for step, _ in fired(settings, falling)] == [6]


def test_a_noisy_measure_must_fall_by_more_than_its_noise():
    drawn = random.Random(1)
    wild = [
        {"step": s, DENSITY: drawn.choice([1.0, 199.0]) if s < 5 else drawn.choice([1.0, 60.0])}
        for s in range(10)
    ]
    loose = only(Fall(measure=DENSITY, share=0.3), standard_errors=0.0)
    assert fired(loose, wild)  # the means did fall
    assert fired(only(Fall(measure=DENSITY, share=0.3)), wild) == []


def test_unchanging_runs_raise_no_alarm():
    """40 stationary runs of 100 steps, independent normal noise of 20 % (the lab's is 5 to 10 %)."""
    for run in range(40):
        drawn = random.Random(run)
        watcher = Watcher(Monitor())
        for step in range(100):
            numbers = {DENSITY: 100, ENTROPY: 1, "reward": 0.5, "pass_at_k": 0.8}
            watcher.observe(
                {"step": step, **{k: drawn.gauss(v, 0.2 * v) for k, v in numbers.items()}}
            )
        assert watcher.alarms == []


def test_entropy_collapse():
    settings = Monitor()
    collapsing = rows(40, **{ENTROPY: lambda step: 0.5 * 0.9**step})
    annealing = rows(40, **{ENTROPY: lambda step: 0.5 * 0.98**step})
    assert [rule for _, rule in fired(settings, collapsing)][:1] == ["fall:entropy_nats_per_token"]
    assert fired(settings, annealing) == []


@pytest.mark.parametrize(
    ("passed", "mean", "alarm"),
    [(0.7, 0.6, True), (0.7, 0.4, False), (0.9, 0.6, False), (0.88, 0.6, False)],
    ids=["narrower", "both-fall", "no-fall", "fall-below-the-limit"],
)
def test_pass_at_k_falls_while_avg_at_k_rises(passed, mean, alarm):
    recorded = [
        {"step": s, "pass_at_k": (0.9 if s < 5 else passed) + 0.01 * (s % 2), "reward": (0.5 if s < 5 else mean) + 0.01 * (s % 2)}
        for s in range(10)
    ]  # fmt: skip
    assert bool(fired(only(Narrowing()), recorded)) == alarm


def test_a_pull_needs_markers_and_a_gap():
    def pulled(on, elsewhere):
        names = ("teacher_pull_on_markers_nats_per_token", "teacher_pull_elsewhere_nats_per_token")
        return rows(8, **dict(zip(names, (lambda _: on, lambda _: elsewhere), strict=True)))

    settings = only(Pull())
    assert [s for s, _ in fired(settings, pulled(-2.0, -0.6))] == [4]
    assert fired(settings, pulled(-1.0, -0.6)) == []
    assert fired(settings, pulled(None, -0.6)) == []


def test_loops_fire_where_responses_collapse_and_keep_still_where_a_few_always_loop():
    """Shares of 128 responses: real counts are binomial, so the noise is."""
    draw = random.Random(1)

    def share(chance):
        return sum(draw.random() < chance for _ in range(128)) / 128

    collapse = [{"step": i, "looping_share": share(0.01 if i < 20 else 0.25)} for i in range(40)]
    steps = [step for step, rule in fired(only(Loops()), collapse) if rule == "loops"]
    assert steps
    assert 20 <= steps[0] <= 26
    for _ in range(40):
        steady = [{"step": i, "looping_share": share(0.04)} for i in range(100)]
        assert fired(only(Loops()), steady) == []
    never = [{"step": i, "looping_share": 0.0} for i in range(20)]
    assert fired(only(Loops()), never) == []


def test_answers_given_without_a_check_are_noticed_though_no_marker_falls():
    draw = random.Random(2)

    def share(chance):
        return sum(draw.random() < chance for _ in range(128)) / 128

    stops = [{"step": i, "committed_share": share(0.43 if i < 20 else 0.75)} for i in range(40)]
    ((step, rule), *_) = fired(only(Commits()), stops)
    assert rule == "commits"
    assert 20 <= step <= 26
    for _ in range(40):
        steady = [{"step": i, "committed_share": share(0.43)} for i in range(100)]
        assert fired(only(Commits()), steady) == []
    unknown = [{"step": i, "committed_share": None} for i in range(20)]
    assert fired(only(Commits()), unknown) == []


def test_absent_numbers_and_traces_are_passed_over():
    settings = only(Fall(measure=DENSITY, share=0.5))
    recorded = rows(30, **{DENSITY: lambda s: None if s % 2 else (100.0 if s < 10 else 10.0)})
    assert [step for step, _ in fired(settings, recorded)] == [18, 24]  # rests by step, not by row
    off = [{**row, "on_policy": False} for row in recorded]
    assert fired(settings, off) == []
    assert fired(None, recorded) == []


def test_actions_stop_lower_and_each_rule_may_have_its_own():
    gone = rows(25, **{DENSITY: lambda step: 100.0 if step < 10 else 20.0})
    watcher = Watcher(only(Fall(measure=DENSITY, share=0.5), action="lower"))
    factors = []
    for row in gone:
        watcher.observe(row)
        factors.append(watcher.factor)
    alarms = [a.step for a in watcher.alarms]
    assert [factors[s] for s in alarms] == [0.5 ** (i + 1) for i in range(len(alarms))]
    assert len(alarms) >= 2
    assert watcher.stop is None
    mixed = Watcher(
        Monitor(action="lower", rules=(Fall(measure=DENSITY, share=0.5, action="stop"),))
    )
    for row in gone:
        mixed.observe(row)
    assert mixed.stop is mixed.alarms[0]
    assert mixed.factor == 1.0


def test_a_watcher_that_replays_is_where_it_was():
    gone = rows(25, **{DENSITY: lambda step: 100.0 if step < 10 else 20.0})
    settings = Monitor(action="lower")
    whole, again = Watcher(settings), Watcher(settings)
    for row in gone:
        whole.observe(row)
    for row in gone[:17]:
        again.observe(dict(row))
    for row in gone[17:]:
        again.observe(row)
    assert again.alarms == whole.alarms
    assert again.factor == whole.factor


def test_lowering_a_convex_blend_gives_the_rest_to_the_verifier():
    lowered = with_less_teacher(method("sdpo"), 0.5)
    assert lowered.blend == Convex(distillation=0.5)
    assert lowered.blend.gradient_share == 0.5
    assert with_less_teacher(method("sdpo"), 1.0) == method("sdpo")


def test_every_method_is_lowered_or_refused():
    def weight(chosen):
        record = getattr(chosen.blend, "shape", chosen.blend)
        name = next(n for n in ("distillation", "strength", "beta") if hasattr(record, n))
        return getattr(record, name)

    refused = {"grpo", "dapo", "dr-grpo", "srpo", "credit", "reopold", "sft-unguided", "sft-guided"}
    for name, chosen in METHODS.items():
        if name in refused:
            with pytest.raises(EpistillError, match="no weight of a teacher"):
                with_less_teacher(chosen, 0.5)
        else:
            assert weight(with_less_teacher(chosen, 0.5)) == pytest.approx(weight(chosen) / 2), name


def test_a_run_that_cannot_lower_is_refused_before_it_starts():
    settings = {"model": "lab", "task": {"type": "star_search"}, "monitor": {"action": "lower"}}
    with pytest.raises(ValidationError, match="no weight of a teacher"):
        RunConfig.model_validate({**settings, "method": method("grpo").model_dump()})
    # Lowered, OPSD (its context is the dataset's solution) compares responses to one problem.
    with pytest.raises(ValidationError, match="at least 2"):
        RunConfig.model_validate(
            {**settings, "method": method("opsd").model_dump(), "samples_per_problem": 1}
        )
    RunConfig.model_validate({**settings, "method": method("sdpo").model_dump()})


def test_unknown_measures_are_refused():
    with pytest.raises(ValidationError):
        Monitor.model_validate({"rules": [{"type": "fall", "measure": "densty", "share": 0.5}]})


@pytest.mark.parametrize("evaluations", [0, 1, 3])
def test_a_rule_rests_as_long_whatever_is_evaluated_between(evaluations):
    """Each rule rests for rows of its own kind: steps, or evaluations of its set."""
    watched = HeldOut(set="six arms", by=0.1, patience=1)
    settings = Monitor(rules=(Commits(), watched), baseline_steps=2, window_steps=4)
    recorded = []
    for step in range(14):
        recorded.append({"step": step, "committed_share": 0.1 if step < 2 else 0.9})
        recorded += [{"step": step, "six arms/score": 0.0 if step else 1.0}] * evaluations
    raised = fired(settings, recorded)
    assert [step for step, rule in raised if rule == "commits"] == [5, 9, 13]
    alone = fired(only(watched, window_steps=4), [row for row in recorded if len(row) == 2])
    assert [one for one in raised if one[1] != "commits"] == alone
    steps = [step for step, rule in raised if rule != "commits"]
    assert steps == {0: [], 1: [1, 5, 9, 13], 3: [1, 2, 3, 5, 6, 7, 9, 10, 11, 13]}[evaluations]


def test_held_out_behaviour_must_stay_below_its_best_for_a_while():
    settings = only(HeldOut(set="six arms", by=0.1, patience=2))
    scores = [0.5, 0.7, 0.55, 0.65, 0.55, 0.5, 0.7]
    recorded = [{"step": step, "six arms/score": score} for step, score in enumerate(scores)]
    assert fired(settings, recorded) == [(5, "held_out:six arms:score")]
    between = {"reward": 1.0, DENSITY: 3.0}  # rows of training steps say nothing about the set
    mixed = [one for row in recorded for one in (row, between | {"step": row["step"]})]
    assert fired(settings, mixed) == [(5, "held_out:six arms:score")]


def test_of_answers_given_unverified_more_is_worse():
    settings = only(HeldOut(set="six arms", measure="committed_share", by=0.1, patience=2))
    shares = [0.5, 0.3, None, 0.45, 0.35, 0.45, 0.5, 0.3]  # None: no response of which it is known
    recorded = [{"step": i, "six arms/committed_share": share} for i, share in enumerate(shares)]
    assert fired(settings, recorded) == [(6, "held_out:six arms:committed_share")]
    watcher = Watcher(settings)
    (alarm,) = [alarm for row in recorded for alarm in watcher.observe(row)]
    assert (alarm.baseline, alarm.value, alarm.threshold) == (0.3, 0.5, pytest.approx(0.4))
    assert "above its best (0.3)" in alarm.message
    falls = [{"step": i, "six arms/committed_share": 0.9 - 0.1 * i} for i in range(8)]
    assert fired(settings, falls) == []


def test_a_rule_on_a_set_that_nobody_evaluates_is_refused():
    settings = {
        "model": "lab",
        "task": {"type": "star_search"},
        "method": METHODS["grpo"],
        "evaluations": [{"name": "six arms", "task": {"type": "star_search"}}],
        "monitor": {"rules": [{"type": "held_out", "set": "six arm"}]},
    }
    with pytest.raises(ValidationError, match=r"watches 'six arm'.*did you mean 'six arms'"):
        RunConfig.model_validate(settings | {"eval_every": 5})
    settings["monitor"]["rules"][0]["set"] = "six arms"
    with pytest.raises(ValidationError, match="expected eval_every"):
        RunConfig.model_validate(settings)
    RunConfig.model_validate(settings | {"eval_every": 5})
