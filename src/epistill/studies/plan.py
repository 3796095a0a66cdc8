"""What a study costs before it runs: memory per GPU by part, tokens, GPU hours.

    epistill plan recipes/math-qwen3-8b-think

Enters: a `StudySpec` with architectures and hardware. Leaves: a plan as plain numbers. All of it
is computed from the study's own settings but the throughput, which is stated (by the recipe or a
flag). Bounds are upper ones: every row is taken to have a teacher's context, every response to be
as long as `lengths` says or the limit. The parts are those of `training.sharding` and
`training.train_state`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from epistill.config import RunConfig
from epistill.describe import extra_forwards
from epistill.errors import EpistillError
from epistill.rollout_settings import VllmRollouts
from epistill.studies.hardware import (
    DTYPE_BYTES,
    FLOAT32_BYTES,
    GIB,
    Architecture,
    Hardware,
    Lengths,
    adapter_parameters,
    copied_networks,
    teacher_bytes,
)
from epistill.studies.spec import Probe, StudySpec
from epistill.studies.wall_clock import (
    evaluation_sizes,
    one_step_ahead,
    served_forwards,
    served_hours,
    wall_hours,
)

ADAM_MOMENTS = 2
CHUNK_COPIES = 4  # a chunk's logits of student and teacher, its log-probs, its gradient
# Of the memory: what is there all the time, and what a training step has beside it at its peak.
STATE = ("weights", "optimizer", "teacher", "student")
STEP = ("gradients", "gathered", "activations", "logits")


def plan_study(
    spec: StudySpec,
    *,
    sampling_tokens_per_second: float | None = None,
    utilisation: float | None = None,
    gpus: int | None = None,
) -> dict[str, Any]:
    """The plan of a study.

    Args:
        spec: With `architectures`, `hardware` and `lengths`.
        sampling_tokens_per_second: Of one GPU; None takes the recipe's.
        utilisation: Share of peak FLOPs in training; None takes the recipe's.
        gpus: That an arm's state is sharded over; None takes the recipe's.

    Returns:
        `arms` (each with memory in bytes, tokens, GPU hours, wall-clock hours and their bounds;
        where servers write, these are as many GPUs again),
        `total_gpu_hours` over all arms, probes and seeds, `total_wall_hours` of all arms one after
        another, and everything that was assumed.

    Raises:
        EpistillError: The study says too little to be planned.
    """
    hardware, lengths = spec.hardware, spec.lengths
    if hardware is None or lengths is None:
        raise EpistillError(
            f"study {spec.name!r} has no [hardware] or no [lengths]; expected both, as in "
            "`recipes/math-qwen3-8b-think`, or --calibrate, which finds them on this machine"
        )
    if gpus is not None:
        hardware = hardware.model_copy(update={"gpus": gpus})
    rate, share = sampling_tokens_per_second, utilisation
    rate = hardware.sampling_tokens_per_second if rate is None else rate
    share = hardware.utilisation if share is None else share
    if rate is None or share is None:
        raise EpistillError(
            f"study {spec.name!r} states no throughput; pass --calibrate, which measures it, or "
            "--tokens-per-second and --utilisation, or set them in its [hardware]"
        )
    if not 0 < share <= 1 or rate <= 0:
        raise EpistillError(
            f"--tokens-per-second {rate:g} and --utilisation {share:g}: expected a positive rate "
            "and a share between 0 and 1"
        )
    arms = {}
    for arm in spec.arms:
        config = spec.config_of(arm, spec.seeds[0])
        if config.model not in spec.architectures:
            raise EpistillError(
                f"study {spec.name!r} has no [architectures.{config.model!r}]; expected the "
                f"numbers of its config.json (there: {', '.join(spec.architectures) or 'none'})"
            )
        shape = spec.architectures[config.model]
        tokens = _tokens(config, lengths)
        served = isinstance(config.rollouts, VllmRollouts) and config.method.traces is None
        flops_per_second = share * hardware.peak_tflops * 1e12
        updating, scoring = (
            training_flops(config, shape, tokens, lengths, own_scores=own_scores) / flops_per_second
            for own_scores in (False, True)
        )
        asked = _scored_tokens(config, lengths, served_forwards(config))
        asking = shape.forward_flops(_longest(config, lengths), asked) / flops_per_second
        hours = {
            "sampling": (tokens["sampled"] / rate + asking) / 3600,
            "training": (scoring if served else updating) / 3600,
            "evaluation": tokens["evaluated"] / rate / 3600,
        }
        memory = _memory(config, shape, hardware, lengths)
        clock = partial(
            wall_hours,
            config,
            shape,
            hardware,
            lengths,
            rate=rate,
            microbatch_tokens=memory["microbatch_tokens"],
        )
        together = partial(clock, update_seconds=updating + asking)
        apart = partial(clock, update_seconds=scoring, asked_seconds=asking, own_scores=True)
        room, cache = int(hardware.memory_gib * GIB), memory["cache_per_sequence"]
        free = room - sum(memory[part] for part in STATE)
        training = sum(memory[part] for part in (*STATE, *STEP))
        arms[arm.id] = {
            "label": arm.label,
            "model": config.model,
            "parameters": shape.parameters,
            "memory": memory,
            "training_bytes": training,
            "peak_bytes": (peak := max(training, memory["start"])),
            "fits": peak <= room and free >= cache,
            # None: servers elsewhere write every response.
            "sequences_at_once": max(0, free // cache) if cache else None,
            "tokens": tokens,
            "gpu_hours": {**hours, "total": sum(hours.values())},
            "wall_hours": served_hours(apart, config, hardware.gpus)
            if served
            else together(gpus=hardware.gpus),
            "ahead": one_step_ahead(apart, together, config, hardware.gpus)
            if config.steps and config.method.traces is None
            else None,
        }
    probes = {
        probe.id: {"tokens": (n := _probe_tokens(probe, lengths)), "gpu_hours": n / rate / 3600}
        for probe in spec.probes
    }
    once = sum(row["gpu_hours"]["total"] for row in arms.values())
    once += sum(row["gpu_hours"] for row in probes.values())
    return {
        "study": spec.name,
        "hardware": hardware.model_dump(),
        "lengths": lengths.model_dump(),
        "assumed": {"sampling_tokens_per_second": rate, "utilisation": share},
        "seeds": len(spec.seeds),
        "arms": arms,
        "probes": probes,
        "total_gpu_hours": once * len(spec.seeds),
        "total_wall_hours": sum(row["wall_hours"]["total"] for row in arms.values())
        * len(spec.seeds),
    }


def _tokens(config: RunConfig, lengths: Lengths) -> dict[str, int]:
    """Of one run.

    sampled: written by the student (for SFT traces, at least). trained: through the student
    forward and backward, prompt included. scored: through extra forward passes (teachers,
    references) of the trainer, prompt and context included. evaluated: written in the evaluations.
    """
    method = config.method
    rows = config.steps * config.problems_per_step * config.samples_per_problem
    response = lengths.response_within(config.sampling.max_new_tokens)
    sampled = method.traces.count if method.traces is not None else rows
    written = sum(problems * samples for problems, samples in evaluation_sizes(config))
    drawn = config.eval_sampling or config.sampling
    return {
        "sampled": sampled * response if config.steps else 0,
        "trained": rows * (lengths.prompt + response),
        "scored": _scored_tokens(config, lengths, extra_forwards(method) - served_forwards(config)),
        "evaluated": written * lengths.response_within(drawn.max_new_tokens),
    }


def _longest(config: RunConfig, lengths: Lengths) -> int:
    """Tokens that a teacher reads: prompt, context and response."""
    response = lengths.response_within(config.sampling.max_new_tokens)
    return lengths.prompt + context_length(config, lengths) + response


def _scored_tokens(config: RunConfig, lengths: Lengths, passes: int) -> int:
    rows = config.steps * config.problems_per_step * config.samples_per_problem
    return passes * rows * _longest(config, lengths)


def context_length(config: RunConfig, lengths: Lengths) -> int:
    """Tokens of a context: as long as a response, or its answer part where thinking is cut."""
    context = config.method.context
    if context.source == "none":
        return 0
    whole = lengths.response_within(config.sampling.max_new_tokens)
    return min(whole, lengths.answer or whole) if context.thinking == "remove" else whole


def _probe_tokens(probe: Probe, lengths: Lengths) -> int:
    """Source rollouts and those of every context, each at most as long as unguided ones."""
    problems = (probe.candidates or probe.problems) + len(probe.contexts) * probe.problems
    return problems * probe.samples * lengths.response_within(probe.sampling.max_new_tokens)


def training_flops(
    config: RunConfig,
    shape: Architecture,
    tokens: dict[str, int],
    lengths: Lengths,
    *,
    own_scores: bool = False,
) -> float:
    """Of training. A backward pass is two forward ones, or one where the weights are frozen.

    What servers wrote the trainer scores before it trains (`own_scores`): one forward pass more.
    """
    passes = (3 if config.lora is None else 2) + config.activation_checkpointing + own_scores
    length = lengths.prompt + lengths.response_within(config.sampling.max_new_tokens)
    trained = passes * shape.forward_flops(length, tokens["trained"])
    return trained + shape.forward_flops(_longest(config, lengths), tokens["scored"])


def _memory(
    config: RunConfig, shape: Architecture, hardware: Hardware, lengths: Lengths
) -> dict[str, int]:
    """Bytes on one GPU, by part.

    State is a GPU's share where `parallel` is "shard", else all of it; student is the whole copy
    that samples, where the trained one is sharded and servers do not write all responses. gathered,
    in the computing dtype and whole while they are computed with: two blocks (one is fetched
    ahead), the embedding, the heads; not sharded, copies of all weights where they are kept in
    another dtype. activations: of one micro-batch; logits: of one chunk (the fused head), with the
    head's float32 gradient. Not in the sum: start (before the first step: weights, teachers,
    the copy that samples, and, where no GPU holds one, the largest part that is moved there to be
    sharded), host (in the host's memory, of each process, until then), logits_dense
    (whole logits of a micro-batch instead), activations_whole (without checkpointing),
    cache_per_sequence (keys and values of one at its full length, while sampling; 0 where servers
    write all responses). microbatch_tokens is no
    memory: of "auto", what a plan's machine has room for.
    """
    from epistill.objective.fused import LOGITS_PER_CHUNK
    from epistill.training.microbatch import fitting_tokens
    from epistill.training.sharding import nowhere_whole

    number = DTYPE_BYTES[config.dtype]
    computed = DTYPE_BYTES["bfloat16"] if config.precision == "bf16" else number
    parameters, head = shape.parameters, shape.embedding_parameters
    trained = parameters if config.lora is None else adapter_parameters(shape, config.lora)
    sharded = hardware.gpus > 1 and config.parallel == "shard"
    served = nowhere_whole(config, hardware.gpus)
    shards = hardware.gpus if sharded else 1
    limit = shape.max_position_embeddings
    networks = 1 + (config.method.needs_teacher and not served_forwards(config))
    gathered = 0 if computed == number else parameters * computed
    if sharded:
        gathered = (2 * shape.layer_parameters + (1 + networks) * head) * computed
    state = {
        "weights": parameters * number // shards,
        "teacher": teacher_bytes(shape, config.method, config.lora, number) // shards,
        "student": 0 if not sharded or served else parameters * number,
        "gradients": trained * number // shards if config.steps else 0,
        "optimizer": ADAM_MOMENTS * trained * number // shards if config.steps else 0,
    }
    # An adapter's averages are whole until it is sharded.
    averages = 0 if copied_networks(config.method, config.lora) else state["teacher"] * shards
    start = state["weights"] + state["student"] + state["teacher"]
    if served:
        start += max(shape.layer_parameters, head + shape.hidden_size) * number
    elif averages:
        start += averages - state["teacher"]
    # A micro-batch holds at least one sequence; a teacher's is longer but keeps no activations.
    one = min(lengths.prompt + config.sampling.max_new_tokens, limit)
    tokens = config.microbatch_tokens
    if tokens == "auto":
        per_token = shape.activation_bytes(
            1, computed, checkpointing=config.activation_checkpointing
        )
        tokens = fitting_tokens(hardware.memory_gib * GIB - sum(state.values()), per_token)
    tokens = max(tokens, one)
    chunk = min(LOGITS_PER_CHUNK, tokens * shape.vocab_size)
    drawn = config.eval_sampling or config.sampling
    longest = lengths.prompt + max(config.sampling.max_new_tokens, drawn.max_new_tokens)
    activations, activations_whole = (
        shape.activation_bytes(tokens, computed, checkpointing=checkpointing)
        for checkpointing in (config.activation_checkpointing, False)
    )
    of_training = {
        "gathered": gathered,
        "activations": activations,
        "logits": CHUNK_COPIES * chunk * FLOAT32_BYTES + head * FLOAT32_BYTES,
        "logits_dense": 2 * networks * tokens * shape.vocab_size * FLOAT32_BYTES,
        "activations_whole": activations_whole,
    }
    return {
        **state,
        "start": start,
        "host": parameters * number + averages if served else 0,
        "microbatch_tokens": tokens if config.steps else 0,
        **(of_training if config.steps else dict.fromkeys(of_training, 0)),
        "cache_per_sequence": 0 if served else shape.cache_bytes(min(longest, limit), computed),
    }
