"""A finished study drawn again from its report.json, and exported. Trains nothing.

Enters: a study's folder. Leaves: its page, and the files of `report/exports.py` where asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from jinja2 import UndefinedError

from epistill.errors import MALFORMED, EpistillError, first_line
from epistill.inputs import PACKED, read_settings
from epistill.integrity import MANIFEST
from epistill.report.exports import export_report
from epistill.report.study_page import write_report
from epistill.store import RunStore, write_atomic
from epistill.studies.study_summary import report_line, with_estimates


def draw_again(
    folder: Path, out: Path | None = None, export: Path | None = None
) -> tuple[Path, list[str]]:
    """The page of a study from its report.json, its estimates made from its outcomes as of now.

    Args:
        folder: With report.json, which is written again where an estimate has changed and the page
            goes into the folder (not a packed one). Of an older version, without outcomes: drawn as
            it is.
        out: The page; None is report.html in the folder.
        export: Where every table and plot is written as a file too; None writes none.

    Returns:
        The page, and why no pictures could be exported, where that is to be said.

    Raises:
        EpistillError: No report.json, none that this version can draw, one of another study than
            the folder's, or a page that a study which is running there will draw itself.
    """
    store = RunStore(folder)
    source = report_file(folder)
    study = folder / "study.json"
    with store.locked() if study.is_file() and out is None else nullcontext():
        return _drawn(store, source, study, out, export)


def _drawn(
    store: RunStore, source: Path, study: Path, out: Path | None, export: Path | None
) -> tuple[Path, list[str]]:
    folder = store.folder
    if study.is_file() and not (folder / MANIFEST).is_file():
        raise EpistillError(
            f"{folder} has no {MANIFEST} to check {source.name} against; `epistill study` writes "
            "both anew"
        )
    store.check(source.name)
    data = read_settings(source)
    try:
        settings = data.get("settings")
        if settings and study.is_file() and _marks(read_settings(study)) != _marks(settings):
            raise EpistillError(
                f"{source} is of another study ({data.get('name')}) than {study.name}; `epistill "
                "study` writes it anew"
            )
        if "outcomes" in data:
            before, data = data, with_estimates(data)
            if out is None and data != before and source.suffix != PACKED:
                store.write_final(write_atomic, source.name, report_line(data))
        missing = [] if export is None else export_report(data, export)
        return write_report(data, out or folder / "report.html"), missing
    except EpistillError:
        raise
    except (*MALFORMED, UndefinedError) as error:
        raise EpistillError(
            f"{source} is not a report as `epistill study` writes it ({type(error).__name__}: "
            f"{first_line(error)[:120]}); the study's command writes it anew"
        ) from error


def _marks(settings: Mapping[str, Any]) -> tuple[Any, ...]:
    """What no version of epistill writes otherwise, and two studies do not have in common."""
    arms = [arm["id"] for arm in settings.get("arms", ())]
    return settings.get("name"), settings.get("seeds"), sorted(arms)


def report_file(folder: Path) -> Path:
    """Of a study's folder: report.json, or report.json.xz, as large results are committed.

    Raises:
        EpistillError: Neither is there.
    """
    source = folder / "report.json"
    for found in (source, source.with_name(source.name + PACKED)):
        if found.is_file():
            return found
    raise EpistillError(
        f"no report.json in {folder}; expected a study's folder; run `epistill study` first"
    )
