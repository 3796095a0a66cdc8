"""The results that the documentation keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from epistill.inputs import read_settings
from epistill.studies.draw_report import report_file

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"


def committed(study: str) -> dict[str, Any]:
    """A study's report, packed or not."""
    return read_settings(report_file(RESULTS / study))
