"""What must be known about the sampled tokens before the step: teachers' log-probs and entropies.

Enters: rows and a method. Leaves: `PreStepScores` per row. Only what the method needs is computed,
one no-gradient pass per view; most methods need none of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from epistill.axes import Method
from epistill.errors import EpistillError
from epistill.metrics.lexicon import load_lexicon
from epistill.rollouts.engine import Engine, Ids, TokenScores
from epistill.rollouts.in_process_engine import InProcessEngine
from epistill.rollouts.marker_tokens import first_tokens
from epistill.rollouts.model import LanguageModel
from epistill.teacher.weights import LiveTeacher, Teacher
from epistill.training_rows import PreStepScores, TrainingRow


def gather_scores(
    rows: Sequence[TrainingRow],
    method: Method,
    student: LanguageModel,
    teacher: Teacher | None,
    base: Teacher | None,
    *,
    temperature: float,
    microbatch_tokens: int,
    teacher_engine: Engine | None = None,
) -> list[PreStepScores]:
    """Score the rows under every view the method needs.

    Args:
        rows: All rows of the rollout batch.
        method: Where on the five axes.
        student: For its own entropies where the sampler did not record them.
        teacher: The method's teacher.
        base: The weights at the start, for a reference term.
        temperature, microbatch_tokens: As in the step.
        teacher_engine: Servers that have the teacher's weights and say its log-probs, no more;
            None asks the teacher in process.
    """

    def score(
        owner: Teacher | None,
        views: Sequence[tuple[int, Ids]],
        mass_of: Ids | None = None,
        by: Engine | None = None,
    ) -> Iterator[tuple[PreStepScores, TokenScores]]:
        """Of (row, prompt), what is found of the row so far and its scores under the prompt."""
        assert owner is not None
        with owner.scoring() as model:
            engine = by or InProcessEngine(
                model, microbatch_tokens=microbatch_tokens, temperature=temperature
            )
            completions = [rows[i].completion_ids for i, _ in views]
            scores = engine.score([prompt for _, prompt in views], completions, mass_of=mass_of)
        if by is not None:  # servers say float64, of sums that were float32
            scores = [replace(one, log_probs=one.log_probs.float()) for one in scores]
        return zip((found[i] for i, _ in views), scores, strict=True)

    needs, numbered = method.needs, list(enumerate(rows))
    found = [PreStepScores() for _ in rows]
    markers = None
    if needs.student_marker_mass or needs.teacher_marker_mass:
        markers = marker_ids(student)
    if needs.asks_teacher:
        shown = [(i, ids) for i, row in numbered if (ids := row.teacher_prompt_ids) is not None]
        mass = markers if needs.teacher_marker_mass else None
        for mine, one in score(teacher, shown, mass, teacher_engine):
            mine.teacher_log_probs = one.log_probs
            if teacher_engine is None:  # a server's are bounds
                mine.teacher_entropies, mine.teacher_marker_mass = one.entropies, one.mass
        several = numbered if needs.contrasting_views else []
        contrasting = [(i, ids) for i, row in several for ids in row.negative_prompt_ids]
        for mine, one in score(teacher, contrasting, by=teacher_engine):
            before: list[Tensor] = [] if mine.negatives is None else [mine.negatives]
            mine.negatives = torch.cat([*before, one.log_probs.unsqueeze(0)])
    if needs.start_log_probs:
        for mine, one in score(base, [(i, row.prompt_ids) for i, row in numbered]):
            mine.start_log_probs = one.log_probs
    if needs.student_entropies or needs.student_marker_mass:
        mass = markers if needs.student_marker_mass else None
        asked = [(i, r.prompt_ids) for i, r in numbered if mass is not None or r.entropies is None]
        for mine, one in score(LiveTeacher(student), asked, mass):  # without dropout, as it sampled
            mine.student_marker_mass = one.mass
            mine.student_entropies = one.entropies if needs.student_entropies else None
    if needs.student_entropies:
        for mine, row in zip(found, rows, strict=True):
            if row.entropies is not None:
                mine.student_entropies = torch.tensor(row.entropies)
    return found


def marker_ids(student: LanguageModel) -> Ids:
    """Tokens that begin a marker of the paper.

    Raises:
        EpistillError: The tokenizer has none.
    """
    found = first_tokens(student.tokenizer, load_lexicon()).ids
    if not found:
        raise EpistillError(
            f"no token of {student.name!r} begins a marker, so their probability is not known; "
            "leave out the token weight marker_probability"
        )
    return found
