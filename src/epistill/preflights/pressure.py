"""What a context does to doubt, on the student's own responses.

u_t and the change of marker mass (probability of the tokens that begin a marker, teacher minus
student) are averaged over tokens; problems are resampled. "written" are the positions where the
student began a marker, "elsewhere" all others, where it could have; the two add up to the whole.

The reweighted numbers ask what the teacher would have the student say *more often* of what it says
anyway: within a problem, responses are weighted by softmax(sum_t u_t), self-normalised importance
weights from the student to the teacher on the student's own support.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
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

    @property
    def problem(self) -> str:
        """Its cluster."""
        return self.item.problem.id


def rows_of(guided: ContextMeasurement, student: Student) -> list[GuidedResponse]:
    """The responses that have this context."""
    found: list[GuidedResponse] = []
    for item, tokens, bare, teacher in zip(
        student.graded, student.tokens, student.bare, guided.teacher, strict=True
    ):
        if teacher is not None:
            mass, entropies, mass_slack, entropy_slack = (
                (_floats(getattr(bare, name)), _floats(getattr(teacher, name)))
                for name in ("mass", "entropies", "mass_slack", "entropy_slack")
            )
            found.append(
                GuidedResponse(
                    item,
                    tokens,
                    u_nats(teacher, bare),
                    mass,
                    entropies,
                    mass_slack[0] + mass_slack[1],
                    entropy_slack[0] + entropy_slack[1],
                )
            )
    return found


def _floats(column: Tensor) -> Floats:
    return column.double().numpy()


def fork_threshold(student: Student, quantile: float) -> float:
    """Entropy (nats) that a share of 1 - quantile of the student's positions exceeds."""
    return float(
        np.quantile(np.concatenate([_floats(s.entropies) for s in student.bare]), quantile)
    )


def pressure(rows: Sequence[GuidedResponse]) -> dict[str, Any]:
    """Change of marker mass per 1,000 tokens, its split, and its share of the student's mass.

    Returns:
        student_mass_per_1k_tokens; change_per_1k_tokens, change_written_per_1k_tokens,
        change_elsewhere_per_1k_tokens (adding up); mass_change_share (change over the student's
        mass, -1 for all of it gone); kl_nats_per_token (mean of -u, an unbiased estimate of
        KL(student || teacher) over sampled tokens). `bound_per_1k_tokens`: what the vocabulary
        outside a server's top k could add to or take from any of these changes; 0.0 in process.
    """
    names = [row.problem for row in rows]
    changes = [row.mass[1] - row.mass[0] for row in rows]
    lengths = [float(len(change)) for change in changes]
    total = [float(change.sum()) for change in changes]
    written = [float(c[r.tokens.starts].sum()) for c, r in zip(changes, rows, strict=True)]
    elsewhere = [a - b for a, b in zip(total, written, strict=True)]
    mass = [float(row.mass[0].sum()) for row in rows]
    per_1k = {
        "student_mass_per_1k_tokens": (mass, lengths),
        "change_per_1k_tokens": (total, lengths),
        "change_written_per_1k_tokens": (written, lengths),
        "change_elsewhere_per_1k_tokens": (elsewhere, lengths),
    }
    slack = sum(float(row.mass_slack.sum()) for row in rows)
    return {
        **ratios(names, per_1k, scale=PER_1K),
        **ratios(
            names,
            {
                "mass_change_share": (total, mass),
                "kl_nats_per_token": ([-float(row.u.sum()) for row in rows], lengths),
            },
        ),
        "bound_per_1k_tokens": PER_1K * slack / sum(lengths) if rows else None,
    }


def u_by_class(rows: Sequence[GuidedResponse]) -> dict[str, dict[str, Estimate | None]]:
    """Mean u_t (nats) per class of token, over all of the response and per quarter of it.

    Returns:
        {class: {"all", "q1", ..., "q4"}}; None where no token is of that class there.
    """
    columns: dict[str, tuple[list[float], list[float]]] = {}
    for kind, name in enumerate((*CLASSES, "any")):
        for part in range(QUARTILES + 1):
            chosen = [_chosen(row, kind, part) for row in rows]
            columns[f"{name}/{part}"] = (
                [float(row.u[here].sum()) for row, here in zip(rows, chosen, strict=True)],
                [float(here.sum()) for here in chosen],
            )
    found = ratios([row.problem for row in rows], columns)
    parts = ("all", *(f"q{i + 1}" for i in range(QUARTILES)))
    return {
        name: {part: found[f"{name}/{i}"] for i, part in enumerate(parts)}
        for name in (*CLASSES, "any")
    }


def _chosen(row: GuidedResponse, kind: int, part: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    length = len(row.tokens.classes)
    here = np.ones(length, dtype=np.bool_)
    if kind < len(CLASSES):
        here &= row.tokens.classes == kind
    if part > 0:
        here &= np.arange(length) * QUARTILES // length == part - 1
    return here


def forks(rows: Sequence[GuidedResponse], threshold: float) -> dict[str, Estimate | None]:
    """Share of positions above the threshold, under student and teacher, and the difference."""
    lengths = [float(len(row.u)) for row in rows]
    student = [float((row.entropies[0] > threshold).sum()) for row in rows]
    teacher = [float((row.entropies[1] > threshold).sum()) for row in rows]
    return ratios(
        [row.problem for row in rows],
        {
            "student_share": (student, lengths),
            "teacher_share": (teacher, lengths),
            "change": ([t - s for t, s in zip(teacher, student, strict=True)], lengths),
        },
    )


def reweighted(rows: Sequence[GuidedResponse]) -> dict[str, Estimate | None]:
    """Score, length and markers of the student's responses as the teacher weighs them, minus plain.

    Returns:
        gain_score, gain_length_tokens, gain_markers_per_response; `effective_share`, the effective
        number of responses over their number (near 1/k, one response has all the weight). Problems
        with a single response that has a context are left out.
    """
    names = [row.problem for row in rows]
    measures = {
        "gain_score": [row.item.grade.score for row in rows],
        "gain_length_tokens": [float(len(row.u)) for row in rows],
        "gain_markers_per_response": [float(total_markers(row.item.rollout.text)) for row in rows],
    }
    counts = sums_by_problem(names, [[1.0] * len(rows)])[:, 0] if rows else np.zeros(0)
    if not (counts > 1).any():
        return dict.fromkeys((*measures, "effective_share"), None)
    weights = np.concatenate(
        [
            _softmax(np.array([rows[i].u.sum() for i in members]))
            for members in _groups(names).values()
        ]
    )
    order = [i for members in _groups(names).values() for i in members]
    ordered = [names[i] for i in order]
    several = counts > 1
    found: dict[str, Estimate | None] = {}
    for name, values in measures.items():
        column = np.array(values)[order]
        sums = sums_by_problem(ordered, [weights * column, column])
        found[name] = bootstrap_mean((sums[:, 0] - sums[:, 1] / counts)[several])
    squares = sums_by_problem(ordered, [weights**2])[:, 0]
    found["effective_share"] = bootstrap_mean((1 / squares / counts)[several])
    return found


def _groups(names: Sequence[str]) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        groups.setdefault(name, []).append(i)
    return groups


def _softmax(values: Floats) -> Floats:
    exps = np.exp(values - values.max())
    return exps / exps.sum()
