"""Checkpoints without pickle: torch.distributed.checkpoint writes safetensors, the rest is JSON.

Enters: a `TrainState` and the number of steps done. Leaves: `checkpoints/step-000010/`. A folder
that exists is complete: it is written under another name and renamed. Each process writes what it
holds of sharded tensors and its part of the others; a run resumes on any number of processes. Its
state.json holds the checksums of its files, of the run's logs up to its step, and of itself; a run
goes on from the last checkpoint where all of them are right.
"""

from __future__ import annotations

import logging
import re
import shutil
import warnings
from collections import ChainMap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from epistill.errors import Damaged, EpistillError, damaged
from epistill.integrity import sealed, sha256_of, unsealed
from epistill.json_files import read_json, write_json
from epistill.rollouts.model import LanguageModel
from epistill.store import RunStore
from epistill.training.sharding import refresh
from epistill.training.train_state import TrainState
from epistill.world import World

KEEP = 2
FORMAT = 4  # 3 had a gate in the place of the memory, 2 no checksums
STUDENT, OPTIMIZER = "student/", "optimizer/"
_NAME = re.compile(r"step-(\d{6,})")


def save_checkpoint(store: RunStore, step: int, train_state: TrainState, world: World) -> None:
    """Write everything a resumed run needs to go on bit for bit; the oldest beyond KEEP goes.

    Raises:
        EpistillError: It could not be written; the checkpoints before it are untouched.
    """
    folder = store.folder / "checkpoints"
    target, temporary = folder / f"step-{step:06d}", folder / f".step-{step:06d}.tmp"
    state: dict[str, Any] = {
        "format": FORMAT,
        "step": step,
        "memory": train_state.memory,
        "skipped_in_a_row": train_state.skipped_in_a_row,
        "generators": world.gather(torch.get_rng_state().numpy().tobytes().hex()),
    }

    def begin() -> None:
        for stale in folder.glob(".step-*.tmp"):
            shutil.rmtree(stale)
        temporary.mkdir(parents=True)

    def end() -> None:
        state["logs"] = store.marks()
        write_json(temporary / "state.json", sealed(state))
        _remove(target)
        temporary.rename(target)
        kept = [found for found in _found(folder) if _step(found) <= step][-KEEP:]
        for other in set(_found(folder)) - set(kept):  # older, or damaged and of steps to come
            _remove(other)

    try:
        world.on_first(lambda: _said(begin, target))
        writer = HuggingFaceStorageWriter(str(temporary), save_distributed=True)
        with _alone_is_meant():
            save(_tensors(train_state), storage_writer=writer, no_dist=world.size == 1)
        own = sorted(temporary.glob(f"shard-{world.rank + 1:05d}-*"))
        hashes = world.gather({path.name: sha256_of(path) for path in own})
        state["files"] = dict(ChainMap(*hashes))
        world.on_first(lambda: _said(end, target))
    except (CheckpointException, EpistillError) as error:
        if world.first:
            shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, EpistillError):
            raise
        cause = next(iter(error.failures.values()))[0]
        if not isinstance(cause, OSError | SafetensorError):
            raise
        world.stop(_could_not(target, cause))


def resume(store: RunStore, train_state: TrainState, world: World) -> int:
    """Go on from the last checkpoint that is whole, or from the start where there was never one.

    Returns:
        The number of steps that were done; the store's logs are those of that moment.

    Raises:
        EpistillError: Every checkpoint is damaged, or the last was written by another version, or
            by a run of another model.
    """
    folder = store.folder / "checkpoints"
    names: list[str] = world.on_first(lambda: [path.name for path in _found(folder)])
    problem = None
    for name in reversed(names):
        state, found = _whole_state(folder / name, store, world)
        if found is None:
            if problem is not None and world.first:
                logging.getLogger("epistill").warning("%s; it goes on from %s", problem, name)
            world.on_first(lambda state=state: store.restore(state["logs"]))
            return load_checkpoint(folder / name, state, train_state, world)
        problem = problem or found
    if problem is not None:
        world.stop(
            f"{problem}, and no other checkpoint is whole with its logs; restore what is damaged "
            f"from a copy, or remove {store.folder} to begin again"
        )
    world.on_first(lambda: store.restore({}))
    return 0


def _whole_state(path: Path, store: RunStore, world: World) -> tuple[dict[str, Any], str | None]:
    """What state.json of a checkpoint says, and what is wrong with the checkpoint if anything."""

    def look() -> tuple[dict[str, Any], str | None]:
        try:
            return _state(path, store), None
        except Damaged as error:
            return {}, error.found

    state, problem = world.on_first(look)
    if problem is not None:
        return state, problem
    wrong: list[str] = []
    for name in world.share(sorted(state["files"])):
        try:
            if sha256_of(path / name) != state["files"][name]:
                raise damaged(path / name, "it is not what was written")
        except Damaged as error:
            wrong.append(error.found)
    return state, next(chain.from_iterable(world.gather(wrong)), None)


