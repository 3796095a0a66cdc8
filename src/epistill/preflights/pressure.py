"""What a context does to doubt, on the student's own responses.

u_t and the change of marker mass (probability of the tokens that begin a marker, teacher minus
student) are averaged over tokens; problems are resampled. "written" are the positions where the
student began a marker, "elsewhere" all others, where it could have; the two add up to the whole.

The reweighted numbers ask what the teacher would have the student say *more often* of what it says
anyway: within a problem, responses are weighted by softmax(sum_t u_t), self-normalised importance
weights from the student to the teacher on the student's own support.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax
from torch import Tensor

from epistill.evaluation.stats import Estimate, bootstrap_mean
from epistill.metrics.epistemic import total_markers
from epistill.preflights.clustered_estimates import Floats, ratios, sums_by_problem
from epistill.preflights.context_scores import ContextMeasurement, Student, u_nats
from epistill.preflights.token_classes import CLASSES, TokenClasses
from epistill.records import GradedRollout

PER_1K = 1000.0
QUARTILES = 4


@dataclass(frozen=True, slots=True)
class GuidedResponse:
    """One student response that has a context; [T] each, bare question first, context second.

    Attributes:
        u: `u_nats`.
        mass: Probability of the tokens that begin a marker.
        entropies: Nats.
        mass_slack, entropy_slack: How far both sides' together may be off; 0 with all tokens.
    """

    item: GradedRollout
    tokens: TokenClasses
    u: Floats
    mass: tuple[Floats, Floats]
    entropies: tuple[Floats, Floats]
    mass_slack: Floats
    entropy_slack: Floats


def rows_of(guided: ContextMeasurement, student: Student) -> list[GuidedResponse]:
    """The responses that have this context."""
    aligned = zip(student.graded, student.tokens, student.bare, guided.teacher, strict=True)
    return [
        GuidedResponse(
            item=item,
            tokens=tokens,
            u=u_nats(teacher, bare),
            mass=(_floats(bare.mass), _floats(teacher.mass)),
            entropies=(_floats(bare.entropies), _floats(teacher.entropies)),
            mass_slack=_floats(bare.mass_slack) + _floats(teacher.mass_slack),
            entropy_slack=_floats(bare.entropy_slack) + _floats(teacher.entropy_slack),
        )
        for item, tokens, bare, teacher in aligned
        if teacher is not None
    ]


def _floats(column: Tensor | None) -> Floats:
    assert column is not None  # `mass_of` was asked for
    return column.double().numpy()


def _problems(rows: Sequence[GuidedResponse]) -> list[str]:
    return [row.item.problem.id for row in rows]


def _sums(columns: Iterable[Any]) -> Floats:
    return np.array([float(column.sum()) for column in columns])


def _lengths(rows: Sequence[GuidedResponse]) -> Floats:
    return np.array([float(len(row.u)) for row in rows])


def fork_threshold(student: Student, quantile: float) -> float:
    """Entropy (nats) that a share of 1 - quantile of the student's positions exceeds."""
    entropies = np.concatenate([_floats(scores.entropies) for scores in student.bare])
    return float(np.quantile(entropies, quantile))


