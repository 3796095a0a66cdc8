"""`epistill train --print-config` says what every key is, and reads back as the same configuration."""

from __future__ import annotations

import tomllib

import pytest

from epistill.config import (
    EvalSet,
    FileTask,
    Lora,
    RunConfig,
    SamplingConfig,
    StarSearchTask,
)
from epistill.inputs import load_run_config
from epistill.methods import METHODS
from epistill.monitor import Monitor
from epistill.rollout_settings import VllmRollouts
from epistill.studies.config_toml import config_toml, field_docs

TAGS = {"type", "engine"}  # they say which record it is


@pytest.mark.parametrize(
    "kind",
    [RunConfig, SamplingConfig, Lora, EvalSet, StarSearchTask, FileTask, VllmRollouts, Monitor],
)
def test_every_key_is_explained(kind):
    assert set(kind.model_fields) - set(field_docs(kind)) <= TAGS


@pytest.mark.parametrize(
    "flags",
    [
        {"model": "lab", "task": "star-search:4x2", "method": "grpo"},
        {"model": "./m", "task": "problems.jsonl", "method": "sdpo", "lora_rank": 4, "temperature": 0.5,
         "thinking": False, "prompt": "{question}\nThink \"hard\".", "steps": 3, "chat_template": "c.jinja"},
        {"model": "m", "task": "p.jsonl", "method": {"name": "sdpo", "divergence": {"alpha": 1.0}}, "monitor": None,
         "teacher_thinking": None, "stop": ["\n\nQuestion:", "\"."]},
        {"model": "m", "task": "p.jsonl", "method": "opsd", "rollouts": {"engine": "vllm", "urls": ["http://h:1"], "model": "m"}},
        {"model": "m", "task": "p.jsonl", "method": "grpo", "eval_sampling": {"temperature": 0.0},
         "evaluations": [{"name": "held out", "task": {"type": "file", "path": "t.jsonl"}, "kind": "ood"}]},
    ],
)  # fmt: skip
def test_it_reads_back_as_the_same_configuration(flags, tmp_path):
    chosen = load_run_config(None, flags)
    off = {name: None for name in ("monitor", "teacher_thinking") if flags.get(name, 1) is None}
    chosen = chosen.model_copy(update=off)  # a flag that is None changes nothing
    file = tmp_path / "run.toml"
    file.write_text(config_toml(dict(chosen)))
    again = load_run_config(file, {})
    assert again == chosen
    text = file.read_text()
    assert all(f"{key} =" in text or f"[{key}]" in text for key in RunConfig.model_fields)
    assert tomllib.loads(text)["model"] == flags["model"]


def test_published_methods_are_named():
    for name in METHODS:
        chosen = load_run_config(None, {"model": "lab", "task": "star-search", "method": name})
        assert f'method = "{name}"' in config_toml(dict(chosen))
