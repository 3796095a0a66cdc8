"""Checkpoints without pickle: safetensors for tensors, JSON for the rest, a folder renamed last.

Enters: student, optimiser, teachers, gate, step. Leaves: `checkpoints/step-000010/`. A folder that
exists is complete; a killed writer leaves only a temporary one, which the next save removes.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from epistill.errors import EpistillError
from epistill.rollouts.model import LanguageModel
from epistill.train.learner import Learner
from epistill.world import World

KEEP = 2
FORMAT = 1


def save_checkpoint(folder: Path, step: int, learner: Learner, world: World) -> None:
    """Write everything a resumed run needs to go on bit for bit; the oldest beyond KEEP goes."""
    student, optimizer, gate = learner.trained, learner.optimizer, learner.gate
    target = folder / f"step-{step:06d}"
    temporary = folder / f".step-{step:06d}.{os.getpid()}.tmp"
    for stale in folder.glob(".step-*.tmp"):
        shutil.rmtree(stale)
    try:
        temporary.mkdir(parents=True)
        save_file(_trained(student), temporary / "student.safetensors")
        save_file(_optimizer_state(student, optimizer), temporary / "optimizer.safetensors")
        for role, teacher in learner.teachers().items():
            if state := teacher.state():
                contiguous = {name: tensor.contiguous() for name, tensor in state.items()}
                save_file(contiguous, temporary / f"{role}.safetensors")
        save_file({"torch_rng": torch.get_rng_state()}, temporary / "rng.safetensors")
        (temporary / "state.json").write_text(
            json.dumps({"format": FORMAT, "step": step, "gate": gate.state()})
        )
        if target.exists():
            shutil.rmtree(target)
        temporary.rename(target)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise EpistillError(
            f"could not write checkpoint {target}: {error}; make room and start the command again, "
            "it goes on from the last complete checkpoint"
        ) from error
    for old in sorted(folder.glob("step-*"))[:-KEEP]:
        shutil.rmtree(old)


def latest_checkpoint(folder: Path, world: World) -> Path | None:
    """The last complete checkpoint, or None."""
    found = sorted(folder.glob("step-*"))
    return found[-1] if found else None


def load_checkpoint(path: Path, learner: Learner, world: World) -> int:
    """Restore all of it in place.

    Returns:
        The number of steps that were done.
    """
    student, optimizer, gate = learner.trained, learner.optimizer, learner.gate
    state = json.loads((path / "state.json").read_text())
    if state["format"] != FORMAT:
        raise EpistillError(
            f"{path} has checkpoint format {state['format']}; this version reads {FORMAT}; start "
            "the run again in another folder"
        )
    weights = load_file(path / "student.safetensors")
    with torch.no_grad():
        for name, parameter in _trained(student).items():
            parameter.copy_(weights[name])
    _load_optimizer(student, optimizer, load_file(path / "optimizer.safetensors"))
    for role, teacher in learner.teachers().items():
        saved = path / f"{role}.safetensors"
        teacher.load_state(load_file(saved) if saved.is_file() else {})
    gate.load_state(state["gate"])
    torch.set_rng_state(load_file(path / "rng.safetensors")["torch_rng"])
    return int(state["step"])


def _trained(student: LanguageModel) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in student.network.named_parameters() if p.requires_grad}


def _optimizer_state(student: LanguageModel, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """`parameter.name|statistic` to tensor; by name, so that parameter order does not matter."""
    flat: dict[str, Tensor] = {}
    for name, parameter in student.network.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            flat[f"{name}|{key}"] = torch.as_tensor(value).contiguous()
    return flat


def _load_optimizer(
    student: LanguageModel, optimizer: torch.optim.Optimizer, flat: dict[str, Tensor]
) -> None:
    parameters = dict(student.network.named_parameters())
    for key, value in flat.items():
        name, _, statistic = key.rpartition("|")
        optimizer.state[parameters[name]][statistic] = value.to(
            parameters[name].device if value.ndim else "cpu"
        )
