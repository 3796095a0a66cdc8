"""The monitor on real short runs: it fires where markers collapse, is silent where they do not."""

from __future__ import annotations

import pytest

from epistill.alarm_rules import Fall, HeldOut
from epistill.config import RunConfig
from epistill.errors import EpistillError
from epistill.methods import method
from epistill.monitor import Monitor
from epistill.rollouts.offsets import token_ends, tokens_in_spans
from epistill.store import RunStore
from epistill.studies import run_arm
from epistill.studies.run_arm import run
from tests.helpers.known_answers import know_star_answers, know_star_traces


def settings(name, seed, **changes):
    """The lab study's own settings with half of its problems per step, and 25 steps."""
    return RunConfig.model_validate(
        {
            "model": "lab",
            "task": {"type": "star_search", "arms": 5, "depth": 3},
            "method": method(name).model_dump(),
            "sampling": {"max_new_tokens": 96},
            "steps": 25,
            "problems_per_step": 8,
            "learning_rate": 1e-3,
            "warmup_steps": 5,
            "microbatch_tokens": 4096,
            "checkpoint_every": 100,
            "seed": seed,
            **changes,
        }
    )


FEW = {"problems_per_step": 4, "samples_per_problem": 4}


def judged(name, seed, folder):
    store = run(settings(name, seed), folder, save_model=False)
    densities = [row["density_per_1k_tokens"] for row in store.metrics()]
    return (
        {alarm["rule"] for alarm in store.alarms()},
        sum(densities[:5]) / 5,
        sum(densities[-5:]) / 5,
    )


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_sdpo_on_the_lab_loses_its_markers_and_grpo_does_not(seed, tmp_path):
    """What is learned here is what docs/monitor.md says of it."""
    rules, before, after = judged("sdpo", seed, tmp_path / "sdpo")
    assert after < before / 2
    assert {"fall:density_per_1k_tokens", "pull"} <= rules
    rules, before, after = judged("grpo", seed, tmp_path / "grpo")
    assert after > before / 2
    assert rules == set()


@pytest.mark.parametrize(
    ("name", "until", "fires"),
    [("sdpo", 5, {"fall:density_per_1k_tokens", "pull"}), ("grpo", 10, set())],
)
def test_it_fires_on_a_run_that_collapses_and_is_silent_on_one_that_does_not(
    name, until, fires, monkeypatch, tmp_path
):
    """The responses are known, and the weights stay where they are: so is what the teacher says."""
    know_star_traces(monkeypatch, until)
    still = {"steps": 10, "learning_rate": 1e-12, **FEW}
    store = run(settings(name, 0, **still), tmp_path, save_model=False)
    densities = [row["density_per_1k_tokens"] for row in store.metrics()]
    assert min(densities[:until]) > 50
    assert densities[until:] == [0.0] * (10 - until)
    rules = {alarm["rule"] for alarm in store.alarms()}
    assert fires <= rules if fires else rules == set()


# A rule that fires early and often, so that what an alarm does is seen within a few small steps.
EASY = Fall(measure="length_tokens", share=1e-6)


@pytest.fixture
def shorter(monkeypatch):
    """Responses that become shorter at every step, whatever is learned."""
    know_star_answers(monkeypatch)


def small(action, **changes):
    monitor = Monitor(
        action=action, rules=(EASY,), baseline_steps=2, window_steps=2, standard_errors=0.0
    )
    return settings(
        "sdpo", 3, steps=12, checkpoint_every=3, monitor=monitor.model_dump(), **FEW, **changes
    )


@pytest.fixture(scope="module")
def lowered(tmp_path_factory):
    """A whole run of such responses whose alarms lower the weight of the teacher."""
    with pytest.MonkeyPatch.context() as patch:
        know_star_answers(patch)
        return run(small("lower"), tmp_path_factory.mktemp("lowered"), save_model=False)


@pytest.mark.usefixtures("shorter")
def test_an_alarm_stops_the_run_cleanly(tmp_path):
    store = run(small("stop"), tmp_path, save_model=False)
    alarms = store.alarms()
    assert [alarm["action"] for alarm in alarms] == ["stop"]
    last = store.metrics()[-1]
    assert last["step"] == alarms[0]["step"] < 11
    assert last["alarms"] == ["fall:length_tokens"]
    assert store.result["stopped_by"] == alarms[0]
    assert store.result["steps"] == alarms[0]["step"] + 1


@pytest.mark.usefixtures("shorter")
def test_an_alarm_lowers_the_weight_of_the_teacher(lowered, tmp_path):
    plain = run(small("log"), tmp_path, save_model=False)
    first = lowered.alarms()[0]["step"]
    ours, theirs = lowered.metrics(), plain.metrics()
    assert [r["loss"] for r in ours[: first + 1]] == [r["loss"] for r in theirs[: first + 1]]
    assert ours[first]["teacher_weight_factor"] == 1.0
    assert ours[first]["policy_gradient_loss"] is None
    after = ours[first + 1]
    assert after["teacher_weight_factor"] == 0.5
    assert after["policy_gradient_loss"] is not None  # a half is the verifier's now
    assert after["loss"] == pytest.approx(
        0.5 * after["distillation_nats_per_token"] + 0.5 * after["policy_gradient_loss"], rel=1e-4
    )
    assert after["loss"] != theirs[first + 1]["loss"]


