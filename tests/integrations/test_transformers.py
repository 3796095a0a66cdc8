"""The callback on real trainers: TRL 1.16's GRPO and SDPO, and transformers' own, on the lab model."""

from __future__ import annotations

import functools
import json
import shutil

import pytest
import torch
from transformers import TrainerControl, TrainerState, TrainingArguments

from epistill.alarm_rules import Fall, HeldOut
from epistill.config import SamplingConfig
from epistill.errors import EpistillError
from epistill.integrations.transformers import EpistemicMonitor
from epistill.metrics.epistemic import total_markers
from epistill.metrics.loops import is_looping
from epistill.metrics.verification import checked_response, verification_means
from epistill.monitor import Monitor
from epistill.rollouts.load_model import load_model
from epistill.rollouts.sampler import sample
from epistill.tasks.answers import extract_answer
from epistill.thinking import split_thinking
from tests.helpers.damage import EVERY_FILE, LINES, STEP, one_line
from tests.helpers.known_answers import sampler_of
from tests.helpers.trl_steps import dataset, solved, trl_settings

# Fires as soon as it can and at any fall, so that what an alarm does shows within a few steps.
EASY = {"rules": (Fall(measure="length_tokens", share=1e-9),), "baseline_steps": 2, "window_steps": 2, "standard_errors": 0.0}  # fmt: skip


def grpo(folder, monitor, reward, **changes):
    from trl import GRPOConfig, GRPOTrainer

    model = load_model("lab")
    return GRPOTrainer(
        model=model.network,
        processing_class=model.tokenizer,
        reward_funcs=reward,
        args=GRPOConfig(**trl_settings(folder, **changes)),
        train_dataset=dataset(),
        callbacks=[monitor],
    )


def shorter(hooked):
    """The monitor is told of responses that get shorter at every step, whatever is learned."""

    @functools.wraps(hooked)
    def reward(*args, completion_ids, trainer_state, **rest):
        length = 30 - trainer_state.global_step
        known = [(list(ids) * length)[:length] for ids in completion_ids]
        return hooked(*args, completion_ids=known, trainer_state=trainer_state, **rest)

    return reward


def rows_of(folder):
    path = folder / "monitor" / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_rule_that_could_never_fire_is_refused():
    with pytest.raises(EpistillError, match="held_out watches evaluations of 'six arms'") as said:
        EpistemicMonitor(Monitor(rules=(HeldOut(set="six arms"),)))
    assert "\n" not in str(said.value)


def test_a_grpo_run_of_trl(tmp_path):
    seen = []

    def recording(completions, completion_ids, answer, **rest):
        rewards = solved(completions, answer)
        seen.append(([c[0]["content"] for c in completions], completion_ids, rewards))
        return rewards

    monitor = EpistemicMonitor()
    trainer = grpo(tmp_path, monitor, monitor.reward_hook(recording))
    trainer.train()
    rows, logs = rows_of(tmp_path), [r for r in trainer.state.log_history if "entropy" in r]
    assert [row["step"] for row in rows] == [1, 2, 3]
    for row, (texts, ids, rewards) in zip(rows, seen, strict=True):
        tokens = sum(map(len, ids))
        markers = sum(map(total_markers, texts))
        assert markers > 0
        assert row["density_per_1k_tokens"] == pytest.approx(1000 * markers / tokens)
        assert row["length_tokens"] == tokens / 16
        assert row["looping_share"] == sum(map(is_looping, texts)) / 16
        checked = [
            checked_response(text, part, extract_answer(part.answer))
            for text in texts
            for part in [split_thinking(text, opened_in_prompt=True)]  # as the lab's template does
        ]
        assert {
            name: row[name] for name in ("verified_share", "committed_share", "candidates")
        } == (verification_means(checked))
        assert row["committed_share"] is not None
        assert row["reward"] == pytest.approx(sum(rewards) / 16)
        groups = [any(rewards[i : i + 4]) for i in range(0, 16, 4)]
        assert row["pass_at_k"] == sum(groups) / 4
    # TRL logs a step's entropy behind the step: a row has that of the step before.
    assert rows[0]["entropy_nats_per_token"] is None
    assert [row["entropy_nats_per_token"] for row in rows[1:]] == [r["entropy"] for r in logs[:2]]
    shown = [r["epistemic/density_per_1k_tokens"] for r in logs]
    assert shown == pytest.approx([row["density_per_1k_tokens"] for row in rows])
    assert "rewards/recording/mean" in logs[0]  # the hook keeps the function's name
    assert not (tmp_path / "monitor" / "alarms.jsonl").exists()


