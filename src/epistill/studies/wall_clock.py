"""How long a run takes on so many GPUs, and what keeps it from being shorter.

Enters: a run, its shape and FLOPs, a `Hardware`, the throughputs. Leaves: hours by part. GPU hours
are work; this is the clock: the longest response is written token by token however many GPUs there
are, problems and rows are dealt whole, sharded weights are gathered for every micro-batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

from epistill.config import RunConfig, SamplingConfig
from epistill.describe import extra_forwards
from epistill.rollout_settings import VllmRollouts
from epistill.studies.hardware import DTYPE_BYTES, FLOAT32_BYTES, Architecture, Hardware, Lengths

GB = 1e9


def wall_hours(
    config: RunConfig,
    shape: Architecture,
    hardware: Hardware,
    lengths: Lengths,
    *,
    gpus: int,
    rate: float,
    update_seconds: float,
    microbatch_tokens: int,
    own_scores: bool = False,
    asked_seconds: float = 0.0,
) -> dict[str, Any]:
    """Hours of one run by part, and what bounds sampling and training.

    Args:
        config, shape, hardware, lengths: The run.
        gpus: Processes, each of which samples.
        rate: Sampled tokens per second of one GPU that has many sequences.
        update_seconds: Of all training together on one GPU.
        microbatch_tokens: Tokens per forward pass, with padding.
        own_scores: Whether the trainer scores what servers wrote, once a step.
        asked_seconds: Of all scores that the servers give, together on one GPU.

    Returns:
        sampling, training, evaluation, total (hours); sampling_bound: "throughput" or "longest
        response"; training_bound: "FLOPs" or "gathering weights"; idle_sampling_share: of the GPUs
        that get no problem while a batch is sampled.
    """

    def written(groups: int, size: int, sampling: SamplingConfig) -> tuple[float, float]:
        """Seconds for groups of responses: by throughput, and for the longest response alone."""
        own = math.ceil(groups / gpus) * size * lengths.response_within(sampling.max_new_tokens)
        alone = hardware.sequence_tokens_per_second or math.inf
        return own / rate, sampling.max_new_tokens / alone

    groups, size = config.problems_per_step, config.samples_per_problem
    if config.method.traces is not None:  # written once, before the first step
        busy, alone = written(config.method.traces.count, 1, config.sampling)
    else:
        busy, alone = (config.steps * s for s in written(groups, size, config.sampling))
    updates = config.steps * config.updates_per_batch
    rows = groups * size // config.updates_per_batch
    own = math.ceil(rows / gpus)  # of the process that has most
    computing = update_seconds * own / rows
    asked = asked_seconds * math.ceil(groups * size / gpus) / (groups * size)
    sequence = lengths.prompt + lengths.response_within(config.sampling.max_new_tokens)
    rounds = math.ceil(own * sequence / max(microbatch_tokens, sequence))
    moved = 0.0 if gpus == 1 else updates * _moved_bytes(config, shape, rounds, own_scores) / GB
    moving = moved / (hardware.gather_gb_per_second or math.inf)
    evaluating = sum(
        max(written(problems, samples, config.eval_sampling or config.sampling))
        for problems, samples in evaluation_sizes(config)
    )
    found = {
        "sampling": (max(busy, alone) + asked) / 3600 if config.steps else 0.0,
        "training": max(computing, moving) / 3600,
        "evaluation": evaluating / 3600,
    }
    return {
        **found,
        "total": sum(found.values()),
        "sampling_bound": "longest response" if alone > busy else "throughput",
        "training_bound": "gathering weights" if moving > computing else "FLOPs",
        "idle_sampling_share": max(0.0, 1 - groups / gpus),
    }


def served_forwards(config: RunConfig) -> int:
    """Teacher's passes over a response that servers make instead of the trainer."""
    rollouts = config.rollouts
    served = isinstance(rollouts, VllmRollouts) and rollouts.teacher_scores == "servers"
    return config.method.needs.teacher_passes if served else 0


def evaluation_sizes(config: RunConfig) -> Iterator[tuple[int, int]]:
    """(problems, samples) of every evaluation, those of the learning curve included."""
    # The last step has no point of its own: the whole evaluation follows it.
    points = 0 if config.eval_every is None else max(0, config.steps - 1) // config.eval_every
    for chosen in config.evaluations:
        yield chosen.problems, chosen.samples
        yield from [(chosen.curve.problems, chosen.curve.samples)] * points


def _moved_bytes(config: RunConfig, shape: Architecture, rounds: int, own_scores: bool) -> float:
    """That each GPU receives for one update: weights of every micro-batch, gradients, the copy."""
    number = DTYPE_BYTES[config.dtype]
    if config.parallel == "replicate":
        return 2 * shape.parameters * FLOAT32_BYTES
    computed = 2 if config.precision == "bf16" else number
    passes = 2 + extra_forwards(config.method)  # forward, backward, teachers
    if own_scores:  # servers write
        passes += 1 - served_forwards(config)
    reduced = FLOAT32_BYTES if config.precision == "bf16" else number
    sampler = number / config.updates_per_batch  # the whole copy that samples, once per batch
    return shape.parameters * (rounds * (passes * computed + reduced) + sampler)


def served_hours(
    apart: Callable[..., dict[str, Any]], config: RunConfig, gpus: int
) -> dict[str, Any]:
    """`wall_hours` of a run that trains on so many GPUs and has as many again for its servers.

    Args:
        apart: As of `one_step_ahead`.
        config: The run; sampling ahead, its update and the next batch take the longer of both.
        gpus: That train.
    """
    found = apart(gpus=gpus)
    if isinstance(config.rollouts, VllmRollouts) and config.rollouts.ahead and config.steps:
        beside = _overlapped(found["sampling"], found["training"], config.steps)
        found["total"] = beside + found["evaluation"]
    return found


def _overlapped(sampling: float, training: float, steps: int) -> float:
    """Of both, each batch beside the update before; the first has none, nor the last update."""
    return max(sampling, training) + min(sampling, training) / steps


def one_step_ahead(
    apart: Callable[..., dict[str, Any]],
    together: Callable[..., dict[str, Any]],
    config: RunConfig,
    gpus: int,
) -> dict[str, Any] | None:
    """What it brings to sample the next batch on servers while this one trains.

    Args:
        apart: `wall_hours` on so many GPUs, of which some are servers.
        together: The same where each samples and trains.
        config: The run.
        gpus: All of them.

    Returns:
        servers (the best number of GPUs that sample), hours_ahead, hours_in_turn (on the same
        servers or better ones, each waiting for the other), hours_in_process (all sample, then all
        train); evaluation left out. None where there is one GPU.
    """
    if gpus == 1:
        return None
    # Problems are dealt whole, so more servers are worth trying where the fullest gets fewer of
    # them. A single GPU that trains gathers nothing, which may be better than two.
    problems = config.problems_per_step
    worth = {math.ceil(problems / dealt) for dealt in range(1, problems + 1)} | {gpus - 1}
    splits = [
        (k, apart(gpus=k)["sampling"], apart(gpus=gpus - k)["training"])
        for k in sorted(worth)
        if k < gpus
    ]
    in_process = together(gpus=gpus)
    ahead, servers = min((_overlapped(asked, own, config.steps), k) for k, asked, own in splits)
    return {
        "servers": servers,
        "hours_ahead": ahead,
        "hours_in_turn": min(sampling + training for _, sampling, training in splits),
        "hours_in_process": in_process["sampling"] + in_process["training"],
    }