def _state(path: Path, store: RunStore) -> dict[str, Any]:
    """state.json; Damaged where it, or a log of the run, is not as it was."""
    file = path / "state.json"
    read = read_json(file)
    if isinstance(form := read.get("format"), int) and form != FORMAT:
        raise EpistillError(
            f"{path} has checkpoint format {form}, this version reads {FORMAT}; finish the run "
            f"with the version that began it, or remove {path.parent} to train again from the start"
        )
    state = unsealed(file, read)
    if state.get("step") != _step(path):
        raise damaged(file, f"it is of step {state.get('step')}")
    there = {part.name for part in path.glob("*.safetensors")}
    if there != set(state["files"]):
        odd = sorted(there ^ set(state["files"]))[0]
        raise damaged(path, f"{odd} is {'not its own' if odd in there else 'missing'}")
    store.require(state["logs"])
    return state


def _found(folder: Path) -> list[Path]:
    """All checkpoints, in the order of steps."""
    if not folder.is_dir():
        if folder.exists():
            raise damaged(folder, "it is a file")
        return []
    return sorted((path for path in folder.iterdir() if _NAME.fullmatch(path.name)), key=_step)


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def load_checkpoint(
    path: Path, state: dict[str, Any], train_state: TrainState, world: World
) -> int:
    """Restore all of it in place.

    Args:
        path: Its folder.
        state: What its state.json says.

    Returns:
        The number of steps that were done.

    Raises:
        EpistillError: Written by a run of another model.
    """
    reader = HuggingFaceStorageReader(str(path))
    saved = {
        name: found
        for name, found in reader.read_metadata().state_dict_metadata.items()
        if isinstance(found, TensorStorageMetadata)
    }
    tensors, parameters = _tensors(train_state), _trained(train_state.trained)
    for key, found in saved.items():  # a fresh optimiser has no state yet to be read into
        name, _, statistic = key.removeprefix(OPTIMIZER).rpartition("|")
        if key.startswith(OPTIMIZER) and name in parameters:
            like, size = parameters[name].detach(), found.size
            empty = torch.empty(size) if size != like.shape else like
            tensors[key] = torch.zeros_like(empty, dtype=found.properties.dtype)
            train_state.optimizer.state[parameters[name]][statistic] = tensors[key]
    wrong = sorted(saved.keys() ^ tensors.keys())
    wrong += [name for name in saved.keys() & tensors if saved[name].size != tensors[name].shape]
    if wrong:
        world.stop(
            f"{path} is of another model or method: {wrong[0]} does not fit; expected the "
            "checkpoint of this run; remove it to train again from the start"
        )
    with _alone_is_meant():
        load(tensors, storage_reader=reader, no_dist=world.size == 1)
    for role, teacher in train_state.teachers().items():
        own = {n: t for n, t in tensors.items() if n.startswith(f"{role}/")}
        teacher.load_state({n.removeprefix(f"{role}/"): t for n, t in own.items()})
    refresh(train_state.student, train_state.trained)
    train_state.memory = state["memory"]
    train_state.skipped_in_a_row = state["skipped_in_a_row"]
    generators = state["generators"]
    if world.rank < len(generators):  # a process that was not there before keeps its own seed
        numbers = bytearray.fromhex(generators[world.rank])
        torch.set_rng_state(torch.frombuffer(numbers, dtype=torch.uint8))
    return int(state["step"])


def _tensors(train_state: TrainState) -> dict[str, Any]:
    """All tensors by role and name; by name, so that parameter order does not matter."""
    found: dict[str, Any] = {}
    for name, parameter in _trained(train_state.trained).items():
        found[f"{STUDENT}{name}"] = parameter.detach()
        for key, value in train_state.optimizer.state.get(parameter, {}).items():
            found[f"{OPTIMIZER}{name}|{key}"] = torch.as_tensor(value)
    for role, teacher in train_state.teachers().items():
        found |= {f"{role}/{name}": tensor for name, tensor in teacher.state().items()}
    return {name: tensor.contiguous() for name, tensor in found.items()}


def _trained(student: LanguageModel) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in student.network.named_parameters() if p.requires_grad}


def _remove(folder: Path) -> None:
    """Remove a checkpoint; killed half-way, it leaves no folder that looks complete."""
    if folder.is_dir():
        gone = folder.with_name(f".{folder.name}.old.tmp")
        shutil.rmtree(gone, ignore_errors=True)
        folder.rename(gone)
        shutil.rmtree(gone)
    else:
        folder.unlink(missing_ok=True)


@contextmanager
def _alone_is_meant() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _said(action: Callable[[], None], target: Path) -> None:
    try:
        action()
    except OSError as error:
        raise EpistillError(_could_not(target, error)) from error


def _could_not(target: Path, error: BaseException) -> str:
    return (
        f"could not write checkpoint {target}: {error}; make room and start the command again, it "
        "goes on from the last complete checkpoint"
    )
