"""Files from outside are data: no pickle is loaded, no code that came with a model or data set runs.

Programs of a model are the one exception; `tasks/test_sandbox.py` is about them.
"""

from __future__ import annotations

import ast
import contextlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from epistill.errors import EpistillError
from epistill.rollouts.load_model import lab_directory, load_model, load_without_weights
from epistill.store import RunStore
from epistill.studies.draw_report import draw_again
from epistill.tasks.files import load_problems
from tests.helpers.committed import committed

SOURCE = Path(__file__).resolve().parents[1] / "src" / "epistill"
MODULES = sorted(SOURCE.rglob("*.py"))
UNPICKLERS = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
LOADERS = {"load", "loads", "read_pickle", "Unpickler"}


def calls(path: Path) -> list[ast.Call]:
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]


def test_there_is_something_to_look_at():
    assert len(MODULES) > 50


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_no_module_unpickles_or_executes_what_it_read(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert not {alias.name.split(".")[0] for alias in node.names} & UNPICKLERS
        if isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] not in UNPICKLERS
    for call in calls(path):
        called = ast.unparse(call.func)
        owner, _, name = called.rpartition(".")
        assert not (owner in ("torch", "np", "numpy", "pd", "pl", *UNPICKLERS) and name in LOADERS)
        if called in ("exec", "eval", "compile"):
            assert path.name == "sandbox_child.py", f"{path}: {called}"
        for keyword in call.keywords:
            if keyword.arg == "trust_remote_code":  # handed on, or off; never on
                assert ast.unparse(keyword.value) in ("trust", "trust_remote_code", "False")
            if keyword.arg == "allow_pickle":
                assert ast.unparse(keyword.value) == "False"


CODE = """
from pathlib import Path
Path({mark!r}).write_text("ran")
from transformers import {base}
class Evil({base}):
    model_type = "evil"
"""


@pytest.fixture
def with_code(tmp_path):
    """A copy of the lab's model whose configuration, network and tokenizer point to own code."""

    def make(model_type: str) -> tuple[Path, Path]:
        folder, mark = tmp_path / "model", tmp_path / "mark"
        shutil.copytree(lab_directory(), folder)
        for module, base in (
            ("configuration_evil", "Qwen3Config"),
            ("modeling_evil", "Qwen3ForCausalLM"),
            ("tokenization_evil", "PreTrainedTokenizerFast"),
        ):
            (folder / f"{module}.py").write_text(CODE.format(mark=str(mark), base=base))
        for file, auto in (
            ("config.json", {"AutoConfig": "configuration_evil.Evil",
                             "AutoModelForCausalLM": "modeling_evil.Evil"}),
            ("tokenizer_config.json", {"AutoTokenizer": [None, "tokenization_evil.Evil"]}),
        ):  # fmt: skip
            settings = json.loads((folder / file).read_text())
            settings["auto_map"] = auto
            if file == "config.json":
                settings["model_type"] = model_type
            (folder / file).write_text(json.dumps(settings))
        return folder, mark

    return make


def test_code_beside_a_known_kind_of_model_is_ignored(with_code, lab_model):
    folder, mark = with_code("qwen3")
    loaded = load_model(str(folder))
    assert type(loaded.network) is type(lab_model.network)
    assert not mark.exists()


def test_a_model_that_needs_its_own_code_is_refused_in_one_line(with_code):
    folder, mark = with_code("evil")
    with pytest.raises(EpistillError) as refused:
        load_model(str(folder))
    assert "\n" not in str(refused.value)
    assert "trust_remote_code" in str(refused.value)
    assert not mark.exists()


def test_the_same_model_runs_its_code_when_asked(with_code):
    """So that the test above cannot pass because the model is broken."""
    folder, mark = with_code("evil")
    with contextlib.suppress(EpistillError):
        load_model(str(folder), trust_remote_code=True)
    assert mark.exists()


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_a_kernel_that_a_model_names_is_not_fetched(key, tmp_path):
    """Kernels are code; only `attention` names one."""
    shutil.copytree(lab_directory(), tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), key: "somebody/flash-kernel"}))
    loaded = load_model(str(tmp_path / "model"))
    assert loaded.network.config._attn_implementation == "sdpa"
    load_without_weights(str(tmp_path / "model"))
    with pytest.raises(EpistillError, match="with attention 'somebody/flash-kernel'"):
        load_model("lab", attention="somebody/flash-kernel")


