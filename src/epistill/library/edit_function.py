"""What `epistill edit` does, as a function."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from epistill.errors import EpistillError
from epistill.library.results import Place, Result, as_path


def edit(
    traces: Place | Sequence[Place],
    rules: Sequence[str],
    *,
    out: Place,
    share: float = 1.0,
    match_lengths: Place | None = None,
    answer_field: str | None = None,
    response_field: str | None = None,
    problem_field: str | None = None,
    opened_thinking: bool = False,
    seed: int = 0,
) -> Result:
    """Traces with words deleted, swapped or injected, re-checks cut, lengths matched.

    Rows: one per rule. `path` is what was written.
    """
    if not 0 < share <= 1:
        raise EpistillError(f"--share is {share:g}; expected a share above 0 and at most 1")
    from epistill.traces.edit import edit_files
    from epistill.traces.measure_summary import skipped_of
    from epistill.traces.references import GradeOptions

    options = GradeOptions(
        response_field=response_field,
        problem_field=problem_field,
        opened=opened_thinking,
        answer_field=answer_field,
    )
    several = [traces] if isinstance(traces, str | Path) else traces
    found = edit_files(
        [Path(one) for one in several],
        Path(out),
        rules,
        share=share,
        match_lengths=as_path(match_lengths),
        options=options,
        seed=seed,
    )
    warnings = [
        line for file, reading in found["reading"].items() for line in skipped_of(file, reading)
    ]
    rows = ({"rule": rule, **counts} for rule, counts in found["edits"].items())
    return Result(found, tuple(rows), Path(out), tuple(warnings))
