"""One line per training step for people, and why a step had nothing to learn from. Torch-free."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from epistill.axes import Method

EQUAL_REWARDS = "all rewards of every problem are equal"
NO_CONTEXT = "no response has a context for the teacher"
NO_WEIGHT = "no token has a weight"


def step_line(row: Mapping[str, Any], steps: int, method: Method) -> str:
    """A step's record in words.

    Args:
        row: Of metrics.jsonl.
        steps: Of the whole run.
        method: Which signals could have been there.
    """
    line = (
        f"step {row['step'] + 1} of {steps}: reward {row['reward']:.3f}, "
        f"{row['length_tokens']:.0f} tokens, {row['density_per_1k_tokens']:.1f} markers per 1,000 "
        f"tokens, loss {row['loss']:.4g}"
        if row["loss"] is not None
        else f"step {row['step'] + 1} of {steps}: no finite loss, skipped"
    )
    reason = why_no_signal(row, method)
    return line if reason is None else f"{line}; nothing to learn from: {reason}"


def why_no_signal(row: Mapping[str, Any], method: Method) -> str | None:
    """Why no response of a step carried a signal; None where one did."""
    if row.get("trained_rows") != 0:
        return None
    reasons = []
    if method.blend.gradient_share > 0 and row.get("rows_with_unequal_rewards") == 0:
        reasons.append(EQUAL_REWARDS)
    if method.needs_teacher and row.get("rows_with_context") == 0:
        reasons.append(NO_CONTEXT)
    return " and ".join(reasons) or NO_WEIGHT


def steps_without_signal(rows: Sequence[Mapping[str, Any]], method: Method) -> dict[str, int]:
    """Reason -> steps for which it holds."""
    return dict(
        Counter(reason for row in rows if (reason := why_no_signal(row, method)) is not None)
    )


def idle_steps_line(without: Mapping[str, int], steps: int) -> str | None:
    """What a reader must know of the steps that changed nothing; None where every step did.

    Args:
        without: Of `steps_without_signal`.
        steps: Done.
    """
    if not without:
        return None
    reasons = "; ".join(f"{reason} ({count})" for reason, count in without.items())
    return (
        f"{sum(without.values())} of {steps} steps had nothing to learn from and changed no "
        f"weight: {reasons}; take problems that the model solves sometimes, or more "
        "samples_per_problem"
    )
