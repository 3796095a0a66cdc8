"""What one optimiser step knows about each response, and what a method may ask to know. No torch.

Enters: nothing. Leaves: records. `ScoredRow` is what the author of a token weight or of a shaped
advantage reads; `Needs` is how they say which of its scores must have been computed.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from epistill.errors import EpistillError

if TYPE_CHECKING:
    from torch import Tensor
else:
    Tensor = Any


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
            weights sampled it (`training.server_rollouts`); None for 1.
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

    def prompt_of(self, view: str) -> tuple[int, ...]:
        """What a network reads before the response, by view of a target; () where it has none."""
        return {
            "teacher": self.teacher_prompt_ids,
            "start": self.prompt_ids,
            "context_alone": self.reference_prompt_ids,
            "wrong_sibling": next(iter(self.negative_prompt_ids), None),
        }[view] or ()


@dataclass(slots=True)
class PreStepScores:
    """Scores of one row's tokens before the step; None for what the method does not need.

    Attributes:
        teacher_log_probs: [T], under the row's context.
        teacher_entropies: [T], likewise; known wherever this process scored it.
        negatives: [K, T] log-probs of the teacher under the contrasting views.
        start_log_probs: [T] of the weights at the start, under the student's prompt.
        student_entropies: [T] when it was sampled.
        student_marker_mass, teacher_marker_mass: [T] probability that a marker begins there.
    """

    teacher_log_probs: Tensor | None = None
    teacher_entropies: Tensor | None = None
    negatives: Tensor | None = None
    start_log_probs: Tensor | None = None
    student_entropies: Tensor | None = None
    student_marker_mass: Tensor | None = None
    teacher_marker_mass: Tensor | None = None


def _known(part: str, name: str) -> Any:
    """A property: a field of one part as a tensor, which the method must have asked for."""

    def read(row: ScoredRow) -> Tensor:
        import torch

        values = getattr(getattr(row, part), name)
        if values is None:
            raise EpistillError(
                f"a method read {name} of a response, which nobody computed; expected its `needs` "
                "to ask for what it reads (docs/methods.md), and traces have no log-probs"
            )
        return torch.as_tensor(values)

    return property(read)


@dataclass(frozen=True, slots=True)
class ScoredRow:
    """One response as a token weight or a shape sees it; [T] is per completion token.

    Attributes:
        row: The response and the verifier's signal.
        scores: As far as the method `needs` them.
        markers: [T], true where a token belongs to an epistemic marker.
        student_log_probs: [T], of the student when it sampled.
        teacher_log_probs: [T], nats; needs `teacher_scores`.
        teacher_entropies: [T], nats; needs its own name.
        student_entropies: [T], nats; needs `student_entropies`.
        student_marker_mass: [T], probability that the student begins a marker; needs its own name.
        teacher_marker_mass: [T], that the teacher does; needs its own name.
        negatives: [K, T], the teacher's in other views; needs `wrong_siblings` or
            `other_questions`.
    """

    row: TrainingRow
    scores: PreStepScores

    markers = _known("row", "markers")
    student_log_probs = _known("row", "old_log_probs")
    teacher_log_probs = _known("scores", "teacher_log_probs")
    teacher_entropies = _known("scores", "teacher_entropies")
    student_entropies = _known("scores", "student_entropies")
    student_marker_mass = _known("scores", "student_marker_mass")
    teacher_marker_mass = _known("scores", "teacher_marker_mass")
    negatives = _known("scores", "negatives")

    @property
    def length(self) -> int:
        """T: tokens of the response."""
        return len(self.row.completion_ids)

    @property
    def advantage(self) -> float:
        """The verifier's advantage."""
        return self.row.advantage

    @property
    def correct(self) -> bool | None:
        """The verifier's verdict; None for traces."""
        return self.row.correct

    @property
    def has_context(self) -> bool:
        """Whether the teacher sees more than the question."""
        return self.row.teacher_prompt_ids is not None

    @property
    def log_ratio(self) -> Tensor:
        """[T] u = log p_teacher - log p_student; needs `teacher_scores`."""
        return self.teacher_log_probs - self.student_log_probs


@dataclass(frozen=True, slots=True)
class Needs:
    """What must be known about the sampled tokens before a step; `|` asks for both.

    Attributes:
        teacher_scores: The teacher's log-probs (one more forward pass).
        teacher_entropies: Its entropies (no pass beyond that of `teacher_scores`, which goes with
            it): of its whole distribution, which a server does not list.
        wrong_siblings: Views of the teacher with so many wrong siblings as context (a pass each).
        other_questions: Views with the same context under so many other questions (a pass each).
        student_entropies: The student's when it sampled (no pass: the sampler records them).
        start_log_probs: Of the weights at the start (one pass).
        verdicts: Whether each response was right: not known for traces.
        student_marker_mass: Probability that the student begins a marker (one pass).
        teacher_marker_mass: That the teacher does (no pass beyond that of `teacher_scores`, which
            goes with it).
    """

    teacher_scores: bool = False
    wrong_siblings: int = 0
    other_questions: int = 0
    student_entropies: bool = False
    start_log_probs: bool = False
    verdicts: bool = False
    student_marker_mass: bool = False
    teacher_marker_mass: bool = False
    teacher_entropies: bool = False

    def __or__(self, other: Needs) -> Needs:
        return Needs(*(max(getattr(self, f.name), getattr(other, f.name)) for f in fields(Needs)))

    @property
    def contrasting_views(self) -> int:
        """Further prompts under which the teacher is asked."""
        return self.wrong_siblings + self.other_questions

    @property
    def asks_teacher(self) -> bool:
        """Whether any of it is the teacher's."""
        return self.teacher_scores or self.contrasting_views > 0

    @property
    def teacher_passes(self) -> int:
        """Of the teacher over a response, before the step."""
        return self.teacher_scores + self.contrasting_views

    @property
    def forward_passes(self) -> int:
        """Over a response, before the step."""
        return self.teacher_passes + self.start_log_probs + self.student_marker_mass

    def met_by(self, scores: PreStepScores) -> bool:
        """Whether the teacher could be asked all that is wanted of it."""
        teacher = scores.teacher_log_probs is not None or not self.teacher_scores
        return teacher and (scores.negatives is not None or not self.contrasting_views)


@dataclass(frozen=True, slots=True)
class Progress:
    """Where training stands: schedules depend on it.

    Attributes:
        step: Rollout batches done.
        steps: Of the whole run.
        memory: What the method's shape keeps from step to step (`Shape.remember`); JSON.
        max_new_tokens: Of the sampling; the constant of "constant_length".
    """

    step: int = 0
    steps: int = 1
    memory: MutableMapping[str, Any] = field(default_factory=dict[str, Any])
    max_new_tokens: int = 1
