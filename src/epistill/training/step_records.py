"""The records of one optimiser step: rows, the evidence about them, the signal of their tokens."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from epistill.rollouts.scoring import TokenScores


@dataclass(frozen=True, slots=True)
class TrainingRow:
    """One response with its training signal.

    Attributes:
        prompt_ids: What the student read.
        completion_ids: The response.
        old_log_probs: log p of its tokens when it was sampled, at the sampling temperature; None
            for traces nobody's policy sampled (then the surrogate is the log-likelihood).
        advantage: The verifier's signal, the same for all its tokens.
        teacher_prompt_ids: What the teacher read; None where there is no context.
        correct: The verifier's verdict; None for traces.
        uniform: All rewards of its group were equal.
        negative_prompt_ids: What the teacher read in the contrasting views, if the method has any.
        reference_prompt_ids: The context without the question, if the method's target asks for it.
        entropies: The student's entropies when it was sampled; None where they are not known.
        markers: Which tokens belong to an epistemic marker; None where nobody asked.
        importance: Weight of each token in every term of the loss, where another engine or older
            weights sampled it (`train.engine`); None for 1.
    """

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    old_log_probs: tuple[float, ...] | None
    advantage: float
    teacher_prompt_ids: tuple[int, ...] | None
    correct: bool | None = None
    uniform: bool = False
    negative_prompt_ids: tuple[tuple[int, ...], ...] = ()
    reference_prompt_ids: tuple[int, ...] | None = None
    entropies: tuple[float, ...] | None = None
    markers: tuple[bool, ...] | None = None
    importance: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("old_log_probs", "entropies", "markers", "importance"):
            values = getattr(self, name)
            if values is not None and len(values) != len(self.completion_ids):
                raise ValueError(f"{name} and completion_ids differ in length")


@dataclass(slots=True)
class Evidence:
    """Scores of one row's tokens; None for what the method does not need.

    Attributes:
        teacher: Under the row's context.
        negatives: [K, T] log-probs of the teacher under the contrasting views.
        start_log_probs: [T] of the weights at the start, under the student's prompt.
        student_entropies: [T] when it was sampled.
    """

    teacher: TokenScores | None = None
    negatives: Tensor | None = None
    start_log_probs: Tensor | None = None
    student_entropies: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """Where training stands: schedules and gates depend on it.

    Attributes:
        step: Optimiser steps done.
        steps: Of the whole run.
        gate_open: Whether an entropy-gated signal is on at this step.
        max_new_tokens: Of the sampling; the constant of "constant_length".
    """

    step: int = 0
    steps: int = 1
    gate_open: bool = True
    max_new_tokens: int = 1


@dataclass(frozen=True, slots=True)
class TokenSignal:
    """Per completion token of one row, [T] each.

    Attributes:
        distillation: Weight of the divergence in the loss; None where the row is not distilled.
        gradient: Weight of the surrogate in the loss; None where the row is not reinforced.
        advantage: Of each token.
        reference: Weight of the squared log-ratio to the start; None for none.
    """

    distillation: Tensor | None
    gradient: Tensor | None
    advantage: Tensor
    reference: Tensor | None = None

    @property
    def active(self) -> bool:
        """Whether the row needs a forward pass of the student."""
        return any(w is not None for w in (self.distillation, self.gradient, self.reference))
