"""Whose weights the teacher has: frozen, live, a moving average, or a periodic snapshot.

Enters: the student. Leaves: a teacher that scores and is told of every rollout batch. Copies are
taken from memory, never reloaded from a path: a student changed in memory, or one that never had a
path, gets the right teacher. State goes into the checkpoint. Teachers of a LoRA student are in
`teacher.adapters`: frozen and averaged ones need no second copy of the base (a snapshot is one).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from epistill.axes import TeacherWeights
from epistill.rollouts.model import LanguageModel

Place = Callable[[LanguageModel], None]  # lays a network out over the processes, in place


def whole(model: LanguageModel) -> None:
    """Every process holds all of it."""


def placed_copy(model: LanguageModel, place: Place, *, trained: bool) -> LanguageModel:
    """A copy with weights of its own, laid out by `place`; one that is frozen does not train.

    Sharding copies what a process keeps of each tensor, so until then the copy may have the
    model's own memory: a second whole network is never there.
    """
    network = copy.deepcopy(model.network) if place is whole else _sharing(model.network)
    copied = model.with_network(network if trained else network.eval().requires_grad_(False))
    place(copied)
    return copied


def _sharing(network: Any) -> Any:
    """The same modules again, with parameters of their own over the same memory."""
    # Here, not in `placed_copy`: whoever kept them would keep each part that is moved whole.
    own = {id(p): nn.Parameter(p.detach(), p.requires_grad) for p in network.parameters()}
    return copy.deepcopy(network, own)


class Teacher:
    """What the training step asks of a teacher; the base is the student's network as it is.

    Args:
        student: At the start of training, before it is laid out over processes.
    """

    def __init__(self, student: LanguageModel) -> None:
        self._student = student

    @contextmanager
    def scoring(self) -> Iterator[LanguageModel]:
        """A context in which the yielded model has the teacher's weights, without dropout."""
        training = self._student.network.training
        self._student.network.eval()
        try:
            yield self._student
        finally:
            self._student.network.train(training)

    def student_laid_out(self) -> None:
        """The student lies over the processes as it will in training."""

    def after_batch(self) -> None:
        """The student took the optimiser steps of a rollout batch."""

    def state(self) -> dict[str, Tensor]:
        """Tensors that a checkpoint must hold; empty where the run can rebuild them."""
        return {}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` gave.

        Raises:
            ValueError: It was not saved by a teacher of this model.
        """
        own = self.state()
        if odd := sorted(set(state) ^ set(own))[:3]:
            raise ValueError(f"teacher state does not fit this model; differing tensors: {odd}")
        for name, tensor in own.items():
            tensor.copy_(state[name])


class LiveTeacher(Teacher):
    """The student itself, at its current weights."""


class CopiedTeacher(Teacher):
    """A copy of the student's weights, taken when training starts: frozen.

    Its state is all weights: the student that they were copied from is gone by the time of a
    resume.

    Args:
        student: Copied as it is now, before it is laid out over processes itself.
        place: Lays the copy out as the student will be.
    """

    def __init__(self, student: LanguageModel, place: Place = whole) -> None:
        super().__init__(student)
        self._model = placed_copy(student, place, trained=False)

    @contextmanager
    def scoring(self) -> Iterator[LanguageModel]:
        """The copy."""
        yield self._model

    def state(self) -> dict[str, Tensor]:
        """All weights."""
        return {name: p.detach() for name, p in self._model.network.named_parameters()}


class MovingTeacher(CopiedTeacher):
    """A copy that moves towards the student after rollout batches, by its setting's rates.

    Averages are kept in float32 whatever the student's dtype. In bfloat16 they would stall: one
    step's change is below its precision (measured 17 % of a gap closed in 100 steps where float32
    closes 99 %).
    """

    def __init__(
        self, student: LanguageModel, weights: TeacherWeights, place: Place = whole
    ) -> None:
        super().__init__(student, place)
        self._weights = weights
        self._batches = torch.zeros((), dtype=torch.long)
        self._kept = super().state()
        if weights.averages:
            self._kept = {name: tensor.float().clone() for name, tensor in self._kept.items()}

    @torch.no_grad()
    def after_batch(self) -> None:
        """Move."""
        self._batches += 1
        rate = self._weights.rate_after(int(self._batches))
        if rate:
            theirs = dict(self._student.network.named_parameters())
            for name, mine in self._kept.items():
                mine.lerp_(theirs[name].detach().to(mine.dtype), rate)
            self._show()

    def state(self) -> dict[str, Tensor]:
        """What is kept, and the count."""
        return {**self._kept, "batches": self._batches}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore both."""
        super().load_state(state)
        self._show()

    @torch.no_grad()
    def _show(self) -> None:
        if self._weights.averages:
            for name, parameter in self._model.network.named_parameters():
                parameter.copy_(self._kept[name])


def make_teacher(weights: TeacherWeights, student: LanguageModel, place: Place = whole) -> Teacher:
    """The teacher that a method's setting names; of a LoRA student, without a second base."""
    from epistill.teacher.adapters import AdapterOffTeacher, EmaDeltaTeacher

    adapted = isinstance(student.network, PeftModel)
    if weights.is_student:
        return LiveTeacher(student)
    if weights.stays:
        return AdapterOffTeacher(student) if adapted else CopiedTeacher(student, place)
    if weights.averages and adapted:
        return EmaDeltaTeacher(student, weights)
    return MovingTeacher(student, weights, place)