def test_an_alarm_stops_trl_and_a_resumed_run_has_its_rows(tmp_path):
    monitor = EpistemicMonitor(Monitor(action="stop", **EASY))
    trainer = grpo(tmp_path, monitor, shorter(monitor.reward_hook(solved)), max_steps=30, save_strategy="steps", save_steps=1)  # fmt: skip
    trainer.train()
    stopped = trainer.state.global_step
    assert 4 <= stopped < 30
    assert [a.step for a in monitor.alarms] == [stopped]
    recorded = json.loads((tmp_path / "monitor" / "alarms.jsonl").read_text())
    assert recorded["rule"] == "fall:length_tokens"
    before = rows_of(tmp_path)
    again = EpistemicMonitor(Monitor(**EASY))
    trainer = grpo(tmp_path, again, shorter(again.reward_hook(solved)), max_steps=stopped + 1)
    trainer.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{stopped - 1}"))
    after = rows_of(tmp_path)
    assert [row["step"] for row in after] == list(range(1, stopped + 2))
    assert after[: stopped - 1] == before[: stopped - 1]
    assert stopped in [a.step for a in again.alarms]  # baseline and window span the two runs


def watched(folder, steps, begin=0):
    """As a trainer calls the callback, a checkpoint after every step; alarms by step and value."""
    monitor = EpistemicMonitor(Monitor(**EASY))
    args, control = TrainingArguments(str(folder), report_to=[]), TrainerControl()
    hook = monitor.reward_hook(lambda **_: [0.0, 1.0])

    def state(step):
        return TrainerState(global_step=step, is_world_process_zero=True)

    monitor.on_train_begin(args, state(begin), control)
    for step in range(begin + 1, steps + 1):
        hook(completions=["so wait", "hmm"], completion_ids=[[1] * (30 - step)] * 2)
        monitor.on_step_end(args, state(step), control)
        monitor.on_save(args, state(step), control)
    return [(alarm.step, alarm.value) for alarm in monitor.alarms]


@pytest.mark.parametrize("name", ["metrics.jsonl", "alarms.jsonl"])
@pytest.mark.parametrize("told", sorted((EVERY_FILE | LINES | STEP).keys()))
def test_a_resumed_trainer_has_all_its_rows_or_names_the_file(told, name, tmp_path):
    expected = watched(tmp_path / "other", 10)
    assert len(expected) > 3
    watched(tmp_path / "run", 8)
    assert watched(tmp_path / "run", 10, begin=6) == expected  # rows after the checkpoint go
    way = (EVERY_FILE | LINES | STEP)[told]
    way(tmp_path / "run" / "monitor" / name, tmp_path / "other" / "monitor" / name)
    try:
        assert watched(tmp_path / "run", 10, begin=8) == expected
    except EpistillError as error:
        one_line(error, name)


def test_rows_that_were_removed_with_their_folder_begin_again(tmp_path):
    watched(tmp_path, 8)
    shutil.rmtree(tmp_path / "monitor")
    assert watched(tmp_path, 12, begin=8)[0][0] == 12
    assert [row["step"] for row in rows_of(tmp_path)] == [9, 10, 11, 12]


