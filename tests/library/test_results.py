"""The package as a library: what `import epistill` costs and offers, and the record it gives back."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import FrozenInstanceError
from pathlib import Path

import polars as pl
import pytest

import epistill
from epistill.library.results import Result
from epistill.number_rows import estimate_rows

ROOT = Path(epistill.__file__).parent
SCORE = {"value": 0.5, "low": None, "high": None, "problems": 1}


def test_the_import_takes_nothing_with_it():
    code = "import sys, epistill; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    loaded = set(done.stdout.split())
    assert "epistill" in loaded
    assert not loaded & {"torch", "pydantic", "numpy", "polars", "typer", "rich", "transformers"}


def test_it_offers_what_the_readme_shows_and_nothing_that_is_not_there():
    assert set(epistill.__all__) <= set(dir(epistill))
    for name in epistill.__all__:
        assert getattr(epistill, name) is not None
    assert not hasattr(epistill, "no_such_name")
    assert (ROOT / "py.typed").is_file()
    readme = (ROOT.parents[1] / "README.md").read_text(encoding="utf-8")
    offered = set(epistill.__all__) - {"__version__"}
    assert [n for n in offered if f"`{n}`" not in readme and f"{n}(" not in readme] == []


def test_a_result_is_frozen_and_draws_itself():
    rows = ({"arm": "<b>", "value": 1.0}, {"arm": "two", "value": None, "low": 0.5})
    result = Result({}, rows, Path("a<b"), ("one & two",))
    with pytest.raises(FrozenInstanceError):
        result.path = None
    frame = result.to_polars()
    assert frame.columns == ["arm", "value", "low"]
    assert frame["low"].to_list() == [None, 0.5]
    drawn = result._repr_html_()
    assert "<p>one &amp; two</p>" in drawn
    assert "a&lt;b" in drawn
    assert "<b>" not in drawn
    assert "<table" in drawn


def test_rows_of_other_types_are_a_table_too():
    frame = Result({}, ({"value": 1}, {"value": 0.5}, {"value": None})).to_polars()
    assert frame["value"].to_list() == [1.0, 0.5, None]
    assert Result({}, ()).to_polars().equals(pl.DataFrame())


def test_every_interval_of_a_summary_is_a_row():
    summary = {"score": SCORE, "deep": {"list": [{"x": SCORE}]}, "count": 3, "none": None}
    rows = list(estimate_rows(summary, arm="base"))
    assert [row["measure"] for row in rows] == ["score", "deep/list/0/x"]
    assert all(row["arm"] == "base" and row["value"] == 0.5 for row in rows)
