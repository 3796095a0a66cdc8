"""Docs say what is so: examples run, tables name what exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from epistill.methods import METHODS
from epistill.studies.load_study import RECIPES, load_study, shipped_studies
from epistill.studies.plan import plan_study
from tests.helpers.committed import committed
from tests.helpers.python import run_python

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_every_method_is_in_the_table_and_every_named_test_exists():
    text = (ROOT / "docs" / "methods.md").read_text()
    assert all(f"`{name}`" in text for name in METHODS)
    sources = {p.name: p.read_text() for p in (ROOT / "tests").rglob("test_*.py")}
    named = re.findall(r"`(test_\w+)`", text)
    assert len(named) >= 10
    for test in named:
        assert f"def {test}(" in sources["test_trl_oracle.py"], test
    for path in re.findall(r"`(tests/[\w/]+\.py)`", text):
        assert (ROOT / path).is_file(), path


def test_recipes_cost_what_their_page_says():
    text = (ROOT / "docs" / "recipes.md").read_text()
    names = [name for name in shipped_studies() if name.startswith(RECIPES)]
    for name in names:
        found = plan_study(load_study(name))
        most = max(row["peak_bytes"] for row in found["arms"].values())
        row = next(line for line in text.splitlines() if line.startswith(f"| {name} |"))
        assert row.split("|")[4:6] == [
            f" {most / 2**30:.0f} ",
            f" {found['total_gpu_hours']:,.0f} ",
        ]
    assert text.count("\n| recipes/") == len(names)
    folder = ROOT / "tests" / "tasks"
    tests = "".join((folder / f"test_{name}.py").read_text() for name in ("sandbox", "code"))
    for test in re.findall(r"`(test_\w+)`", text):
        assert f"def {test}(" in tests, test
    for path in re.findall(r"`(tests/[\w/]+\.py)`", text):
        assert (ROOT / path).is_file(), path


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_python_blocks_run(page, tmp_path):
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL):
        done = run_python("-c", block, cwd=tmp_path)
        assert done.returncode == 0, done.stderr


def sections(page):
    """What a link can name after "#": headings as the host of the repository spells them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\((?!http)([^)#]*)(?:#([^)]+))?\)", page.read_text())
    for target, section in links:
        there = page.parent / target if target else page
        assert there.exists(), target
        assert not section or section in sections(there), (target, section)


EXAMPLES = [  # those that the README runs are run by its test
    path
    for path in sorted((ROOT / "examples").glob("*.py"))
    if f"python examples/{path.name}" not in PAGES[0].read_text()
]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda p: p.name)
def test_examples_run(example, tmp_path):
    done = run_python(example, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) >= 2


def test_a_method_takes_under_20_lines():
    text = (ROOT / "examples" / "new_method.py").read_text()
    block = text[text.index("late_answer = ") : text.index("if __name__")].strip()
    assert len(block.splitlines()) < 20


def test_the_notebook_runs(tmp_path, monkeypatch):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    notebook = nbformat.read(ROOT / "examples" / "results.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)  # committed without them
    client = nbclient.NotebookClient(notebook, resources={"metadata": {"path": str(ROOT / "docs")}})
    client.execute()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    last = [cell.outputs[-1]["data"] for cell in code if cell.outputs]
    assert len(last) == len(code) - 1  # the first only imports
    assert sum("text/html" in data for data in last) >= 3
    assert "application/vnd.plotly.v1+json" in last[-1]
    report = committed("lab")
    trained = [arm for arm in report["arms"] if arm["difference_to_baseline"]["ood"] is not None]
    assert any(f"shape: ({len(trained)}, 4)" in data["text/plain"] for data in last)
