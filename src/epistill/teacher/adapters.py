"""Teachers of a LoRA student: the same network with the adapter off, or with an averaged delta.

Enters: a student whose network is a peft LoRA model. Leaves: teachers of it. The base exists once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from epistill.axes import TeacherWeights
from epistill.rollouts.model import LanguageModel
from epistill.teacher.weights import Teacher


def lora_layers(model: LanguageModel) -> dict[str, LoraLayer]:
    """Every adapted layer by name."""
    return {
        name: module
        for name, module in model.network.named_modules()
        if isinstance(module, LoraLayer)
    }


def weight_delta(layer: LoraLayer) -> Tensor:
    """What the active adapters add to the layer's weight, sum of scale B A; sharded as they are."""
    adapted: Any = layer
    delta: Any = sum(adapted.get_delta_weight(name) for name in layer.active_adapters)
    return delta.redistribute(placements=[Shard(0)]) if isinstance(delta, DTensor) else delta


class _BaseTeacher(Teacher):
    """The student's network with the adapter off."""

    @contextmanager
    def scoring(self) -> Iterator[LanguageModel]:
        network: Any = self._student.network
        trained = [p for p in network.parameters() if p.requires_grad]
        with super().scoring() as model, network.disable_adapter():
            # peft freezes what it turns off; FSDP2 reads at a first pass what is trained, for good.
            for parameter in trained:
                parameter.requires_grad_(True)
            yield model


class AdapterOffTeacher(_BaseTeacher):
    """The base with the adapter off: the weights at the start of a run whose adapter starts at 0.

    Raises:
        ValueError: The adapter is not zero at the start; then the base is not where training began.
    """

    def __init__(self, student: LanguageModel) -> None:
        super().__init__(student)
        moved = [n for n, layer in lora_layers(student).items() if weight_delta(layer).any()]
        if moved:
            raise ValueError(
                f"a frozen teacher of a LoRA student is its base with the adapter off, but the "
                f"adapter already changes {moved[0]}; merge it into the base first"
            )


class EmaDeltaTeacher(_BaseTeacher):
    """The base plus a moving average of the *weight delta* B A, in float32.

    Averaging A and B apart is another thing: mean(B) mean(A) is not mean(B A), and early in
    training, where B grows from zero, it is a small part of it. The exact average has growing rank,
    so it is kept dense, for the adapted layers only.
    """

    def __init__(self, student: LanguageModel, weights: TeacherWeights) -> None:
        super().__init__(student)
        self._weights = weights
        self._batches = torch.zeros((), dtype=torch.long)
        self._deltas: dict[str, Tensor] = {}
        head = student.output_layer()
        for name, layer in lora_layers(student).items():
            if layer is head or not isinstance(layer.get_base_layer(), nn.Linear):
                raise ValueError(
                    f"an EMA teacher averages the deltas of linear layers below the head; {name} "
                    "is adapted too; leave it out of the adapter's target modules"
                )
            self._deltas[name] = weight_delta(layer).detach().float().clone()

    @contextmanager
    def scoring(self) -> Iterator[LanguageModel]:
        """The base with the averaged delta added to the output of every adapted layer."""
        with super().scoring() as model, ExitStack() as hooks:
            for name, layer in lora_layers(model).items():
                hook = partial(_plus, self._deltas[name])
                hooks.callback(layer.get_base_layer().register_forward_hook(hook).remove)
            yield model

    @torch.no_grad()
    def student_laid_out(self) -> None:
        """Shard the averages as the student's own deltas are now."""
        for name, layer in lora_layers(self._student).items():
            now = weight_delta(layer)
            if isinstance(now, DTensor):
                self._deltas[name] = distribute_tensor(
                    self._deltas[name], now.device_mesh, now.placements
                )

    @torch.no_grad()
    def after_batch(self) -> None:
        """Move the average towards the student's delta."""
        self._batches += 1
        rate = self._weights.rate_after(int(self._batches))
        for name, layer in lora_layers(self._student).items():
            self._deltas[name].lerp_(weight_delta(layer).float(), rate)

    def state(self) -> dict[str, Tensor]:
        """The averaged deltas, float32, and the count of batches."""
        deltas = {f"{name}.delta": delta for name, delta in self._deltas.items()}
        return {**deltas, "batches": self._batches}


def _plus(delta: Tensor, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """A forward hook: the layer's output with a delta of its weight."""
    weight = delta.to(inputs[0].dtype)
    if isinstance(weight, DTensor):
        weight = weight.full_tensor()
    return output + nn.functional.linear(inputs[0], weight)
