"""Numbers with their intervals as text, for pages and terminals alike. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def format_estimate(estimate: Mapping[str, Any] | None, digits: int = 3) -> str:
    """As "0.512 [0.480, 0.544]", or a dash where there is nothing."""
    if estimate is None:
        return "–"
    value = f"{estimate['value']:.{digits}f}"
    if estimate["low"] is None:
        return value
    return f"{value} [{estimate['low']:.{digits}f}, {estimate['high']:.{digits}f}]"


def format_signed(estimate: Mapping[str, Any] | None, digits: int = 3) -> str:
    """The same for a difference, with its sign."""
    if estimate is None:
        return "–"
    value = f"{estimate['value']:+.{digits}f}"
    if estimate["low"] is None:
        return value
    return f"{value} [{estimate['low']:+.{digits}f}, {estimate['high']:+.{digits}f}]"
