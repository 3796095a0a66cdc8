"""The house keeps its shape: import direction, torch-free doors, file sizes, no side effects."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections import defaultdict
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "epistill"
FREE = {
    "number_rows", "errors", "seeds", "settings", "records", "training_rows", "targets",
    "token_weights", "shapes", "blends", "axes", "method_import", "config", "environment", "methods",
    "rollout_settings",
    "alarm_rules", "monitor", "thinking", "word_rules",
}  # fmt: skip
# Which folders (or modules) of the package each may import. `lab` is the lab's model.
ALLOWED = {
    "errors": set(),
    "hub": set(),
    "seeds": set(),
    "number_rows": set(),
    "thinking": set(),
    "readers": {"errors", "integrity"},
    "records": set(),
    "settings": {"errors"},
    "world": {"errors"},
    "training_rows": {"errors"},
    "targets": {"settings", "training_rows", "objective"},
    "token_weights": {"settings", "training_rows", "objective"},
    "shapes": {"settings", "training_rows"},
    "blends": {"settings", "training_rows", "shapes"},
    "axes": {"settings", "training_rows", "targets", "token_weights", "shapes", "blends"},
    "method_import": {"axes", "errors", "json_files"},
    "alarm_rules": {"settings"},
    "monitor": {"settings", "axes", "errors", "alarm_rules"},
    "word_rules": {"errors"},
    "rollout_settings": {"settings", "axes"},
    "config": {"settings", "axes", "monitor", "word_rules", "rollout_settings"},
    "describe": {"axes"},
    "environment": set(),
    "methods": {"axes", "settings", "errors", "method_import"},
    "interrupts": set(),
    "json_files": {"errors"},
    "integrity": {"errors", "json_files"},
    "folder_lock": {"errors", "interrupts"},
    "store": {
        "environment",
        "errors",
        "records",
        "integrity",
        "folder_lock",
        "json_files",
        "settings",
    },
    "objective": set(),
    "tasks": {"interrupts", "hub", "readers", "records", "config", "errors", "seeds", "thinking"},
    "metrics": {"records", "errors", "thinking", "word_rules"},
    "rollouts": {
        "thinking",
        "word_rules",
        "metrics",
        "records",
        "config",
        "settings",
        "errors",
        "seeds",
        "objective",
        "tasks",
        "world",
        "hub",
        "integrity",
        "json_files",
    },
    "teacher": FREE | {"objective", "rollouts", "tasks", "world"},
    "training": FREE
    | {
        "store",
        "integrity",
        "json_files",
        "objective",
        "tasks",
        "metrics",
        "rollouts",
        "teacher",
        "world",
    },
    "evaluation": FREE | {"store", "tasks", "metrics", "rollouts"},
    "lab": FREE | {"tasks", "metrics", "rollouts", "teacher", "evaluation"},
    "smollm2": FREE
    | {"tasks", "teacher", "rollouts", "evaluation", "json_files", "studies.run_arm"},
    "traces": {
        "errors",
        "interrupts",
        "seeds",
        "records",
        "config",
        "store",
        "metrics",
        "tasks",
        "readers",
        "thinking",
        "evaluation.intervals",
        "evaluation.stats",
        "evaluation.paired",
    },
    "comparison": {
        "errors",
        "integrity",
        "records",
        "config",
        "store",
        "metrics",
        "tasks",
        "traces",
        "readers",
        "thinking",
        "evaluation.intervals",
        "evaluation.stats",
        "evaluation.paired",
    },
    "report": FREE | {"store", "metrics", "evaluation.stats"},
    "preflights": FREE
    | {"store", "json_files", "objective", "tasks", "metrics", "rollouts", "teacher", "evaluation"},
    "inputs": FREE | {"tasks", "preflights.preflight_config", "json_files"},
    "integrations": FREE | {"store", "integrity", "metrics", "objective", "rollouts", "tasks"},
    "studies": FREE
    | {
        "store",
        "integrity",
        "interrupts",
        "tasks",
        "rollouts",
        "teacher",
        "training",
        "evaluation",
        "report",
        "lab",
        "preflights",
        "objective",
        "describe",
        "world",
        "inputs",
    },
    "__main__": {"cli", "interrupts"},
    "library": None,  # opens every door, lazily
    "cli": None,
}
TORCH_FREE = ("records", "config", "monitor", "axes", "describe", "methods", "store", "report.study_page", "evaluation.stats", "cli",
              "metrics.epistemic", "studies.spec", "library.model_functions", "library.trace_functions", "studies.hardware", "tasks.sandbox", "inputs", "tasks.files", "traces.measure_summary",
              "comparison.compare", "report.trace_pages")  # fmt: skip


def modules():
    for path in sorted(SOURCE.rglob("*.py")):
        relative = path.relative_to(SOURCE).with_suffix("")
        yield path, ".".join(relative.parts).removesuffix(".__init__")


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("epistill."):
            yield node.module.removeprefix("epistill.")
        elif isinstance(node, ast.Import):
            yield from (
                a.name.removeprefix("epistill.")
                for a in node.names
                if a.name.startswith("epistill.")
            )


@pytest.mark.parametrize("name", [n for _, n in modules() if n != "__init__"])
def test_import_direction(name):
    path = next(p for p, n in modules() if n == name)
    room = name.split(".")[0]
    allowed = ALLOWED[room]
    if allowed is None:
        return
    for imported in imports_of(path):
        other = imported.split(".")[0]
        permitted = (
            other == room
            or other in allowed
            or any(
                imported == entry or imported.startswith(entry + ".")
                for entry in allowed
                if "." in entry
            )
        )
        assert permitted, f"{name} imports {imported}; {room} may import {sorted(allowed)}"


def test_every_room_has_a_rule():
    rooms = {name.split(".")[0] for _, name in modules()} - {"__init__"}
    assert rooms == set(ALLOWED)


@pytest.mark.parametrize("module", TORCH_FREE)
def test_torch_stays_out(module):
    code = f"import sys, epistill.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_files_stay_readable():
    long = {name: n for p, name in modules() if (n := len(p.read_text().splitlines())) > 350}
    assert long == {}


def test_text_is_opened_in_utf_8_whatever_the_locale():
    for path, name in modules():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            called = getattr(node.func, "attr", getattr(node.func, "id", None))
            given = {keyword.arg for keyword in node.keywords}
            if called in ("read_text", "write_text"):
                assert "encoding" in given, f"{name}:{node.lineno}"
            elif called == "open" and ast.unparse(node.func) != "os.open":
                said = [a.value for a in node.args if isinstance(a, ast.Constant)]
                binary = any(isinstance(a, str) and "b" in a for a in said[-1:])
                assert binary or "encoding" in given, f"{name}:{node.lineno}"


def test_no_branch_is_named_after_a_method():
    from epistill.methods import METHODS

    for path, name in modules():
        if name == "methods":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Compare):
                constants = [c.value for c in ast.walk(node) if isinstance(c, ast.Constant)]
                assert not set(map(str, constants)) & set(METHODS), f"{name}:{node.lineno}"


def test_nothing_asks_which_choice_on_an_axis_it_has():
    """What a choice means is asked of the choice: no isinstance, no case on a class of an axis."""
    from epistill.settings import Choice

    def below(kind):
        return {kind.__name__}.union(*(below(one) for one in kind.__subclasses__()))

    kinds = {name for name in below(Choice) if name != "Choice"}
    assert len(kinds) > 20
    for path, name in modules():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            asked: list[ast.AST] = []
            if isinstance(node, ast.MatchClass):
                asked = [node.cls]
            elif isinstance(node, ast.Call):
                called = getattr(node.func, "id", None)
                asked = node.args[1:] if called in ("isinstance", "issubclass") else []
            elif isinstance(node, ast.Compare) and ".type" in ast.unparse(node):
                literal = [c.value for c in ast.walk(node) if isinstance(c, ast.Constant)]
                own = {one for axis in Choice.__subclasses__() for one in axis.kinds()}
                assert not own & set(map(str, literal)), f"{name}:{node.lineno}"
            words = {getattr(n, "id", getattr(n, "attr", None)) for a in asked for n in ast.walk(a)}
            assert not kinds & words, f"{name}:{node.lineno} asks for {kinds & words}"


def test_every_setting_is_read_somewhere():
    """A parsed setting that nothing uses is a lie (peers: flags that never reach the sampler)."""
    from epistill import axes, blends, config, settings, shapes, targets, token_weights

    parts = (axes, targets, token_weights, shapes, blends, config)
    records = {"describe", "methods", *(part.__name__.removeprefix("epistill.") for part in parts)}
    code = "\n".join(p.read_text() for p, n in modules() if n not in records)
    for part in parts:  # what their own validators and properties read
        code += re.sub(r"^    \w+: .*$", "", Path(part.__file__).read_text(), flags=re.MULTILINE)
    for record in [v for module in parts for v in vars(module).values()]:
        if isinstance(record, type) and issubclass(record, settings.Settings):
            for field in record.model_fields:
                used = f".{field}" in code or f"{field}=" in code or f'"{field}"' in code
                assert used, f"{record.__name__}.{field}"


def test_what_tests_share_is_a_helper():
    """One test file never imports another: each runs, moves and fails on its own."""
    tests = Path(__file__).parent
    for path in sorted(tests.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [a.name for a in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                shared = name.startswith("tests.helpers")
                assert shared or name.split(".")[0] not in ("tests", "conftest"), path
                assert not name.split(".")[-1].startswith("test_"), path
            if isinstance(node, ast.Attribute):
                assert ast.unparse(node) != "sys.path", path


def test_what_is_imported_is_declared_and_what_is_declared_is_imported():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    declared = {canonical(line) for line in project["dependencies"]}
    found = imported(ROOT / "src") - {"epistill"}
    assert found == declared | {canonical(line) for line in extras["ray"]}
    tools = {
        "gguf",
        "hatchling",
        "ipykernel",
        "kaleido",
        "nbclient",
        "pyright",
        "pytest-timeout",
        "pytest-xdist",
        "ruff",
        "tensorboard",
        "trackio",
        "wandb",
    }  # commands and plugins; transformers reads gguf
    tested = imported(ROOT / "tests") - {"epistill", "tests"}
    assert tested <= declared | {canonical(line) for line in extras["dev"]}
    assert {canonical(line) for line in extras["dev"]} <= tested | found | tools


def canonical(name):
    return re.split(r"[^\w.-]", name)[0].lower().replace("_", "-").replace(".", "-")


def imported(folder):
    """Distributions whose modules the files of a folder import, at any depth."""
    provides = metadata.packages_distributions()
    tops = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                tops |= {a.name.split(".")[0] for a in node.names}
            elif isinstance(node, ast.ImportFrom):
                tops.add(node.module.split(".")[0])
    tops -= set(sys.stdlib_module_names)
    return {canonical(provides.get(top, [top])[0]) for top in tops}


# Tests that mirror no single file, each for a reason.
TESTS_OF_MORE = {
    "test_architecture": "the shape of the house",
    "test_benchmarks": "benchmarks that need a GPU, without one",
    "test_cli": "the command line as a user meets it",
    "test_cli_text": "the same: what is printed, in any locale",
    "test_cli_traces": "the same: commands about traces",
    "test_docs": "README and docs",
    "test_readme": "every command of the README",
    "test_doctests": "every docstring",
    "test_installed": "the wheel, and other systems",
    "test_lab": "the shipped model",
    "report/test_looks": "every kind of page in a browser",
    "test_real_model": "a pretrained model, end to end",
    "test_runtime_types": "how the tests check the package's annotations",
    "test_trust": "what is never loaded or run",
    "gpu/test_cuda": "what needs a GPU",
    "objective/test_golden": "the whole objective against stored numbers",
    "objective/test_trl_oracle": "the whole objective against TRL",
    "readers/test_bounds": "what would fill the memory, in every format",
    "report/test_committed_results": "the committed data",
    "report/test_hostile_traces": "every page, with hostile names",
    "rollouts/test_families": "every family of models",
    "studies/test_damaged_study": "the folder of a study, damaged",
    "studies/test_killed": "a study, killed",
    "studies/test_recipes": "the shipped TOML files",
    "tasks/test_linear_time": "every grader, with hostile texts",
    "metrics/test_linear_patterns_of_text": "every pattern over model text of metrics and thinking",
    "tasks/test_verdict_cases": "every grader, case by case",
    "traces/test_formats": "files as public tools write them",
    "traces/test_replies": "one reply, whoever saved it",
    "training/test_nowhere_whole": "training where no process holds all weights",
    "training/test_damage": "run directories, damaged",
    "training/test_faults": "a run, with faults",
    "training/test_parallel": "a run, on two processes",
    "training/test_resume": "a run, killed",
    "training/test_zoo": "every method through the loop",
}  # fmt: skip


def test_tests_mirror_the_source():
    tests = Path(__file__).parent
    named = {
        str(path.relative_to(tests).with_suffix("")): SOURCE
        / path.relative_to(tests).parent
        / path.name.removeprefix("test_")
        for path in tests.rglob("test_*.py")
    }
    assert {name for name, of in named.items() if not of.is_file()} == set(TESTS_OF_MORE)


def test_a_public_name_means_one_thing():
    files, names = defaultdict(set), defaultdict(set)
    for path, module in modules():
        if path.stem != "__init__":
            files[path.name].add(module)
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                names[node.name].add(module)
    # Of `python -m` and of the command it starts (the sandbox's child has its own); and what
    # `tasks.workers` calls in any module whose function runs in a worker.
    del names["main"], names["warm_up"]
    twice = {
        name: where for found in (files, names) for name, where in found.items() if len(where) > 1
    }
    assert twice == {}
