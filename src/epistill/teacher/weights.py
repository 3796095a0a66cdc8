"""Whose weights the teacher has: frozen, live, or an exponential moving average.

Enters: the student. Leaves: a teacher that answers `model()` and is told of every optimiser step.
Copies are taken from memory, never reloaded from a path: a student changed in memory, or one that
never had a path, gets the right teacher. State goes into the checkpoint.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from epistill.config import EmaWeights, FrozenWeights, LiveWeights, TeacherWeights
from epistill.rollouts.model import LanguageModel


class Teacher(Protocol):
    """What the training step asks of a teacher."""

    def model(self) -> LanguageModel:
        """The network to score with, in eval mode, without gradient."""
        ...

    def after_step(self) -> None:
        """The student took an optimiser step."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Tensors that a checkpoint must hold; empty where the run can rebuild them."""
        ...

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` gave."""
        ...


class LiveTeacher:
    """The student itself, at its current weights."""

    def __init__(self, student: LanguageModel) -> None:
        self._student = student

    def model(self) -> LanguageModel:
        """The student's network."""
        return self._student

    def after_step(self) -> None:
        """Nothing to do: the weights are the student's."""

    def state(self) -> dict[str, Tensor]:
        """Empty."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Nothing to restore."""
        _expect(state, {})


class FrozenTeacher:
    """A copy of the student's weights, taken when training starts."""

    def __init__(self, student: LanguageModel) -> None:
        self._model = _copy(student)

    def model(self) -> LanguageModel:
        """The copy."""
        return self._model

    def after_step(self) -> None:
        """Nothing to do: frozen."""

    def state(self) -> dict[str, Tensor]:
        """All weights: the student that they were copied from is gone by the time of a resume."""
        return {name: p.detach() for name, p in self._model.network.named_parameters()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore the weights."""
        own = self.state()
        _expect(state, own)
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(state[name])


class EmaTeacher:
    """average <- (1 - rate) average + rate student, kept in float32 whatever the student's dtype.

    In bfloat16 the average would stall: one step's change is below its precision (measured 17 % of
    a gap closed in 100 steps where float32 closes 99 %).
    """

    def __init__(self, student: LanguageModel, rate: float) -> None:
        self._student = student
        self._model = _copy(student)
        self._rate = rate
        self._average = {
            name: p.detach().float().clone() for name, p in self._model.network.named_parameters()
        }

    def model(self) -> LanguageModel:
        """A network that holds the average in the student's dtype."""
        return self._model

    @torch.no_grad()
    def after_step(self) -> None:
        """Move the average towards the student."""
        for name, parameter in self._student.network.named_parameters():
            self._average[name].lerp_(parameter.detach().float(), self._rate)
        self._show()

    def state(self) -> dict[str, Tensor]:
        """The average, float32."""
        return dict(self._average)

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore the average."""
        _expect(state, self._average)
        for name, average in self._average.items():
            average.copy_(state[name])
        self._show()

    @torch.no_grad()
    def _show(self) -> None:
        for name, parameter in self._model.network.named_parameters():
            parameter.copy_(self._average[name])


def make_teacher(weights: TeacherWeights, student: LanguageModel) -> Teacher:
    """The teacher that a method's setting names."""
    match weights:
        case FrozenWeights():
            return FrozenTeacher(student)
        case LiveWeights():
            return LiveTeacher(student)
        case EmaWeights(rate=rate):
            return EmaTeacher(student, rate)


def _copy(student: LanguageModel) -> LanguageModel:
    network = copy.deepcopy(student.network).eval().requires_grad_(False)
    return LanguageModel(network, student.tokenizer, student.name)


def _expect(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    if set(state) != set(own):
        odd = sorted(set(state) ^ set(own))[:3]
        raise ValueError(f"teacher state does not fit this model; differing tensors: {odd}")
