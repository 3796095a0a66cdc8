"""A Schmitt gate on the teacher's entropy: a signal is on only while the teacher is unsure enough.

Enters: a method, and at every optimiser step the evidence. Leaves: whether the gated signal is on.
Only an `AscentShape` has a gate; for every other method it is open always.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from epistill.axes import Method
from epistill.blends import AscentShape
from epistill.training.step_records import Evidence


class EntropyGate:
    """State: the entropies of the warm-up, and whether the gate is open.

    Args:
        method: Its shape sets warm-up and threshold.
    """

    def __init__(self, method: Method) -> None:
        self._shape = method.shape if isinstance(method.shape, AscentShape) else None
        self._warm: list[float] = []
        self._open = True

    def observe(self, evidence: Sequence[Evidence]) -> bool:
        """Take in a step's evidence; return whether the signal is on at this step.

        The statistic is the median of the teacher's entropy over all scored tokens of the step. A
        step in which the teacher scored nothing, or nothing but NaN, leaves the gate as it is.
        """
        shape = self._shape
        if shape is None:
            return True
        parts = [e.teacher.entropies for e in evidence if e.teacher is not None]
        warming = len(self._warm) < shape.warmup_steps
        median = float(torch.cat(parts).median()) if parts else math.nan
        if not math.isnan(median):
            if warming:
                self._warm.append(median)
            else:
                level = sum(self._warm) / len(self._warm)
                if median >= level:
                    self._open = True
                elif median < shape.gate_off * level:
                    self._open = False
        return self._open and not warming

    def state(self) -> dict[str, object]:
        """For the checkpoint; JSON."""
        return {"warm": list(self._warm), "open": self._open}

    def load_state(self, state: Mapping[str, object]) -> None:
        """Restore what `state` gave."""
        warm = state["warm"]
        assert isinstance(warm, list)
        self._warm, self._open = [float(value) for value in warm], bool(state["open"])
