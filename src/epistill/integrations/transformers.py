"""The live monitor as a callback, for TRL's on-policy trainers and any transformers trainer.

Enters: completions and rewards through a wrapped reward function (TRL), or samples that the
callback draws itself every few steps (any trainer). Leaves: `monitor/metrics.jsonl` and
`monitor/alarms.jsonl` in the trainer's output folder, numbers in the trainer's own logs, and what
an alarm asks for.

    monitor = EpistemicMonitor(Monitor(action="stop"))
    GRPOTrainer(reward_funcs=monitor.reward_hook(reward), callbacks=[monitor], ...)
    SFTTrainer(callbacks=[EpistemicMonitor(prompts=chats, every=50)], ...)

A reward function is what TRL calls with every completion it samples, with token ids, in documented
arguments; the tables behind `log_completions` are private and are cut to a maximum length.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from epistill.alarm_rules import AVG_AT_K, DENSITY, ENTROPY, LOOPING, PASS_AT_K, HeldOut
from epistill.config import SamplingConfig
from epistill.errors import EpistillError
from epistill.integrations.rewards import completion_text
from epistill.integrity import read_sealed, sealed
from epistill.metrics.epistemic import density, total_markers
from epistill.metrics.loops import is_looping
from epistill.metrics.verification import Checked, checked_response, verification_means
from epistill.monitor import Alarm, Monitor, Watcher
from epistill.records import Message
from epistill.rollouts.engine import PromptRequest
from epistill.rollouts.model import LanguageModel
from epistill.rollouts.prompts import render_prompt
from epistill.rollouts.sampler import sample
from epistill.seeds import derive_seed
from epistill.store import RunStore, write_json
from epistill.tasks.answers import extract_answer
from epistill.thinking import SplitResponse, split_thinking

Reward = Callable[..., Sequence[float | None]]
Chat = Sequence[Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class _Response:
    """What one completion contributes; `score` None where it was not rewarded."""

    tokens: int
    markers: int
    looping: bool
    checked: Checked
    score: float | None

    @classmethod
    def of(cls, text: str, part: SplitResponse, tokens: int, score: float | None) -> _Response:
        """Of a completion, split; its final answer is read as a grader reads it."""
        checked = checked_response(text, part, extract_answer(part.answer))
        return cls(tokens, total_markers(text), is_looping(text), checked, score)


class EpistemicMonitor(TrainerCallback):
    """Watches markers, entropy, loops, checked answers, avg@k and pass@k of another trainer.

    With TRL, give the trainer `reward_hook(reward)` in place of the verifier's reward function.
    Entropy is then the one that TRL logs (of the last log before the step). A trainer that samples
    nothing is watched through `prompts`. The teacher's pull on markers is measured by epistill's
    own loop only.

    Args:
        settings: Rules and action; their steps are rows: one per step with new completions, or one
            per sample. "lower" multiplies `args.distillation_weight` (TRL's SDPO) and is refused
            where there is none.
        prompts: Chats to sample responses to, every `every` steps and once at the start.
        every: Steps between samples.
        samples: Responses per prompt.
        sampling: How they are drawn; the draws are the same every time.
        success_above: A reward above it counts as solved, for pass@k.

    Raises:
        EpistillError: A rule on a set of evaluations: the callback sees none.
    """

    def __init__(
        self,
        settings: Monitor | None = None,
        *,
        prompts: Sequence[Chat] = (),
        every: int = 50,
        samples: int = 4,
        sampling: SamplingConfig | None = None,
        success_above: float = 0.5,
    ) -> None:
        self._settings = settings or Monitor()
        if blind := [rule.set for rule in self._settings.rules if isinstance(rule, HeldOut)]:
            raise EpistillError(
                f"the rule held_out watches evaluations of {blind[0]!r}, and this callback sees "
                "none; expected rules on the steps, or epistill's own training"
            )
        self._prompts = [tuple(Message(m["role"], m["content"]) for m in chat) for chat in prompts]
        self._every, self._samples = every, samples
        self._sampling = sampling or SamplingConfig()
        self._success_above = success_above
        self._watcher = Watcher(self._settings)
        self._store: RunStore | None = None
        self._tokenizer: Any = None
        self._calls: list[list[_Response]] = []
        self._entropy: float | None = None

    @property
    def alarms(self) -> list[Alarm]:
        """All alarms so far."""
        return self._watcher.alarms

    # ---- what is observed

    def reward_hook(self, reward: Any) -> Reward:
        """The same reward function, seen by the monitor.

        Args:
            reward: A function as TRL takes it (not a reward model, not a coroutine).

        Raises:
            EpistillError: Something else.
        """
        if not callable(reward) or isinstance(reward, torch.nn.Module):
            raise EpistillError(
                f"reward_hook was given {type(reward).__name__}; expected a reward function; "
                "score with a reward model beside it"
            )
        if inspect.iscoroutinefunction(reward):
            raise EpistillError(
                "reward_hook was given an async function; expected a plain one, for example the "
                "verifier's"
            )

        @functools.wraps(reward)
        def hooked(*args: Any, **kwargs: Any) -> Sequence[float | None]:
            rewards: Any = reward(*args, **kwargs)
            self._observe(kwargs, rewards)
            return rewards

        return hooked

    def _observe(self, call: Mapping[str, Any], rewards: Sequence[float | None]) -> None:
        """One call of the reward function: whole groups, on all processes together."""
        all_ids = call["completion_ids"]
        texts = list(map(self._text, all_ids, call["completions"]))
        # TRL does not say what its template opened; one that closes what it did not open does.
        parts = [split_thinking(text) for text in texts]
        if any(part.form == "opened" for part in parts):
            parts = [split_thinking(text, opened_in_prompt=True) for text in texts]
        found = [
            _Response.of(text, part, len(ids), _number(score))
            for text, part, ids, score in zip(texts, parts, all_ids, rewards, strict=True)
        ]
        self._calls.append(found)
        log: Callable[[str, float], None] | None = call.get("log_metric")
        tokens = sum(one.tokens for one in found)
        value = density(sum(one.markers for one in found), tokens)
        if log is not None and value is not None:
            log(f"epistemic/{DENSITY}", value)

    def _text(self, ids: Sequence[int], completion: Any) -> str:
        if self._tokenizer is not None:
            return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))
        return completion_text(completion)

    def _row(
        self,
        step: int,
        calls: Sequence[Sequence[_Response]],
        group_size: int,
        entropy: float | None,
    ) -> dict[str, Any]:
        """The numbers of calls of the reward function, each of whole groups."""
        everything = [one for call in calls for one in call]
        tokens = sum(one.tokens for one in everything)
        scores = [one.score for one in everything if one.score is not None]
        groups = [
            [one.score for one in call[start : start + group_size] if one.score is not None]
            for call in calls
            for start in range(0, len(call), group_size)
        ]
        solved = [max(group) > self._success_above for group in groups if group]
        return {
            "step": step,
            DENSITY: density(sum(one.markers for one in everything), tokens),
            "length_tokens": tokens / len(everything),
            LOOPING: sum(one.looping for one in everything) / len(everything),
            **verification_means([one.checked for one in everything]),
            AVG_AT_K: sum(scores) / len(scores) if scores else None,
            PASS_AT_K: sum(solved) / len(solved) if solved and group_size > 1 else None,
            ENTROPY: entropy,
        }

    def _sample_row(self, step: int, model: Any, seed: int) -> dict[str, Any]:
        """The numbers of responses drawn for the purpose."""
        network = getattr(model, "module", model)
        language_model = LanguageModel(network, self._tokenizer, "monitored")
        thinking = self._sampling.thinking
        prompts = [render_prompt(self._tokenizer, c, thinking=thinking) for c in self._prompts]
        requests = [PromptRequest(str(i), prompt.ids, i) for i, prompt in enumerate(prompts)]
        training = network.training
        network.eval()
        try:
            rollouts = sample(
                language_model,
                requests,
                samples=self._samples,
                sampling=self._sampling,
                seed=derive_seed("monitor", seed),
                entropies=True,
            )
        finally:
            network.train(training)
        drawn = [
            _Response.of(
                one.text,
                split_thinking(
                    one.text, opened_in_prompt=prompts[int(one.problem_id)].opens_thinking
                ),
                len(one.completion_ids),
                None,
            )
            for one in rollouts
        ]
        nats = sum(sum(one.entropies or ()) for one in rollouts)
        return self._row(step, [drawn], 1, nats / sum(one.tokens for one in drawn))

    # ---- what the trainer calls

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check the settings against the trainer, and replay a resumed run's rows."""
        if self._settings.may_lower and not hasattr(args, "distillation_weight"):
            raise EpistillError(
                f"{type(args).__name__} has no distillation_weight that an alarm could lower; "
                'expected action "log" or "stop" for this trainer'
            )
        if self._prompts and args.world_size > 1:
            raise EpistillError(
                f"prompts are sampled by one process, and {args.world_size} train together; use "
                "reward_hook, or evaluate checkpoints"
            )
        self._tokenizer = kwargs.get("processing_class")
        self._calls, self._entropy = [], None
        self._watcher = Watcher(self._settings)
        self._store = RunStore(Path(str(args.output_dir)) / "monitor")
        if state.is_world_process_zero:
            mark = _mark_of(args, state)
            if mark.exists() and self._store.folder.exists():
                self._store.require(read_sealed(mark)["logs"])
            self._store.rewind(state.global_step + 1 if state.global_step else 0)
        if state.global_step:
            for row in self._store.metrics():
                if row["step"] <= state.global_step:
                    self._watcher.observe(row)
            self._lower(args, self._watcher.factor)
        if self._prompts and state.global_step == 0:
            self._take(self._sample_row(0, kwargs["model"], args.seed), args, state, control)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Remember the entropy that TRL logs."""
        if logs is not None and logs.get("entropy") is not None:
            self._entropy = float(logs["entropy"])

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Completions of an evaluation are not the training's."""
        self._calls = []

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Look at the step."""
        if self._calls:
            # In the order of the processes, as TRL itself gathers rewards: groups stay whole.
            calls = [gather_object(call) for call in self._calls]
            group_size = int(getattr(args, "num_generations", None) or 1)
            row = self._row(state.global_step, calls, group_size, self._entropy)
            self._calls = []
            self._take(row, args, state, control)
        elif self._prompts and state.global_step % self._every == 0:
            row = self._sample_row(state.global_step, kwargs["model"], args.seed)
            self._take(row, args, state, control)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Keep in the checkpoint what the rows were: a resumed run has all of them, or says so."""
        if state.is_world_process_zero and self._store is not None:
            write_json(_mark_of(args, state), sealed({"logs": self._store.marks()}))

    def _take(
        self,
        row: dict[str, Any],
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
    ) -> None:
        """Write a row down, and do what its alarms ask."""
        before = self._watcher.factor
        alarms = self._watcher.observe(row)
        if state.is_world_process_zero and self._store is not None:
            for alarm in alarms:
                self._store.append("alarms", asdict(alarm))
            self._store.append("metrics", {**row, "alarms": [alarm.rule for alarm in alarms]})
        self._lower(args, self._watcher.factor / before)
        if any(alarm.action == "stop" for alarm in alarms):
            control.should_training_stop = True

    def _lower(self, args: Any, factor: float) -> None:
        if factor != 1.0:
            args.distillation_weight *= factor


def _mark_of(args: TrainingArguments, state: TrainerState) -> Path:
    """In the checkpoint of this step, with the run's other state."""
    folder = f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
    return Path(str(args.output_dir)) / folder / "epistill_monitor.json"


def _number(score: Any) -> float | None:
    return None if score is None or score != score else float(score)  # NaN: not rewarded
