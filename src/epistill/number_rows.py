"""The numbers of a summary as rows: one walk for tables, exports and trackers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def number_rows(found: Any, *path: str, **labels: Any) -> Iterator[dict[str, Any]]:
    """One row for each number anywhere in a summary; what is None, text or yes and no has none.

    Args:
        found: A summary, or a part of one.
        path: Its name, joined to `measure` in the rows.
        labels: Columns that all rows have.

    Example:
        >>> score = {"value": 1.0, "low": None, "high": None}
        >>> list(number_rows({"score": score, "of": [3]}, arm="base"))
        [{'arm': 'base', 'measure': 'score', 'value': 1.0, 'low': None, 'high': None}, \
{'arm': 'base', 'measure': 'of/0', 'value': 3}]
    """
    if isinstance(found, Mapping) and {"value", "low", "high"} <= set(found):
        yield {**labels, "measure": "/".join(path), **found}
    elif isinstance(found, Mapping | list):
        parts = found.items() if isinstance(found, Mapping) else enumerate(found)
        for name, part in parts:
            yield from number_rows(part, *path, str(name), **labels)
    elif isinstance(found, int | float) and not isinstance(found, bool):
        yield {**labels, "measure": "/".join(path), "value": found}


def estimate_rows(found: Any, **labels: Any) -> Iterator[dict[str, Any]]:
    """Those with an interval, also where its ends are not known."""
    return (row for row in number_rows(found, **labels) if "low" in row)
