"""What a study costs before it runs: memory per GPU by part, tokens, GPU hours.

    epistill plan recipes/math-qwen3-8b-think

Enters: a `StudySpec` with architectures and hardware. Leaves: a plan as plain numbers. All of it
is computed from the study's own settings but the throughput, which is stated (by the recipe or a
flag). Bounds are upper ones: every row is taken to have a teacher's context, every response to be
as long as `lengths` says or the limit. The parts are those of
`training.sharding` and `training.train_state`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from epistill.config import EvalSet, RunConfig, SamplingConfig
from epistill.describe import extra_forwards
from epistill.errors import EpistillError
from epistill.studies.hardware import (
    FLOAT32_BYTES,
    GIB,
    Architecture,
    Hardware,
    Lengths,
    adapter_parameters,
    teacher_bytes,
)
from epistill.studies.spec import Arm, Probe, StudySpec

ADAM_MOMENTS = 2
CHUNK_COPIES = 4  # a chunk's logits of student and teacher, its log-probs, its gradient
DTYPE_BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on one GPU, by part.

    Attributes:
        weights, gradients, optimizer, teacher: State; each GPU has its share where `parallel` is
            "shard", else all of it.
        student: The whole copy that samples, where the trained one is sharded.
        gathered: In the computing dtype and whole while they are computed with: two blocks (one is
            fetched ahead), the embedding, the heads. Not sharded: copies of all weights, where
            they are kept in another dtype.
        activations: Of one micro-batch.
        logits: Of one chunk (the fused head), with the head's float32 gradient.
        logits_dense: What whole logits of a micro-batch would take instead; not in the sum.
        activations_whole: Without checkpointing; not in the sum where it is on.
        cache_per_sequence: Keys and values of one sequence at its full length, while sampling.
    """

    weights: int
    gradients: int
    optimizer: int
    teacher: int
    student: int
    gathered: int
    activations: int
    logits: int
    logits_dense: int
    activations_whole: int
    cache_per_sequence: int

    @property
    def state(self) -> int:
        """What is there all the time."""
        return self.weights + self.optimizer + self.teacher + self.student

    @property
    def training(self) -> int:
        """At the peak of a training step."""
        return self.state + self.gradients + self.gathered + self.activations + self.logits


