"""How many tokens a micro-batch may have: as many as there is memory for their activations.

Enters: a `RunConfig` whose `microbatch_tokens` is "auto", the loaded student. Leaves: a number.
What autograd keeps per token is measured on the network itself, so no architecture is forgotten.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import torch
from torch import Tensor, UntypedStorage

from epistill.config import MOST_MICROBATCH_TOKENS, RunConfig
from epistill.rollouts.model import LanguageModel
from epistill.training.short_attention import short_attention_in_float32
from epistill.world import World

LEAST_MICROBATCH_TOKENS = 512  # a longer row goes alone
PROBE_TOKENS = 32
USED_SHARE = 0.5  # of what is free; backward passes, logits and other programs have the rest
STATE_COPIES = 3  # of a trained parameter: its gradient and Adam's two moments
MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")


def fitting_microbatch_tokens(config: RunConfig, student: LanguageModel, world: World) -> int:
    """A power of two, so that a little more or less memory changes nothing; for all processes.

    Args:
        config: The run.
        student: Loaded and with its adapter, not yet laid out over processes.
        world: Processes that train together.
    """
    per_token = activation_bytes_per_token(
        student,
        dtype=torch.bfloat16 if config.precision == "bf16" else None,
        checkpointing=config.activation_checkpointing,
    )
    device = torch.device(world.device(config.device))
    free = free_bytes(device) - _state_bytes(config, student, world)
    return min(world.gather(fitting_tokens(free, per_token)))


def fitting_tokens(free: float, per_token: float) -> int:
    """A power of two of tokens, from the bytes that are free and those that one token keeps."""
    fitting = LEAST_MICROBATCH_TOKENS
    while 2 * fitting * per_token <= USED_SHARE * free and 2 * fitting <= MOST_MICROBATCH_TOKENS:
        fitting *= 2
    return fitting


def activation_bytes_per_token(
    student: LanguageModel, *, dtype: torch.dtype | None = None, checkpointing: bool = False
) -> float:
    """What autograd keeps of the decoder for a backward pass: what twice the tokens add.

    Args:
        student: The model.
        dtype: That it computes in; None for the weights' own.
        checkpointing: Keep the blocks' inputs and one block instead.
    """
    probed = student.with_network(student.network)
    probed.compute_dtype = dtype
    tokens = min(PROBE_TOKENS, (student.max_positions or 2 * PROBE_TOKENS) // 2)
    # The difference has neither weights in it nor the copies of them that autocast makes.
    found = (_kept_bytes(probed, 2 * tokens) - _kept_bytes(probed, tokens)) / tokens
    if not checkpointing:
        return found
    config, number = student.network.config.get_text_config(), dtype or student.network.dtype
    layers = config.num_hidden_layers
    return found / layers + layers * config.hidden_size * number.itemsize


def _kept_bytes(model: LanguageModel, tokens: int) -> int:
    # Storages are held while this counts, so that no address comes twice; the graph keeps nothing,
    # or a parameter that it saved would live as long as the parameter's gradient accumulator.
    kept: dict[int, UntypedStorage] = {}

    def keep(tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage

    places = torch.arange(tokens, device=model.device)
    ids = (places % model.vocabulary).unsqueeze(0)
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda nothing: nothing)
    with hooks, short_attention_in_float32():
        model.hidden(ids, torch.zeros_like(places), places)
    return sum(storage.nbytes() for storage in kept.values())


def free_bytes(device: torch.device) -> int:
    """Of a GPU, or of this process's part of the machine: arms that share it share its memory."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if MEMINFO.is_file():
        free = 1024 * (_number(MEMINFO, r"MemAvailable:\s*(\d+)") or 0)
    else:  # macOS does not say what is free
        free = _machine_bytes()
    if (most := _container_bytes()) is not None:
        used = _number(CGROUP / "memory.current", r"(\d+)") or 0
        unused = _number(CGROUP / "memory.stat", r"(?m)^inactive_file (\d+)") or 0
        free = min(free, most - used + unused)
    return int(free * min(1.0, torch.get_num_threads() / (os.cpu_count() or 1)))


def whole_bytes(device: torch.device) -> int:
    """Of a GPU, or of the machine or container, in use or not."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return min(_machine_bytes(), _container_bytes() or _machine_bytes())


def _machine_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _container_bytes() -> int | None:
    """What a container may have; None where there is none, or no limit."""
    return _number(CGROUP / "memory.max", r"(\d+)")


def _number(path: Path, pattern: str) -> int | None:
    try:
        found = re.search(pattern, path.read_text(encoding="ascii"))
    except OSError:
        return None
    return int(found[1]) if found else None


def _state_bytes(config: RunConfig, student: LanguageModel, world: World) -> int:
    """What training is going to hold on its device beside the weights that are there."""
    every = [(p.numel() * p.element_size(), p.requires_grad) for p in student.network.parameters()]
    state = STATE_COPIES * sum(size for size, trained in every if trained)
    copied = config.lora is None and (config.method.needs_teacher or config.method.needs_start)
    elsewhere = student.device.type != torch.device(config.device).type  # until it is sharded
    state += (copied + elsewhere) * sum(size for size, _ in every)
    return state // (world.size if config.parallel == "shard" else 1)