def pressure(rows: Sequence[GuidedResponse]) -> dict[str, Any]:
    """Change of marker mass per 1,000 tokens, its split, and its share of the student's mass.

    Returns:
        student_mass_per_1k_tokens; change_per_1k_tokens, change_written_per_1k_tokens,
        change_elsewhere_per_1k_tokens (adding up); mass_change_share (change over the student's
        mass, -1 for all of it gone); kl_nats_per_token (mean of -u, an unbiased estimate of
        KL(student || teacher) over sampled tokens). `bound_per_1k_tokens`: what the vocabulary
        outside a server's top k could add to or take from any of these changes; 0.0 in process.
    """
    names, lengths = _problems(rows), _lengths(rows)
    changes = [row.mass[1] - row.mass[0] for row in rows]
    mass, total = _sums(row.mass[0] for row in rows), _sums(changes)
    written = _sums(c[row.tokens.starts] for c, row in zip(changes, rows, strict=True))
    per_1k = {
        "student_mass_per_1k_tokens": (mass, lengths),
        "change_per_1k_tokens": (total, lengths),
        "change_written_per_1k_tokens": (written, lengths),
        "change_elsewhere_per_1k_tokens": (total - written, lengths),
    }
    shares = {
        "mass_change_share": (total, mass),
        "kl_nats_per_token": (-_sums(row.u for row in rows), lengths),
    }
    slack = float(_sums(row.mass_slack for row in rows).sum())
    return {
        **ratios(names, per_1k, scale=PER_1K),
        **ratios(names, shares),
        "bound_per_1k_tokens": PER_1K * slack / float(lengths.sum()) if rows else None,
    }


def u_by_class(rows: Sequence[GuidedResponse]) -> dict[str, dict[str, Estimate | None]]:
    """Mean u_t (nats) per class of token, over all of the response and per quarter of it.

    Returns:
        {class: {"all", "q1", ..., "q4"}}; None where no token is of that class there.
    """

    def sums(kind: int, part: int) -> tuple[Floats, Floats]:
        chosen: list[NDArray[np.bool_]] = []
        for row in rows:
            kinds = row.tokens.classes
            quarter = np.arange(len(kinds)) * QUARTILES // len(kinds) + 1
            every_kind, every_part = kind == len(CLASSES), part == 0
            chosen.append(((kinds == kind) | every_kind) & ((quarter == part) | every_part))
        u = _sums(row.u[here] for row, here in zip(rows, chosen, strict=True))
        return u, _sums(chosen)

    parts = ("all", *(f"q{i + 1}" for i in range(QUARTILES)))
    return {
        name: ratios(_problems(rows), {part: sums(kind, i) for i, part in enumerate(parts)})
        for kind, name in enumerate((*CLASSES, "any"))
    }


def forks(rows: Sequence[GuidedResponse], threshold: float) -> dict[str, Estimate | None]:
    """Share of positions above the threshold, under student and teacher, and the difference."""
    student, teacher = (_sums(row.entropies[i] > threshold for row in rows) for i in (0, 1))
    counts = {"student_share": student, "teacher_share": teacher, "change": teacher - student}
    lengths = _lengths(rows)
    return ratios(_problems(rows), {name: (count, lengths) for name, count in counts.items()})


def reweighted(rows: Sequence[GuidedResponse]) -> dict[str, Estimate | None]:
    """Score, length and markers of the student's responses as the teacher weighs them, minus plain.

    Returns:
        gain_score, gain_length_tokens, gain_markers_per_response; `effective_share`, the effective
        number of responses over their number (near 1/k, one response has all the weight). Problems
        with a single response that has a context are left out.
    """
    names = _problems(rows)
    measures = {
        "gain_score": np.array([row.item.grade.score for row in rows]),
        "gain_length_tokens": _lengths(rows),
        "gain_markers_per_response": np.array(
            [float(total_markers(row.item.rollout.text)) for row in rows]
        ),
    }
    several = Counter(names).most_common(1)
    if not several or several[0][1] == 1:
        return dict.fromkeys((*measures, "effective_share"), None)
    weights, totals = np.zeros(len(rows)), _sums(row.u for row in rows)
    for name in dict.fromkeys(names):
        here = np.array(names) == name
        weights[here] = softmax(totals[here])
    counts = sums_by_problem(names, [np.ones(len(rows))])[:, 0]
    found: dict[str, Estimate | None] = {}
    for name, column in measures.items():
        guided, plain = sums_by_problem(names, [weights * column, column]).T
        found[name] = bootstrap_mean((guided - plain / counts)[counts > 1])
    squares = sums_by_problem(names, [weights**2])[:, 0]
    found["effective_share"] = bootstrap_mean((1 / squares / counts)[counts > 1])
    return found
