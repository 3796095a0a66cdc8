"""The command line as a user meets it: help without torch, JSON, and mistakes in one line."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from transformers.utils import is_flash_attn_2_available
from typer.testing import CliRunner

from epistill.cli import app
from epistill.errors import EpistillError, did_you_mean, disk_full
from epistill.inputs import load_run_config
from epistill.rollouts.load_model import lab_directory, load_model
from epistill.settings import checked
from epistill.studies.spec import StudySpec
from tests.helpers.python import run_epistill

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = [
    [], ["study"], ["plan"], ["train"], ["eval"], ["lab"], ["lab", "pretrain"], ["lab", "card"],
    ["measure"], ["shift"], ["grade"], ["compare"], ["preflight"], ["tasks"], ["tasks", "show"], ["methods"], ["report"], ["env"],
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_answers_without_torch(command):
    code = (
        "import sys, epistill.cli\n"
        f"sys.argv = ['epistill', *{command!r}, '--help']\n"
        "try: epistill.cli.main()\n"
        "finally: assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


def mistakes(folder):
    (folder / "empty.jsonl").write_text("")
    pl.DataFrame({"other": [1]}).write_parquet(folder / "columns.parquet")
    bare = shutil.copytree(lab_directory(), folder / "bare")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (bare / name).unlink()
    (folder / "broken.toml").write_text("[run\n")
    (folder / "unknown.toml").write_text(
        'model = "lab"\nstepz = 3\n[task]\ntype = "star_search"\n[method]\nname = "grpo"\n'
    )
    return {
        "missing file": (["tasks", "show", folder / "no.parquet"], "no file"),
        "columns": (["tasks", "show", folder / "columns.parquet"], "columns found: other"),
        "empty": (["tasks", "show", folder / "empty.jsonl"], "no rows"),
        "no tokenizer": (["eval", bare, "--data", "star-search"], "no usable tokenizer"),
        "no model": (["eval", "./none", "--data", "star-search"], "no such directory"),
        "unknown method": (
            ["train", "--model", "lab", "--data", "star-search", "--method", "x"],
            "no method 'x'",
        ),
        "negative k": (["eval", "lab", "--data", "star-search", "-k", "-1"], "-k: Input"),
        "not a number": (["eval", "lab", "--data", "star-search", "-k", "many"], "valid integer"),
        "too long": (
            ["eval", "lab", "--data", "star-search", "--max-new-tokens", "600"],
            "512 positions",
        ),
        "unknown study": (["study", "labb"], "no study 'labb'"),
        "unknown preset": (["study", "lab", "--preset", "slow"], "no preset 'slow'"),
        "broken toml": (["train", folder / "broken.toml"], "is not TOML"),
        "unknown setting": (["train", folder / "unknown.toml", "--out", folder / "r"], "stepz"),
        "nothing given": (["train"], "--method"),
        "workers": (["study", "lab", "--workers", "0"], "--workers is 0"),
        "configs": (
            ["plan", "recipes/math-ds-7b", "--configs", folder / "empty.jsonl"],
            "could not write",
        ),
        "no report": (["report", folder], "no report.json"),
        "unknown command": (["studdy"], "No such command"),
    }


NAMES = [
    "missing file", "columns", "empty", "no tokenizer", "no model", "unknown method", "negative k",
    "not a number", "too long", "unknown study", "unknown preset", "broken toml",
    "unknown setting", "nothing given", "workers", "configs", "no report", "unknown command",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_mistake_is_one_line_with_status_2_and_nothing_half_written(name, tmp_path):
    arguments, words = mistakes(tmp_path)[name]
    before = sorted(tmp_path.rglob("*"))
    done = run_epistill(*arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert words in line
    assert done.stdout == ""
    assert sorted(tmp_path.rglob("*")) == before


def test_tasks_show(shared_data):
    done = run_epistill("tasks", "show", shared_data / "math/seen_1x64.parquet", "--json")
    shown = json.loads(done.stdout)
    assert (shown["rows"], shown["problems"], shown["grader"]) == (64, 1, "math")
    assert shown["first_answer"] == "640"
    assert "parity-monotonic" in shown["first_prompt"][0]["content"]


def test_tasks_show_a_world():
    shown = json.loads(run_epistill("tasks", "show", "star-search:4x2", "--json").stdout)
    assert shown["problems"] is None
    assert shown["grader"] == "exact"


def test_methods_and_env_as_json():
    listed = json.loads(run_epistill("methods", "--json").stdout)
    assert {"grpo", "sdpo", "sdpo-no-think", "sft-unguided", "sft-guided"} <= set(listed)
    assert "sdpo" in run_epistill("methods").stdout
    found = json.loads(run_epistill("env", "--json").stdout)
    assert found["packages"]["torch"] is not None


def test_eval_writes_records_and_says_n(tmp_path):
    done = run_epistill(
        "eval", "lab", "--data", "star-search:3x2", "-k", 2, "--problems", 6,
        "--out", tmp_path / "records.jsonl", "--json",
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert found["problems"] == 6
    assert 0 <= found["score"]["low"] <= found["score"]["value"] <= found["score"]["high"] <= 1
    assert {"pass@2", "maj@2"} <= set(found)
    rows = [json.loads(line) for line in (tmp_path / "records.jsonl").read_text().splitlines()]
    assert len(rows) == 12


def test_train_from_flags_and_from_a_file(tmp_path):
    (tmp_path / "run.toml").write_text(
        'model = "lab"\nsteps = 2\nproblems_per_step = 2\nsamples_per_problem = 2\n'
        'task = { type = "star_search", arms = 3, depth = 2 }\n'
        "sampling = { max_new_tokens = 20 }\n"
        '[method]\nname = "sdpo"\ndivergence = { alpha = 1.0 }\n'
        '[[evaluations]]\nname = "t"\nproblems = 3\nsamples = 2\n'
        'task = { type = "star_search", arms = 3, depth = 2, split = "test" }\n'
    )
    out = tmp_path / "run"
    done = run_epistill("train", tmp_path / "run.toml", "--seed", 5, "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"] == 2
    config = json.loads((out / "config.json").read_text())
    assert config["seed"] == 5
    assert config["method"]["divergence"]["alpha"] == 1.0
    assert (out / "model" / "model.safetensors").is_file()
    refused = run_epistill("train", tmp_path / "run.toml", "--seed", 6, "--out", out)
    assert refused.returncode == 2
    assert "another configuration (differs in seed)" in refused.stderr


def test_compare_from_the_command_line(tmp_path):
    rows = [
        {"problem_id": i, "response": f"answer {i % 3}", "correct": i % 3 == 0} for i in range(9)
    ]
    for name, temperature in (("a", 1.0), ("b", 0.5)):
        text = "".join(json.dumps({**row, "temperature": temperature}) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(text)
    done = run_epistill("compare", "a.jsonl", "b.jsonl", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "temperature is 1 in A and 0.5 in B" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    done = run_epistill(
        "compare", "a.jsonl", "b.jsonl", "--allow-different-settings", "--json", cwd=tmp_path
    )
    found = json.loads(done.stdout)
    assert found["differs"] == ["temperature is 1 in A and 0.5 in B"]
    assert found["sets"][0]["measures"][0]["difference"]["value"] == 0
    done = run_epistill("compare", "a.jsonl", "b.jsonl", "--allow-different-settings", cwd=tmp_path)
    assert "avg@k" in done.stdout
    for flags, said in ((["-k", "0"], "-k is 0"), (["--budgets", "1k"], "whole numbers")):
        done = run_epistill("compare", "a.jsonl", "b.jsonl", *flags, cwd=tmp_path)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
        assert said in done.stderr


@pytest.mark.parametrize("name", ["star-search:5", "star-search:0x3", "star-search:ax3"])
def test_a_world_that_is_none_is_one_line(name):
    done = run_epistill("tasks", "show", name)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_device_that_is_not_there_is_one_line():
    with pytest.raises(EpistillError, match="device 'cuda:99' cannot be used"):
        load_model("lab", device="cuda:99")


@pytest.mark.skipif(is_flash_attn_2_available(), reason="the kernel is here")
def test_an_attention_that_is_not_here_is_one_line(tmp_path):
    small = ("--data", "star-search:3x2", "--attention", "flash_attention_2")
    for command in (
        ("eval", "lab"),
        ("preflight", "lab"),
        ("train", "--model", "lab", "--method", "grpo"),
    ):
        out = ("--out", tmp_path / command[0])
        done = run_epistill(*command, *small, *out, "--max-new-tokens", 8)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
        assert "'lab' could not be loaded with attention 'flash_attention_2'" in done.stderr


def test_train_from_flags_takes_a_limit_for_a_small_model():
    flags = {"model": "lab", "task": "star-search", "method": "sdpo", "max_new_tokens": 96}
    assert load_run_config(None, flags).sampling.max_new_tokens == 96


@pytest.mark.parametrize("name", ["steps", "seed", "max_new_tokens", "samples_per_problem"])
@pytest.mark.parametrize("value", [10**400, 10**5000, -(10**400), 2**63], ids=list("abcd"))
def test_a_number_of_more_than_64_bits_is_one_line(name, value):
    flags = {"model": "lab", "task": "star-search:3x2", "method": "sdpo"}
    with pytest.raises(EpistillError, match=f"'{name}': a number of more than 64 bits") as told:
        load_run_config(None, {**flags, name: value})
    assert len(str(told.value)) < 200
    with pytest.raises(EpistillError, match="'seeds': a number of more than 64 bits"):
        checked(StudySpec, {"name": "x", "seeds": [0, value]})


def test_the_help_of_every_command_shows_an_example_of_it():
    from typer.main import get_command

    from epistill import cli

    def walk(command, path):
        if hasattr(command, "commands"):
            for name, inner in command.commands.items():
                yield from walk(inner, [*path, name])
        else:
            yield path, command

    commands = list(walk(get_command(cli.app), []))
    assert len(commands) >= 14
    for path, command in commands:
        start, _, rest = command.epilog.partition("Example: epistill ")
        assert not start, path
        words = rest.partition("\n\nMore: ")[0].split()
        assert words[: len(path)] == path
        # It parses: every argument and flag is one that the command has.
        command.make_context(path[-1], words[len(path) :])


@pytest.mark.parametrize(
    ("command", "meant"),
    [
        ("tasks show star-serach", "star-search"),
        ("tasks show problms.jsonl", "problems.jsonl"),
        ("methods rlsdd", "rlsd"),
        ("measure problems.jsonl --lexicon paper-ne", "paper-en"),
        ("measure problems.jsonl --problem-field questoin", "question"),
        ("measure problms.jsonl", "problems.jsonl"),
        ("measure problems.jsonl --response-field respones", "response"),
        ("grade problems.jsonl --answer-field anwser", "answer"),
        ("grade problems.jsonl --grader mth", "math"),
        ("compare problems.jsonl problems.jsonl --problem-field questoin", "question"),
        ("edit problems.jsonl --rule delte --out out.jsonl", "delete"),
        ("preflight lab --data star-search --contexts solutoin", "solution"),
        ("study lab --preset quik", "quick"),
        ("mesure problems.jsonl", "measure"),
    ],
)
def test_a_name_with_a_slip_is_answered_with_what_was_meant(command, meant, tmp_path):
    record = {"question": "What is 1 + 1?", "answer": "2", "response": "It is 2."}
    (tmp_path / "problems.jsonl").write_text(json.dumps(record) + "\n")
    done = run_epistill(*command.split(), cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert f"did you mean '{meant}'" in done.stderr.lower()
    assert len(done.stderr.splitlines()) == 1


def commands_of(group):
    for command in group.registered_commands:
        yield (command.name,)
    for inner in group.registered_groups:
        yield (inner.name,)
        yield from ((inner.name, *rest) for rest in commands_of(inner.typer_instance))


@pytest.mark.parametrize("command", [(), *commands_of(app)], ids=" ".join)
def test_help_shows_an_example_and_leads_to_a_page(command):
    told = " ".join(CliRunner().invoke(app, [*command, "--help"]).stdout.split())
    example, _, page = told.partition("Example: epistill ")[2].partition(" More: ")
    assert tuple(example.split()[: len(command)]) == command
    assert (ROOT / re.split("[;,]", page)[0]).is_file()


TRAIN = ("train", "--model", "lab", "--data", "star-search", "--method", "sdpo")
NAMED = {
    "field": ((*TRAIN, "--learning-rate", "-1"), "--learning-rate: Input should be greater than 0"),
    "sampling's": ((*TRAIN, "--top-p=3"), "--top-p: Input"),
    "the adapter's": ((*TRAIN, "--lora-rank", "0"), "--lora-rank: Input"),
    "a union's": ((*TRAIN, "--microbatch-tokens", "0"), "--microbatch-tokens: Input"),
    "another name": ((*TRAIN, "--samples", "0"), "--samples: Input"),
    "a function's": (("eval", "lab", "--data", "star-search", "--problems", "0"), "--problems: "),
    "said by itself": (
        ("eval", "lab", "--data", "star-search", "--device=cuda", "--engine=http://h"),
        "--device is 'cuda' and engine is",
    ),
    "of several words": (
        ("eval", "lab", "--data", "star-search", "--max-new-tokens", "5000"),
        "a prompt of 57 tokens plus --max-new-tokens=5000 is longer",
    ),
    "a short one": ((*TRAIN, "-k", "1"), "-k is 1; expected at least 2"),
    "a task's": (("eval", "lab", "--data", "star-search:1x1"), "task 'star-search:1x1': arms: "),
}


@pytest.mark.parametrize(("arguments", "begins"), NAMED.values(), ids=NAMED)
def test_an_error_names_the_flag_that_was_typed(arguments, begins, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["epistill", *arguments])
    error = CliRunner().invoke(app, arguments).exception
    assert isinstance(error, EpistillError)
    assert str(error).startswith(begins)


def test_a_path_keeps_its_name(tmp_path, monkeypatch):
    folder = tmp_path / "max_new_tokens"
    arguments = ["eval", str(folder), "--data", "star-search", "--max-new-tokens", "8"]
    monkeypatch.setattr(sys, "argv", ["epistill", *arguments])
    error = CliRunner().invoke(app, arguments).exception
    assert str(folder) in str(error)


def test_a_setting_of_a_file_keeps_its_name(tmp_path):
    config = tmp_path / "run.toml"
    config.write_text(
        'model = "lab"\ntask = {type = "star_search"}\nmethod = "sdpo"\nlearning_rate = -1.0\n'
    )
    error = CliRunner().invoke(app, ["train", str(config)]).exception
    assert str(error).startswith("learning_rate: ")


def test_letters_that_changed_places_are_what_was_meant():
    assert did_you_mean("spdo", ["srpo", "sdpo"]) == "; did you mean 'sdpo'?"
    assert did_you_mean("scor", ["score", "source"]) == "; did you mean 'score'?"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize(
    "arguments", [["methods"], ["methods", "--json"], ["--help"]], ids=" ".join
)
def test_output_that_a_full_disk_does_not_take_is_one_line(arguments):
    command = [sys.executable, "-m", "epistill", *arguments]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr == (
        "epistill: could not write the output: No space left on device; make room or choose "
        "another folder\n"
    )


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(28, "No space left on device"), "No space left on device"),
        (ValueError("parquet: No space left on device (os error 28)"), "No space left on device"),
        (OSError(30, "x"), "Read-only file system"),
        (OSError(2, "No such file or directory"), None),
        (ValueError("(os error 2)"), None),
        (RuntimeError("28"), None),
    ],
)
def test_a_full_disk_is_known_through_every_library(error, told):
    assert disk_full(error) == told