def test_an_alarm_lowers_the_distillation_weight_of_trls_sdpo(tmp_path):
    from trl.experimental.sdpo import SDPOConfig, SDPOTrainer

    monitor = EpistemicMonitor(Monitor(action="lower", **EASY))
    model = load_model("lab")
    weights = []

    def reward(completions, answer, **_):
        weights.append(trainer.args.distillation_weight)
        return solved(completions, answer)

    trainer = SDPOTrainer(
        model=model.network,
        processing_class=model.tokenizer,
        reward_funcs=shorter(monitor.reward_hook(reward)),
        args=SDPOConfig(distillation_weight=0.8, **trl_settings(tmp_path, max_steps=8)),
        train_dataset=dataset(),
        callbacks=[monitor],
    )
    trainer.train()
    first = monitor.alarms[0].step
    assert first < 8
    assert weights[first - 1] == 0.8
    assert weights[first] == pytest.approx(0.4)


def test_lowering_is_refused_where_the_trainer_has_no_such_weight(tmp_path):
    monitor = EpistemicMonitor(Monitor(action="lower"))
    with pytest.raises(EpistillError, match="GRPOConfig has no distillation_weight"):
        grpo(tmp_path, monitor, monitor.reward_hook(solved)).train()


@pytest.mark.parametrize("given", ["a reward model", torch.nn.Linear(1, 1)])
def test_only_functions_are_hooked(given):
    with pytest.raises(EpistillError, match="expected a reward function"):
        EpistemicMonitor().reward_hook(given)


def test_an_async_reward_is_refused():
    async def reward(**_):
        return []

    with pytest.raises(EpistillError, match="async"):
        EpistemicMonitor().reward_hook(reward)


def test_a_plain_trainer_is_watched_through_samples(tmp_path, monkeypatch):
    """Its own samples first; when they lose their markers (whatever is learned), the alarm says so."""
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    answers_at_once = sampler_of(lambda *_: ("so 16 </think> answer 16",) * 2)

    def drawn(*args, **how):
        return (sample if trainer.state.global_step < 4 else answers_at_once)(*args, **how)

    monkeypatch.setattr("epistill.integrations.transformers.sample", drawn)

    model = load_model("lab")
    data = dataset()
    rows = []
    for one in data:
        prompt = model.tokenizer.apply_chat_template(one["prompt"], add_generation_prompt=True, tokenize=False)  # fmt: skip
        prompt_ids = model.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        answer = model.tokenizer(f"</think> answer {one['answer']}", add_special_tokens=False)["input_ids"]  # fmt: skip
        answer = [*answer, model.tokenizer.eos_token_id]
        rows.append({"input_ids": prompt_ids + answer, "labels": [-100] * len(prompt_ids) + answer})
    monitor = EpistemicMonitor(
        Monitor(action="stop", baseline_steps=2, window_steps=2),
        prompts=data["prompt"],
        every=2,
        sampling=SamplingConfig(max_new_tokens=24),
    )
    trainer = Trainer(
        model=model.network,
        args=TrainingArguments(
            output_dir=str(tmp_path), use_cpu=True, report_to="none", save_strategy="no",
            per_device_train_batch_size=8, learning_rate=1e-12, max_steps=12, disable_tqdm=True,
        ),
        train_dataset=rows,
        data_collator=DataCollatorForSeq2Seq(model.tokenizer),
        processing_class=model.tokenizer,
        callbacks=[monitor],
    )  # fmt: skip
    trainer.train()
    recorded = rows_of(tmp_path)
    assert [row["step"] for row in recorded] == list(range(0, trainer.state.global_step + 1, 2))
    assert recorded[0]["entropy_nats_per_token"] > 0
    assert recorded[0]["density_per_1k_tokens"] > 50
    assert recorded[-1]["density_per_1k_tokens"] == 0
    assert trainer.state.global_step < 12
    stop = next(a for a in monitor.alarms if a.action == "stop")
    assert stop.step == trainer.state.global_step
    assert model.network.training  # as the trainer left it
