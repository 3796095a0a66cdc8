"""What the functions of the package give back: a frozen record that a notebook can draw."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from epistill.errors import EpistillError

if TYPE_CHECKING:
    import polars as pl

Place = str | Path


@dataclass(frozen=True, slots=True)
class Flag:
    """How the command line offers a parameter of a function; one without it is not offered.

    Attributes:
        help: What it means.
        names: Its flags, where they are not its own name.
        known: What a shell completes, beside files.
    """

    help: str = ""
    names: tuple[str, ...] = ()
    known: Callable[[], Iterable[str]] | None = None


Page = Annotated[Place | None, Flag("Write a page (one offline HTML).", ("--report",))]
Written = Annotated[Place | None, Flag("Write everything as JSON.")]
Export = Annotated[
    Place | None, Flag("Folder: every table as CSV and parquet, every plot as SVG and PNG.")
]
Traces = Annotated[
    Place | Sequence[Place],
    Flag("JSON lines (any name; gzip, zstd) or parquet files, or folders of them."),
]
ProblemField = Annotated[
    str | None, Flag("What tells problems apart; default: an id, else the question.")
]
Lexicons = Annotated[
    Sequence[str] | None,
    Flag("Name or JSON file; repeatable. Default: English and Chinese.", ("--lexicon",)),
]
Seed = Annotated[int, Flag("Names every random draw.")]
Workers = Annotated[int, Flag("Processes.")]


@dataclass(frozen=True, slots=True)
class Result:
    """What one function found.

    Attributes:
        summary: Everything, as the command prints it with `--json`. What is not known is None.
        rows: A flat table of it; the function's documentation says of what.
        path: The folder or page that was written; None where nothing was.
        warnings: What a reader must not miss, a line each; the command prints them on stderr.
    """

    summary: Mapping[str, Any] = field(repr=False)
    rows: tuple[Mapping[str, Any], ...] = field(repr=False)
    path: Path | None = None
    warnings: tuple[str, ...] = ()

    def to_polars(self) -> pl.DataFrame:
        """`rows` as a polars frame; columns in the order in which they first occur."""
        import polars as pl

        names = dict.fromkeys(name for row in self.rows for name in row)
        return pl.DataFrame(
            {name: pl.Series([row.get(name) for row in self.rows], strict=False) for name in names}
        )

    def _repr_html_(self) -> str:
        """The table, under the warnings and the place, for a notebook."""
        from markupsafe import escape

        lines = [*self.warnings, *([] if self.path is None else [str(self.path)])]
        return "".join(f"<p>{escape(line)}</p>" for line in lines) + self.to_polars()._repr_html_()


def at_least_one(flag: str, value: int | None) -> None:
    """Refuse a flag that asks for none."""
    if value is not None and value < 1:
        raise EpistillError(f"{flag} is {value}; expected at least 1")


def interval(estimate: Mapping[str, Any] | None) -> dict[str, float | None]:
    """The columns of a number with its interval; None in each where there is no number."""
    return {name: (estimate or {}).get(name) for name in ("value", "low", "high")}


def as_path(place: Place | None) -> Path | None:
    """Where the user says; None where they do not."""
    return None if place is None else Path(place)
