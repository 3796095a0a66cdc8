"""Throughputs measured on the machine at hand, in place of a study's stated ones.

    epistill plan mine.toml --calibrate

Enters: a study with a model that can be loaded here. Leaves: the same study, whose `hardware` has
what one process measured: tokens per second of many sequences and of one alone, and the share of
the peak that a training step reaches. The step is that of the first arm that trains: rows in which
every token counts, as many as fill a micro-batch. Sampling is in process, also where the file has
servers. What the study does not state is read here: the machine's memory, the model's shape from
its own configuration, the length of prompts from the task; responses have no length but the limit.
"""

from __future__ import annotations

import functools
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
from epistill.rollouts.load_model import load_without_weights
from epistill.rollouts.prompts import render_prompt
from epistill.seeds import named_random
from epistill.settings import checked, merged
from epistill.studies.hardware import GIB, Architecture, Hardware, Lengths
from epistill.studies.plan import context_length, training_flops
from epistill.studies.run_arm import load_student
from epistill.studies.spec import Arm, StudySpec, world_of
from epistill.tasks.coverage import make_curriculum
from epistill.training.microbatch import fitting_microbatch_tokens, whole_bytes
from epistill.training.optimiser_steps import gradients_of_step
from epistill.training.train_state import make_train_state
from epistill.training_rows import TrainingRow
from epistill.world import World

MOST_TOKENS = 64  # of a response: enough that the prompt is not most of the time
REPEATS = 3  # the median counts


def calibrated(spec: StudySpec) -> StudySpec:
    """The study with measured throughputs, and all that a plan needs; it says from where.

    Raises:
        EpistillError: No arm trains, or its model or task cannot be read or reckoned with.
    """
    trained = ((arm, spec.config_of(arm, spec.seeds[0])) for arm in spec.arms)
    arm, config = next((pair for pair in trained if pair[1].steps), (None, None))
    if arm is None or config is None:
        raise EpistillError(
            f"study {spec.name!r} cannot be calibrated: none of its arms trains; expected one"
        )
    shapes = _shapes(spec)
    lengths = spec.lengths or _lengths(config, _base(spec, arm))
    spec = spec.model_copy(update={"architectures": shapes, "lengths": lengths})
    many, alone, tflops = _measured(
        config.model_copy(update={"model": _base(spec, arm)}), shapes[config.model], lengths
    )
    on_cpu, hardware = config.device == "cpu", spec.hardware
    where = describe_environment()["processor"] if on_cpu else torch.cuda.get_device_name()
    stated = {
        "gpus": spec.resources.processes,
        "memory_gib": round(whole_bytes(torch.device(config.device)) / GIB, 1),
        "peak_tflops": tflops,
    }
    if hardware is not None:
        stated = hardware.model_dump()
    found: dict[str, Any] = {
        **stated,
        "gpu": where,
        "sampling_tokens_per_second": many,
        "sequence_tokens_per_second": alone,
        "utilisation": tflops / stated["peak_tflops"],
        "measured": True,
        "source": f"measured by one process on {where}, responses of at most {MOST_TOKENS} tokens: "
        f"{many:,.4g} tokens/s, {alone:,.4g} of one sequence, {tflops:,.3g} TFLOP/s in training"
        + (", which stand for its peak, unstated" if hardware is None else ""),
    }
    if found["utilisation"] > 1:
        raise EpistillError(
            f"training reached {tflops:.3g} TFLOP/s, more than hardware.peak_tflops "
            f"({stated['peak_tflops']:g}); expected the peak of {where}"
        )
    return spec.model_copy(update={"hardware": Hardware.model_validate(found)})


def _base(spec: StudySpec, arm: Arm) -> str:
    """A model of the arm's shape that is there before the study ran: a world's is its start's."""
    settings = merged(spec.run, arm.changes)
    made = (one.start for one in spec.worlds if one.id == world_of(settings))
    return next(made, settings["model"])


def _shapes(spec: StudySpec) -> dict[str, Architecture]:
    """Of every arm's model: as the study states it, else from the model's own configuration."""
    shapes, read = dict(spec.architectures), functools.cache(_shape)
    for arm in spec.arms:
        name = spec.config_of(arm, spec.seeds[0]).model
        if name not in shapes:
            shapes[name] = read(_base(spec, arm))
    return shapes


def _shape(name: str) -> Architecture:
    network: Any = load_without_weights(name).network
    config = network.config.to_dict()
    known = {key: config[key] for key in Architecture.model_fields if key in config}
    shape = checked(Architecture, {**known, "source": "config.json"}, f"model {name!r}: ")
    counted = sum(one.numel() for one in network.parameters())
    if shape.parameters != counted:
        raise EpistillError(
            f"model {name!r} has {counted:,} parameters, a plain {shape.model_type} of its sizes "
            f"{shape.parameters:,}; expected a model without additions, or [architectures.{name!r}]"
        )
    return shape


def _lengths(config: RunConfig, model: str) -> Lengths:
    """Of the prompts of the first step, in tokens; of responses only the limit is known."""
    tokenizer = load_without_weights(model, chat_template=config.chat_template).tokenizer
    curriculum = make_curriculum(config.task, config.coverage, config.seed)
    problems, thinking = curriculum.at(0, config.problems_per_step), config.sampling.thinking
    tokens = [len(render_prompt(tokenizer, p.messages, thinking=thinking).ids) for p in problems]
    source = f"prompts: mean of {len(tokens)} problems of the task; responses: at their limit"
    return Lengths(prompt=round(statistics.mean(tokens)), source=source)


def _measured(
    config: RunConfig, shape: Architecture, lengths: Lengths
) -> tuple[float, float, float]:
    """Tokens per second of a batch and of one sequence; TFLOP/s of a training step."""
    student = load_student(config, World())
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
    flops = training_flops(config, shape, tokens, short)
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
