"""Everything that an optimiser step changes: what a checkpoint holds and a resumed run gets back.

Enters: a `RunConfig` and the loaded student. Leaves: a `TrainState`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from epistill.axes import FrozenWeights
from epistill.config import RunConfig
from epistill.rollouts.model import LanguageModel
from epistill.teacher.weights import Teacher, make_teacher, placed_copy, whole
from epistill.training.sharding import nowhere_whole, placement
from epistill.world import World


@dataclass(slots=True)
class TrainState:
    """State of training.

    Attributes:
        student: What samples and is evaluated: whole in every process, unless servers do both.
        trained: What the optimiser works on: the student itself, or its sharded copy.
        teacher: The method's; None if it asks none.
        base: The weights at the start, for methods that refer to them.
        memory: What the method's shape keeps from batch to batch; JSON.
        optimizer: Over the trained parameters.
        skipped_in_a_row: Optimiser steps without a finite gradient, up to now.
    """

    student: LanguageModel
    trained: LanguageModel
    teacher: Teacher | None
    base: Teacher | None
    optimizer: torch.optim.Optimizer
    memory: dict[str, Any] = field(default_factory=dict[str, Any])
    skipped_in_a_row: int = 0

    def teachers(self) -> dict[str, Teacher]:
        """By role; a frozen teacher that has both is there once."""
        roles = {"teacher": self.teacher, "base": self.base}
        if self.base is self.teacher:
            del roles["base"]
        return {role: teacher for role, teacher in roles.items() if teacher is not None}


def make_train_state(config: RunConfig, student: LanguageModel, world: World) -> TrainState:
    """Teachers are copied before the student is laid out over processes, and laid out alike.

    Raises:
        EpistillError: A sharded teacher would have to write its own contexts.
    """
    method = config.method
    sharded = world.size > 1 and config.parallel == "shard"
    if sharded and method.context.source == "regenerated":
        world.stop(
            "the context of this method is the teacher's own writing, and a sharded teacher cannot "
            'sample; use parallel = "replicate", or another context'
        )
    place = placement(config, world)
    student.compute_dtype = torch.bfloat16 if config.precision == "bf16" else None
    samples = place is not whole and not nowhere_whole(config, world.size)
    # Its own network comes last: a sharded one cannot be copied.
    trained = student.with_network(student.network) if samples else student
    teacher = make_teacher(method.teacher, trained, place) if method.needs_teacher else None
    base = None
    if method.needs_start:  # a frozen teacher has these weights already
        stays = teacher is not None and method.teacher.stays
        base = teacher if stays else make_teacher(FrozenWeights(), trained, place)
    if samples:
        trained.network = placed_copy(student, place, trained=True).network
    else:
        place(trained)
    if teacher is not None:
        teacher.student_laid_out()
    if config.activation_checkpointing:
        network: Any = trained.network  # a peft wrapper passes this on to its base
        network.gradient_checkpointing_enable({"use_reentrant": False})
    optimizer = torch.optim.AdamW(
        [p for p in trained.network.parameters() if p.requires_grad],
        lr=base_rate(config),
        weight_decay=config.weight_decay,
        betas=(0.9, 0.999),
    )
    return TrainState(student, trained, teacher, base, optimizer)


def base_rate(config: RunConfig) -> float:
    """The learning rate after warm-up: the run's, or the method's."""
    return config.learning_rate or config.method.learning_rate
