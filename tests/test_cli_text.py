"""What users name is printed as it is: no markup, no emoji, in any locale."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from epistill import cli
from epistill.cli.common import warn

NAMES = ("[/foo]", "[algebra]", ":x:", "代数")


@pytest.fixture
def said(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments):
        cli.app(list(arguments), standalone_mode=False)
        return capsys.readouterr().out

    return run


def write_rows(path, **changes):
    rows = [
        {
            "problem_id": f"[b]{i // 4}", "g": NAMES[i % 4], "response": "Wait, [/x] um. #### [/y]",
            "gold": "[/z]", "label": 1, "correct": i % 2, "temperature": 1.0, **changes,
        }
        for i in range(40)
    ]  # fmt: skip
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_lexicon(path):
    words = ["[/x]", "um", ":x:"]
    fields = {"name": "[list]", "version": 1, "language": "en", "source": "me", "words": words}
    Path(path).write_text(json.dumps(fields), encoding="utf-8")


def test_measure_prints_names_of_files_groups_lists_and_words(said):
    write_rows("x[b].jsonl")
    write_lexicon("list[i].json")
    printed = said("measure", "x[b].jsonl", "--by", "g")
    assert all(name in printed for name in ("x[b].jsonl", *NAMES))
    printed = said("measure", "x[b].jsonl", "--lexicon", "list[i].json")
    assert all(f" {name} " in printed for name in ("[list]", "[/x]", "um", ":x:"))


def test_shift_compare_and_grade_print_names(said):
    write_rows("a[b].jsonl")
    write_rows("[c].jsonl", response="So, [/x] it is :x: #### [/z]")
    write_lexicon("list[i].json")
    both = ("a[b].jsonl", "[c].jsonl", "--lexicon", "list[i].json")
    printed = said("shift", *both)
    assert all(name in printed for name in ("A: a[b].jsonl", "B: [c].jsonl", "[/x]", "[list]"))
    printed = said("compare", *both)
    assert all(name in printed for name in ("A: a[b].jsonl", "B: [c].jsonl", "[list]"))
    printed = said("grade", "a[b].jsonl", "--grader", "exact", "--label-field", "label")
    assert all(name in printed for name in ("a[b].jsonl", "a[b].graded.jsonl", " [/y] ", " [/z] "))


STEERS = "\x1b]0;title\x07\x1b[2J\x9b31m\u202e"


def test_nothing_in_a_file_steers_the_terminal(said, tmp_path, capsys):
    name = "\x1b[31mname.jsonl"
    write_rows("a.jsonl", g=STEERS, problem_id=STEERS, response=f"Wait, {STEERS} #### {STEERS}")
    write_rows(name, response="So #### [/z]")
    gold = {"id": STEERS, "question": STEERS, "answer": STEERS}
    Path("gold.jsonl").write_text(json.dumps(gold) + "\n", encoding="utf-8")
    commands = (
        ("measure", "a.jsonl", "--by", "g"),
        ("measure", "a.jsonl", "--by", "g", "--json"),
        ("measure", name),
        ("grade", "a.jsonl", "--grader", "exact", "--out", "graded.jsonl"),
        ("shift", "a.jsonl", name),
        ("tasks", "show", "gold.jsonl"),
    )
    for command in commands:
        printed = said(*command)
        assert not set(STEERS[:1] + "\x07\x9b\u202e") & set(printed), command
    warn(STEERS)
    assert not set("\x1b\x07\x9b\u202e") & set(capsys.readouterr().err)


def test_only_one_console_is_made():
    folder = Path(cli.__file__).parent
    made = {p.name for p in folder.glob("*.py") if "Console(" in p.read_text(encoding="utf-8")}
    assert made == {"common.py"}


def in_ascii(folder, *arguments):
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONIOENCODING"} | locale
    done = subprocess.run(
        [sys.executable, "-m", "epistill", *arguments],
        capture_output=True, cwd=folder, env=environment, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.decode("ascii")


def test_every_locale_will_do(tmp_path):
    write_rows(tmp_path / "a.jsonl", response="等等，这可能不对")
    found = json.loads(in_ascii(tmp_path, "measure", "a.jsonl", "--by", "g", "--json"))
    groups = found["files"][0]["groups"]
    assert set(groups) == set(NAMES)
    assert groups["代数"]["markers"]["epistemic-zh"]["words"]["等等"]["count"] == 10
    printed = in_ascii(tmp_path, "measure", "a.jsonl", "--report", "page.html")
    assert "epistemic-zh: count" in printed
    assert "等等" in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Usage" in in_ascii(tmp_path, "study", "--help")
    assert "sdpo-no-think" in in_ascii(tmp_path, "methods")


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("epistill tr", "train"), ("epistill lab pre", "pretrain"), ("epistill compare a b --bud", "--budgets"),
        ("epistill study recipes/math-d", "recipes/math-ds-7b"), ("epistill plan recipes/math-d", "recipes/math-ds-7b"),
        ("epistill train --method sdpo-no", "sdpo-no-think"), ("epistill methods grpo rlc", "rlcsd"),
    ],
)  # fmt: skip
def test_the_shell_completes_commands_flags_and_names(typed, offered):
    asked = {"_EPISTILL_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split()) - 1)}  # fmt: skip
    program = "import sys; sys.argv = ['epistill']; from epistill.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", program], env={**os.environ, **asked}, capture_output=True, text=True)  # fmt: skip
    assert done.stdout.split() == [offered], done.stderr
