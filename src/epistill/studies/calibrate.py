"""Throughputs measured on the machine at hand, in place of a study's stated ones.

    epistill plan mine.toml --calibrate

Enters: a study with a model that can be loaded here. Leaves: the same study, whose `hardware` has
what one process measured: tokens per second of many sequences and of one alone, and the share of
the peak that a training step reaches. The step is that of the first arm that trains: rows in which
every token counts, as many as fill a micro-batch. Sampling is in process, also where the file has
servers.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from epistill.config import RunConfig
from epistill.describe import extra_forwards
from epistill.environment import describe_environment
from epistill.errors import EpistillError
from epistill.records import Rollout
from epistill.rollouts.engine import PromptRequest
from epistill.rollouts.in_process_engine import InProcessEngine
from epistill.seeds import named_random
from epistill.studies.hardware import Hardware, Lengths
from epistill.studies.plan import context_length, training_flops
from epistill.studies.run_arm import load_student
from epistill.studies.spec import StudySpec
from epistill.training.microbatch import fitting_microbatch_tokens
from epistill.training.optimiser_steps import gradients_of_step
from epistill.training.train_state import make_train_state
from epistill.training_rows import TrainingRow
from epistill.world import World

MOST_TOKENS = 64  # of a response: enough that the prompt is not most of the time
REPEATS = 3  # the median counts


def calibrated(spec: StudySpec) -> StudySpec:
    """The study with measured throughputs; its `hardware` says on what.

    Raises:
        EpistillError: No arm trains, or the study lacks what a plan needs.
    """
    hardware, lengths = spec.hardware, spec.lengths
    configs = (spec.config_of(arm, spec.seeds[0]) for arm in spec.arms)
    config = next((one for one in configs if one.steps), None)
    known = config is not None and config.model in spec.architectures
    if hardware is None or lengths is None or config is None or not known:
        raise EpistillError(
            f"study {spec.name!r} cannot be calibrated: expected [hardware], [lengths], an arm "
            "that trains, and [architectures] with its model"
        )
    many, alone, tflops = _measured(config, spec, lengths)
    on_cpu = config.device == "cpu"
    where = describe_environment()["processor"] if on_cpu else torch.cuda.get_device_name()
    found: dict[str, Any] = {
        "gpu": where,
        "sampling_tokens_per_second": many,
        "sequence_tokens_per_second": alone,
        "utilisation": tflops / hardware.peak_tflops,
        "measured": True,
        "source": f"measured by one process on {where}, responses of at most {MOST_TOKENS} tokens: "
        f"{many:,.4g} tokens/s, {alone:,.4g} of one sequence, {tflops:,.3g} TFLOP/s in training",
    }
    if found["utilisation"] > 1:
        raise EpistillError(
            f"training reached {tflops:.3g} TFLOP/s, more than hardware.peak_tflops "
            f"({hardware.peak_tflops:g}); expected the peak of {where}"
        )
    measured = Hardware.model_validate({**hardware.model_dump(), **found})
    return spec.model_copy(update={"hardware": measured})


def _measured(config: RunConfig, spec: StudySpec, lengths: Lengths) -> tuple[float, float, float]:
    """Tokens per second of a batch and of one sequence; TFLOP/s of a training step."""
    student = load_student(config, config.device)
    if config.microbatch_tokens == "auto":
        fitting = fitting_microbatch_tokens(config, student, World())
        config = config.model_copy(update={"microbatch_tokens": fitting})
    state = make_train_state(config, student, World())
    engine, size = InProcessEngine(student), config.samples_per_problem
    limit = min(lengths.response_within(config.sampling.max_new_tokens), MOST_TOKENS)
    ids = [i for i in range(student.vocabulary) if i not in student.eos_ids]

    def prompt(number: int, length: int) -> tuple[int, ...]:
        return tuple(named_random("calibration", 0, number).choices(ids, k=length))

    def sampled(groups: int, samples: int, limit: int) -> list[Rollout]:
        asked = [PromptRequest(f"{i}", prompt(i, lengths.prompt)) for i in range(groups)]
        drawn = config.sampling.model_copy(update={"max_new_tokens": limit})
        return engine.sample(asked, samples=samples, sampling=drawn, seed=0)

    def rate(groups: int, samples: int) -> tuple[float, list[Rollout]]:
        timed = [
            _timed(lambda: sampled(groups, samples, limit), config.device) for _ in range(REPEATS)
        ]
        found = timed[0][1]  # the same seed gives the same responses each time
        seconds = statistics.median(one for one, _ in timed)
        return sum(len(one.completion_ids) for one in found) / seconds, found

    sampled(1, 1, 1)  # what is only done once
    many, rollouts = rate(config.problems_per_step, size)
    alone, _ = rate(1, 1)
    short = lengths.model_copy(update={"response": limit})
    context = prompt(-1, context_length(config, short))
    rows = [_row(one, config, context, i) for i, one in enumerate(rollouts)]
    room = max(1, config.most_microbatch_tokens // (lengths.prompt + limit))
    rows = rows[: size * math.ceil(room / size)]

    def step() -> None:
        gradients_of_step(config, state, rows, None, 0)
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)

    state.trained.network.train()
    step()
    seconds = statistics.median(_timed(step, config.device)[0] for _ in range(REPEATS))
    trained = sum(len(row.prompt_ids) + len(row.completion_ids) for row in rows)
    scored = extra_forwards(config.method) * (trained + len(rows) * len(context))
    tokens = {"trained": trained, "scored": scored}
    flops = training_flops(config, spec.architectures[config.model], tokens, short)
    return many, alone, flops / seconds / 1e12


def _row(one: Rollout, config: RunConfig, context: tuple[int, ...], number: int) -> TrainingRow:
    """A response that every method learns from: an advantage, a context, a verdict."""
    guided = (*one.prompt_ids, *context) if context or config.method.needs_teacher else None
    return TrainingRow(
        prompt_ids=one.prompt_ids,
        completion_ids=one.completion_ids,
        old_log_probs=None if config.method.traces is not None else one.logprobs,
        advantage=1.0 if number % 2 or config.method.traces is not None else -1.0,
        teacher_prompt_ids=guided,
        correct=bool(number % 2),
        negative_prompt_ids=(guided or one.prompt_ids,) * config.method.needs.contrasting_views,
        reference_prompt_ids=context or one.prompt_ids,
        entropies=one.entropies,
        markers=(False,) * len(one.completion_ids),
    )


def _timed(action: Callable[[], Any], device: str) -> tuple[float, Any]:
    """Seconds of wall clock, with what a GPU was given done."""
    start = time.perf_counter()
    found = action()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start, found
