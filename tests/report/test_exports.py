"""The exported files hold the report's numbers: read again, compared with it."""

from __future__ import annotations

import csv
import json
import shutil
import xml.etree.ElementTree as ET

import polars as pl
import pytest
from plotly import io as pictures
from typer.testing import CliRunner

from epistill.cli import app
from epistill.errors import EpistillError
from epistill.report.exports import export_report, report_tables
from tests.helpers.committed import RESULTS, committed
from tests.helpers.python import run_epistill

BASE, TUNED = (str(RESULTS.parents[1] / "examples/data" / f"{n}.jsonl") for n in ("base", "tuned"))
REPORT = committed("lab")


@pytest.fixture
def no_browser(monkeypatch):
    """Pictures are asked for, and there is nobody to draw them."""
    asked = []

    def fails(figures, files, **options):
        asked.extend(zip(figures, files, strict=True))
        raise RuntimeError("no Chrome\nanywhere")

    monkeypatch.setattr(pictures, "write_images", fails)
    return asked


def test_every_table_is_the_same_in_csv_and_parquet_and_as_in_the_report(tmp_path, no_browser):
    (missing,) = export_report(REPORT, tmp_path / "out")
    assert missing.startswith("no pictures: no Chrome;")
    assert "epistill[export]" in missing
    tables = report_tables(REPORT)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        f"{name}.{kind}" for name in tables for kind in ("csv", "parquet")
    }
    for name, rows in tables.items():
        table = pl.read_parquet(tmp_path / "out" / f"{name}.parquet")
        assert table.to_dicts() == [{c: row.get(c) for c in table.columns} for row in rows], name
        with (tmp_path / "out" / f"{name}.csv").open(encoding="utf-8", newline="") as file:
            read = list(csv.DictReader(file))
        assert len(read) == len(rows)
        for given, row in zip(read, rows, strict=True):
            for column, text in given.items():
                value = row.get(column)
                if isinstance(value, int | float) and not isinstance(value, bool):
                    assert float(text) == pytest.approx(value, rel=1e-9)
                elif not isinstance(value, bool):
                    assert text == ("" if value is None else str(value)), (name, column)


def test_the_numbers_are_the_pages(tmp_path):
    tables = report_tables(REPORT)
    arm = next(one for one in REPORT["arms"] if one["id"] == "sdpo")
    (ood,) = [
        row
        for row in tables["evaluations"]
        if (row["arm"], row["on"], row["measure"]) == ("sdpo", "ood", "score")
    ]
    assert {n: ood[n] for n in ("value", "low", "high")} == {
        n: arm["evaluations"]["ood"]["score"][n] for n in ("value", "low", "high")
    }
    assert len(tables["claims"]) == sum(
        len(one["numbers"]) for one in REPORT["claims"] + REPORT["controls"]
    )
    curve = [
        row["value"]
        for row in tables["training_curves"]
        if (row["arm"], row["measure"], row["seed"]) == ("sdpo", "reward", "0")
    ]
    assert curve == arm["curves"]["reward"]["seeds"]["0"]
    assert len(tables["traces"]) == sum(len(one["responses"]) for one in REPORT["traces"])


def test_a_picture_shows_one_choice_and_every_trace_is_in_some(tmp_path, no_browser):
    from epistill.report.study_figures import study_plots

    export_report(REPORT, tmp_path)
    drawn = [figure for figure, path in no_browser if path.suffix == ".svg"]
    assert len(drawn) == sum(max(len(plot.choices), 1) for plot in study_plots(REPORT))
    assert sum(len(figure.data) for figure in drawn) == sum(
        len(panel.data) for plot in study_plots(REPORT) for panel in plot.panels
    )
    assert len({path for _, path in no_browser}) == 2 * len(drawn)


def test_a_probe_cannot_name_a_file_elsewhere(tmp_path, no_browser):
    (probe,) = REPORT["probes"]
    report = {**REPORT, "arms": [], "probes": [{**probe, "id": "../../x/y"}]}
    export_report(report, tmp_path / "out")
    assert [path.parent for _, path in no_browser] == [tmp_path / "out"] * 2


def test_a_surface_is_a_table(no_browser):
    report = committed("lab-phase")
    rows = report_tables(report)["surface"]
    pairs = report["surface"]["pairs"]
    assert len(rows) == sum(map(len, pairs.values()))
    assert rows[0]["score/value"] == next(iter(pairs.values()))[0]["score"]["value"]


@pytest.mark.parametrize(
    ("command", "tables"),
    [
        (["compare", BASE, TUNED, "--export"], {"differences": 14, "words": 30}),
        (["measure", BASE, TUNED, "--export"], {"numbers": 40}),
        (["preflight", "lab", "--data", "star-search:3x2", "--problems", "2", "-k", "2", "--max-new-tokens", "16", "--contexts", "answer", "--out", "preflight", "--export"], {"numbers": 20}),
    ],
    ids=["compare", "measure", "preflight"],
)  # fmt: skip
def test_other_pages_are_exported_too(command, tables, tmp_path, monkeypatch, no_browser):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, [*command, "out"])
    assert done.exit_code == 0, done.output
    assert "no pictures" in done.stderr
    for name, least in tables.items():
        table = pl.read_parquet(tmp_path / "out" / f"{name}.parquet")
        assert len(table) >= least
        assert pl.read_csv(tmp_path / "out" / f"{name}.csv").columns == table.columns
        assert not any(isinstance(kind, pl.List | pl.Struct) for kind in table.dtypes)
    assert len({path for _, path in no_browser}) >= 2  # an SVG and a PNG at least


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EpistillError, match=r"could not write .*choose another folder"):
        export_report(REPORT, tmp_path / "file" / "out")


def test_the_command_says_that_there_are_no_pictures(tmp_path, no_browser):
    old = {name: part for name, part in REPORT.items() if name != "outcomes"}
    (tmp_path / "report.json").write_text(json.dumps(old), encoding="utf-8")
    asked = ["report", tmp_path, "--out", tmp_path / "p.html", "--export", tmp_path / "out"]
    done = CliRunner().invoke(app, list(map(str, asked)))
    assert done.exit_code == 0, done.output
    assert "no pictures" in done.stderr
    assert done.stdout.strip() == str(tmp_path / "p.html")


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium")
def test_pictures_are_drawn(tmp_path):
    pytest.importorskip("kaleido")
    report = {**REPORT, "arms": []}
    assert export_report(report, tmp_path) == []
    assert ET.parse(tmp_path / "probe-teacher.svg").getroot().tag.endswith("svg")
    assert (tmp_path / "probe-teacher.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    pictures = [path for path in tmp_path.iterdir() if path.suffix in (".svg", ".png")]
    assert len(pictures) >= 2
    assert all(path.stat().st_size > 500 for path in pictures)


def test_a_file_that_cannot_grow_is_one_line_and_the_others_are_whole(tmp_path):
    out = tmp_path / "out"
    done = run_epistill(
        "report", RESULTS / "lab", "--out", tmp_path / "x.html", "--export", out, most_bytes=10_000
    )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert f"could not write {out}/" in done.stderr
    assert "File too large; make room" in done.stderr
    assert all(len(pl.read_parquet(path)) > 0 for path in out.glob("*.parquet"))
    assert not list(out.glob(".*"))
