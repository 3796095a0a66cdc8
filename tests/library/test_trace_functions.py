"""measure, grade and compare in Python do what their commands do."""

from __future__ import annotations

import json

import pytest

import epistill
from epistill.errors import EpistillError
from epistill.traces import measure
from tests.helpers.python import run_epistill

ROWS = [
    {"problem_id": i % 3, "response": f"Wait, so it is \\boxed{{{i % 2}}}", "gold": "1",
     "correct": i % 2 == 1}
    for i in range(12)
]  # fmt: skip


def command(folder, *arguments):
    done = run_epistill(*arguments, "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), [line[10:] for line in done.stderr.splitlines()]


@pytest.fixture
def folder(write, monkeypatch):
    place = write("a.jsonl", [*ROWS, {"problem_id": 9, "response": None}]).parent
    write("b.jsonl", [{**row, "response": "Hmm. " + row["response"]} for row in ROWS])
    monkeypatch.chdir(place)
    return place


def test_measure_is_the_command(folder):
    found = epistill.measure("a.jsonl", by="correct", report="page.html", out="found.json")
    told, warned = command(folder, "measure", "a.jsonl", "--by", "correct")
    assert (
        json.loads(json.dumps(found.summary))
        == told
        == json.loads((folder / "found.json").read_text())
    )
    assert list(found.warnings) == warned
    assert warned
    assert found.path.read_text().startswith("<!")
    densities = found.to_polars().filter(measure="markers/paper-en/density_per_1k_words")
    assert set(densities["group"]) == {"True", "False"}


def test_grade_is_the_command(folder):
    found = epistill.grade(["a.jsonl"], out="one.jsonl", workers=1)
    told, warned = command(folder, "grade", "a.jsonl", "--out", "two.jsonl", "--workers", 1)
    assert list(found.warnings) == warned
    (row,) = found.to_polars().to_dicts()
    assert (row["correct"], row["wrong"], row["value"]) == (6, 6, 0.5)
    told["files"][0]["written"] = "one.jsonl"
    assert found.summary == told
    for wrong in ({"workers": 0}, {"time_limit": 0.0}, {"grader": "guess"}):
        with pytest.raises(EpistillError, match="expected"):
            epistill.grade("a.jsonl", **wrong)


def test_compare_is_the_command(folder):
    found = epistill.compare("a.jsonl", "b.jsonl", k=2, budgets=[3, 5], report="page.html")
    told, warned = command(folder, "compare", "a.jsonl", "b.jsonl", "-k", 2, "--budgets", "5,3")
    assert found.summary == told
    assert list(found.warnings) == warned
    table = found.to_polars()
    assert table.filter(measure="avg@k")["value"].to_list()[0] == 0
    assert set(table["budget"]) == {None, 3, 5}


@pytest.mark.parametrize(
    "call",
    [
        lambda: epistill.measure(
            ["a.jsonl", "b.jsonl"], lexicons=["own.json"], workers=2, report="page.html"
        ),
        lambda: epistill.compare(
            "a.jsonl", "b.jsonl", k=2, lexicons=["own.json"], report="page.html"
        ),
    ],
    ids=["measure", "compare"],
)
def test_a_list_that_changes_meanwhile_is_counted_as_it_was(folder, monkeypatch, call):
    """Its control too, in other processes and on the page; the next call reads both again."""

    def write_lists(own, control):
        named = {"version": 1, "source": "me", "language": "en"}
        lists = {"own": {"words": [own], "control": "beside.json"}, "beside": {"words": [control]}}
        for name, words in lists.items():
            (folder / f"{name}.json").write_text(json.dumps({**named, "name": name, **words}))

    def found():
        page = folder / "page.html"
        return call().summary, page.read_text() if page.exists() else None

    write_lists("wait", "so")
    before = found()
    assert '"control": "beside"' in json.dumps(before[0]) or any(
        row["control"] for row in before[0]["sets"][0]["measures"]
    ), "a control that is named by its path is one"
    with monkeypatch.context() as patched:
        real = measure.problem_key

        def changing(*arguments):
            write_lists("hmm", "it")
            return real(*arguments)

        patched.setattr(measure, "problem_key", changing)
        assert found() == before
    again = found()
    assert again != before
    write_lists("wait", "so")
    assert found() == before