@pytest.mark.usefixtures("shorter")
def test_a_run_that_broke_off_comes_back_with_the_same_alarms(lowered, tmp_path):
    config, broken = small("lower"), tmp_path
    first = lowered.alarms()[0]["step"]

    def break_off(done):
        if done == first + 3:  # behind an alarm, and between two checkpoints or on one
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(config, broken, save_model=False, on_step=break_off)
    assert RunStore(broken).result is None
    store = run(config, broken, save_model=False)
    for name in ("metrics.jsonl", "alarms.jsonl"):
        assert (broken / name).read_bytes() == (lowered.folder / name).read_bytes()
    assert store.metrics()[-1]["teacher_weight_factor"] < 1


@pytest.mark.usefixtures("shorter")
def test_a_rule_on_held_out_behaviour_stops_the_run_early_and_again_when_it_is_resumed(
    tmp_path, monkeypatch
):
    at = {}
    really = run_arm.evaluate_model

    def falls_from_step_4_on(*args, **settings):
        return [row | {"correct": at["done"] < 4} for row in really(*args, **settings)]

    monkeypatch.setattr(run_arm, "evaluate_model", falls_from_step_4_on)
    watched = {"name": "held out", "task": {"type": "star_search", "split": "test"}, "problems": 1}
    rule = HeldOut(set="held out", by=0.2, patience=2, action="stop")
    config = small("log", eval_every=2, evaluations=[watched | {"samples": 1}])
    monitor = Monitor(rules=(*config.monitor.rules, rule))
    config = config.model_copy(update={"monitor": monitor})
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    store = run(config, whole, save_model=False, on_step=lambda done: at.update(done=done))
    stopped = store.result["stopped_by"]
    assert (stopped["rule"], stopped["step"]) == ("held_out:held out:score", 5)
    assert (store.result["steps"], len(store.metrics())) == (6, 6)
    assert {"held out/score", "held out/verified_share", "held out/committed_share"} <= set(
        store.curve()[0]
    )
    assert {"verified_share", "committed_share", "candidates"} <= set(store.metrics()[0])

    def break_off(done):
        at.update(done=done)
        if done == 5:  # the evaluation after step 4 is made again from the checkpoint at 3
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(config, broken, save_model=False, on_step=break_off)
    run(config, broken, save_model=False, on_step=lambda done: at.update(done=done))
    for name in ("metrics.jsonl", "alarms.jsonl", "evaluations/curve.jsonl"):
        assert (broken / name).read_bytes() == (whole / name).read_bytes()


# ---- which tokens are markers


@pytest.fixture(scope="module")
def byte_level():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=290, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    made.train_from_iterator(["wait, wait maybe I should check it"] * 20, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made)


@pytest.mark.parametrize(
    "text", ["Wait, maybe it is unlikely. wait", "Wait 😀é, maybe 等 wait", ""]
)
def test_marker_tokens_of_a_byte_level_tokenizer(byte_level, text):
    from epistill.metrics.epistemic import marker_spans

    ids = byte_level(text)["input_ids"]
    decoded, ends = token_ends(byte_level, ids)
    assert decoded == text
    assert (ends[-1] if ends else 0) == len(text)
    marked = tokens_in_spans(byte_level, ids, marker_spans)
    starts = [0, *ends[:-1]]
    for start, stop, inside in zip(starts, ends, marked, strict=False):
        overlaps = any(start < b and a < stop for a, b in marker_spans(text))
        if start != stop:
            assert inside == overlaps, text[start:stop]


def test_marker_tokens_of_the_lab(lab_model):
    from epistill.metrics.epistemic import marker_spans

    text = "maybe 16 13 2 dust hmm try 3 dust wait maybe 18 gold check </think> answer 18"
    ids = lab_model.tokenizer(text, add_special_tokens=False)["input_ids"]
    marked = tokens_in_spans(lab_model.tokenizer, ids, marker_spans)
    words = text.split()
    assert [w for w, m in zip(words, marked, strict=True) if m] == [
        "maybe",
        "hmm",
        "wait",
        "maybe",
        "check",
    ]


def test_the_pull_is_split_at_markers(lab_model):
    """Against a sum written out from the teacher's and the student's own scores."""
    import torch

    from epistill.rollouts.scoring import score_completions
    from epistill.tasks.coverage import make_curriculum
    from epistill.tasks.grading import Grader
    from epistill.teacher.weights import make_teacher
    from epistill.training.batches import on_policy_batch
    from epistill.training.step import accumulate_gradients

    config = settings("sdpo", 0)
    teacher = make_teacher(config.method.teacher, lab_model)
    with Grader() as grader:
        batch = on_policy_batch(
            lab_model, teacher, config, make_curriculum(config.task, None, 0), grader, 0
        )
    result = accumulate_gradients(
        lab_model, teacher, batch.rows, config.method, temperature=1.0, microbatch_tokens=4096
    )
    lab_model.network.zero_grad(set_to_none=True)
    rows = [row for row in batch.rows if row.teacher_prompt_ids is not None]
    completions = [row.completion_ids for row in rows]
    theirs = score_completions(lab_model, [row.teacher_prompt_ids for row in rows], completions)
    ours = score_completions(lab_model, [row.prompt_ids for row in rows], completions)
    u = torch.cat([t.log_probs - s.log_probs for t, s in zip(theirs, ours, strict=True)])
    marked = torch.tensor([m for row in rows for m in row.markers])
    assert result.teacher_pull_on_markers_nats_per_token == pytest.approx(
        float(u[marked].mean()), abs=1e-4
    )
    assert result.teacher_pull_elsewhere_nats_per_token == pytest.approx(
        float(u[~marked].mean()), abs=1e-4
    )


def test_lowering_is_refused_where_there_is_no_teacher():
    with pytest.raises((EpistillError, ValueError), match="no weight of a teacher"):
        settings("grpo", 0, monitor={"action": "lower"})