@dataclass(frozen=True, slots=True)
class Tokens:
    """Of one arm and seed.

    Attributes:
        sampled: Written by the student (or for SFT traces, at least).
        trained: Through the student forward and backward, prompt included.
        scored: Through extra forward passes (teachers, references), prompt and context included.
        evaluated: Written in the final evaluation and the curve.
    """

    sampled: int
    trained: int
    scored: int
    evaluated: int


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
        `arms` (each with memory in bytes, tokens, GPU hours), `total_gpu_hours` over all arms,
        probes and seeds, and everything that was assumed.

    Raises:
        EpistillError: The study says too little to be planned.
    """
    hardware, lengths = spec.hardware, spec.lengths
    if hardware is None or lengths is None:
        raise EpistillError(
            f"study {spec.name!r} has no [hardware] or no [lengths]; expected both, as in "
            "`recipes/math-qwen3-8b-think`"
        )
    if gpus is not None:
        hardware = hardware.model_copy(update={"gpus": gpus})
    rate, share = sampling_tokens_per_second, utilisation
    rate = hardware.sampling_tokens_per_second if rate is None else rate
    share = hardware.utilisation if share is None else share
    if rate is None or share is None:
        raise EpistillError(
            f"study {spec.name!r} states no throughput; pass --tokens-per-second and "
            "--utilisation, or set them in its [hardware]"
        )
    if not 0 < share <= 1 or rate <= 0:
        raise EpistillError(
            f"--tokens-per-second {rate:g} and --utilisation {share:g}: expected a positive rate "
            "and a share between 0 and 1"
        )
    flops_per_second = share * hardware.peak_tflops * 1e12
    arms = {}
    for arm in spec.arms:
        config = spec.config_of(arm, spec.seeds[0])
        shape = _architecture(spec, config.model)
        tokens = arm_tokens(config, lengths)
        memory = arm_memory(config, shape, hardware, lengths)
        hours = {
            "sampling": tokens.sampled / rate / 3600,
            "training": _flops(config, shape, tokens, lengths) / flops_per_second / 3600,
            "evaluation": tokens.evaluated / rate / 3600,
        }
        arms[arm.id] = _arm_row(arm, config, shape, hardware, memory, tokens, hours)
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
    }


def _architecture(spec: StudySpec, model: str) -> Architecture:
    if model not in spec.architectures:
        raise EpistillError(
            f"study {spec.name!r} has no [architectures.{model!r}]; expected the numbers of its "
            f"config.json (there: {', '.join(spec.architectures) or 'none'})"
        )
    return spec.architectures[model]


def _arm_row(
    arm: Arm,
    config: RunConfig,
    shape: Architecture,
    hardware: Hardware,
    memory: Memory,
    tokens: Tokens,
    hours: dict[str, float],
) -> dict[str, Any]:
    room = int(hardware.memory_gib * GIB)
    free = room - memory.state
    return {
        "label": arm.label,
        "model": config.model,
        "parameters": shape.parameters,
        "memory": asdict(memory),
        "training_bytes": memory.training,
        "fits": memory.training <= room and free >= memory.cache_per_sequence,
        "sequences_at_once": max(0, free // memory.cache_per_sequence),
        "tokens": asdict(tokens),
        "gpu_hours": {**hours, "total": sum(hours.values())},
    }


def arm_tokens(config: RunConfig, lengths: Lengths) -> Tokens:
    """Tokens of one run."""
    method = config.method
    rows = config.steps * config.problems_per_step * config.samples_per_problem
    response = response_length(config.sampling, lengths)
    sequence = lengths.prompt + response
    sampled = method.traces.count if method.traces is not None else rows
    context = context_length(config, lengths)
    points = 0 if config.eval_every is None else config.steps // config.eval_every
    drawn = config.eval_sampling or config.sampling
    return Tokens(
        sampled=sampled * response if config.steps else 0,
        trained=rows * sequence,
        scored=extra_forwards(method) * rows * (sequence + context),
        evaluated=sum(_evaluated(e, points) for e in config.evaluations)
        * response_length(drawn, lengths),
    )


def _evaluated(chosen: EvalSet, points: int) -> int:
    return chosen.problems * chosen.samples + points * min(chosen.curve_problems, chosen.problems)


def response_length(sampling: SamplingConfig, lengths: Lengths) -> int:
    """The mean where one is known, else the limit."""
    return min(lengths.response or sampling.max_new_tokens, sampling.max_new_tokens)


def context_length(config: RunConfig, lengths: Lengths) -> int:
    """Tokens of a context: as long as a response, or its answer part where thinking is cut."""
    context = config.method.context
    if context.source == "none":
        return 0
    whole = response_length(config.sampling, lengths)
    return min(whole, lengths.answer or whole) if context.thinking == "remove" else whole


def _probe_tokens(probe: Probe, lengths: Lengths) -> int:
    """Source rollouts and those of every context, each at most as long as unguided ones."""
    problems = (probe.candidates or probe.problems) + len(probe.contexts) * probe.problems
    return problems * probe.samples * response_length(probe.sampling, lengths)


def _flops(
    config: RunConfig,
    shape: Architecture,
    tokens: Tokens,
    lengths: Lengths,
) -> float:
    """Of training. A backward pass is two forward ones, or one where the weights are frozen."""
    passes = (3 if config.lora is None else 2) + config.activation_checkpointing
    length = lengths.prompt + response_length(config.sampling, lengths)
    trained = passes * shape.forward_flops(length, tokens.trained)
    longer = length + context_length(config, lengths)
    return trained + shape.forward_flops(longer, tokens.scored)


def arm_memory(
    config: RunConfig, shape: Architecture, hardware: Hardware, lengths: Lengths
) -> Memory:
    """Bytes of one GPU by part."""
    from epistill.objective.fused import LOGITS_PER_CHUNK

    number = DTYPE_BYTES[config.dtype]
    computed = DTYPE_BYTES["bfloat16"] if config.precision == "bf16" else number
    trained = shape.parameters if config.lora is None else adapter_parameters(shape, config.lora)
    training = config.steps > 0
    sharded = training and hardware.gpus > 1 and config.parallel == "shard"
    shards = hardware.gpus if sharded else 1
    sequence = lengths.prompt + config.sampling.max_new_tokens
    # A micro-batch holds at least one sequence; a teacher's is longer but keeps no activations.
    tokens = max(config.most_microbatch_tokens, min(sequence, shape.max_position_embeddings))
    networks = 2 if config.method.needs_teacher else 1
    head = shape.embedding_parameters
    if sharded:
        gathered = (2 * shape.layer_parameters + (1 + networks) * head) * computed
    else:
        gathered = 0 if computed == number else shape.parameters * computed
    chunk = min(LOGITS_PER_CHUNK, tokens * shape.vocab_size)

    def activations(checkpointing: bool) -> int:
        return shape.activation_bytes(tokens, computed, checkpointing=checkpointing)

    drawn = config.eval_sampling or config.sampling
    longest = lengths.prompt + max(config.sampling.max_new_tokens, drawn.max_new_tokens)
    return Memory(
        weights=shape.parameters * number // shards,
        gradients=trained * number // shards if training else 0,
        optimizer=ADAM_MOMENTS * trained * number // shards if training else 0,
        teacher=teacher_bytes(shape, config.method, config.lora, number) // shards,
        student=shape.parameters * number if sharded else 0,
        gathered=gathered if training else 0,
        activations=activations(config.activation_checkpointing) if training else 0,
        logits=CHUNK_COPIES * chunk * FLOAT32_BYTES + head * FLOAT32_BYTES if training else 0,
        logits_dense=2 * networks * tokens * shape.vocab_size * FLOAT32_BYTES if training else 0,
        activations_whole=activations(False) if training else 0,
        cache_per_sequence=shape.cache_bytes(min(longest, shape.max_position_embeddings), computed),
    )