def test_a_pickled_adapter_is_not_loaded(tmp_path, lab_model, monkeypatch):
    import copy

    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(
        copy.deepcopy(lab_model.network), LoraConfig(r=2, target_modules=["q_proj"])
    )
    adapted.peft_config["default"].base_model_name_or_path = str(lab_directory())
    folder = tmp_path / "adapter"
    adapted.save_pretrained(folder, safe_serialization=True)
    lab_model.tokenizer.save_pretrained(folder)
    load_model(str(folder))
    weights = load_file(folder / "adapter_model.safetensors")
    (folder / "adapter_model.safetensors").unlink()
    torch.save(weights, folder / "adapter_model.bin")
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("a pickle was loaded"))
    with pytest.raises(EpistillError, match="adapter without adapter_model"):
        load_model(str(folder))


def test_a_module_that_an_adapter_names_is_not_imported(tmp_path, lab_model, monkeypatch):
    """PEFT imports what `megatron_core` and `parent_library` say; from its own few names only."""
    import copy

    from peft import LoraConfig, get_peft_model

    mark = tmp_path / "mark"
    (tmp_path / "evil_module.py").write_text(f"open({str(mark)!r}, 'w').close()")
    monkeypatch.syspath_prepend(tmp_path)
    adapted = get_peft_model(
        copy.deepcopy(lab_model.network), LoraConfig(r=2, target_modules=["q_proj"])
    )
    adapted.peft_config["default"].base_model_name_or_path = str(lab_directory())
    folder = tmp_path / "adapter"
    adapted.save_pretrained(folder)
    lab_model.tokenizer.save_pretrained(folder)
    settings = json.loads((folder / "adapter_config.json").read_text())
    for named in (
        {"megatron_config": {"a": 1}, "megatron_core": "evil_module"},
        {"auto_mapping": {"base_model_class": "Evil", "parent_library": "evil_module"}},
    ):
        (folder / "adapter_config.json").write_text(json.dumps({**settings, **named}))
        with contextlib.suppress(EpistillError):
            load_model(str(folder))
        assert not mark.exists(), named


def test_modules_beside_a_model_or_data_are_not_imported(tmp_path, monkeypatch):
    """Nor by worker processes, although theirs would be the first place that Python looks at."""
    from epistill.tasks.grading import grade_responses

    folder, mark = tmp_path / "model", tmp_path / "mark"
    shutil.copytree(lab_directory(), folder)
    for name in ("epistill", "json", "sympy", "re", "torch", "sitecustomize", "conftest"):
        (folder / f"{name}.py").write_text(f"open({str(mark)!r}, 'w').close()")
    (folder / "data.jsonl").write_text(json.dumps({"question": "1 + 1?", "answer": "2"}) + "\n")
    monkeypatch.chdir(folder)
    load_model(".")
    (problem,) = load_problems("data.jsonl").problems
    (grade,) = grade_responses([("math", problem.answer, "\\boxed{2}")])
    assert grade.score == 1.0
    assert not mark.exists()


def test_a_report_and_a_result_import_nothing(tmp_path):
    """A method of a Python file, named wherever a report or a run's result could name one."""
    mark = tmp_path / "mark"
    (tmp_path / "evil.py").write_text(f"open({str(mark)!r}, 'w').close()")
    named = f"{tmp_path / 'evil.py'}:method"
    report = committed("lab")
    for arm in (*report["arms"], *report["settings"]["arms"]):
        arm |= {"method": named}
    report["settings"]["method"] = named
    study, run = tmp_path / "study", tmp_path / "run"
    for folder in (study, run):
        folder.mkdir()
    (study / "report.json").write_text(json.dumps(report))
    result = {"steps": 1, "method": named, "config": {"method": {"name": named}}, "evaluations": {}}
    (run / "result.json").write_text(json.dumps(result))
    with contextlib.suppress(EpistillError):
        draw_again(study, tmp_path / "page.html")
    with contextlib.suppress(EpistillError):
        RunStore(run).result  # noqa: B018 - read, and found without a manifest
    assert not mark.exists()


def test_a_script_beside_a_data_set_does_not_run(tmp_path):
    folder, mark = tmp_path / "set", tmp_path / "mark"
    folder.mkdir()
    (folder / "set.py").write_text(CODE.format(mark=str(mark), base="PreTrainedTokenizerFast"))
    (folder / "train.jsonl").write_text(json.dumps({"question": "1 + 1?", "answer": "2"}) + "\n")
    with pytest.raises(EpistillError, match="scripts are no longer supported") as refused:
        load_problems(str(folder))
    assert "\n" not in str(refused.value)
    assert not mark.exists()
