"""Benchmarks that need a GPU: what can be known of them without one."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import torch

from epistill.studies.load_study import load_study

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def gpu_step(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("gpu_step")


def test_a_step_beside_trl_has_its_loss(gpu_step, monkeypatch, tmp_path):
    out = tmp_path / "step.json"
    sizes = ("--tokens", "24", "40", "--responses", "2", "--repeats", "1")
    flags = ["--trl", "--tiny", *sizes, "--out", f"{out}"]
    monkeypatch.setattr("sys.argv", ["gpu_step.py", *flags])
    gpu_step.main()
    found = json.loads(out.read_text())
    assert "TRL without Liger" in found["title"]
    assert [row["response tokens"] for row in found["rows"]] == [24, 40]
    for row in found["rows"]:  # in float32 a divergence of 1e-5 has four digits
        assert row["loss"] > 1e-6
        assert row["loss gap"] < 1e-3 * row["loss"]
        assert min(row["ours tokens/s"], row["TRL tokens/s"]) > 0


def test_without_a_gpu_or_liger_it_is_one_line(gpu_step, monkeypatch):
    monkeypatch.setattr("sys.argv", ["gpu_step.py", "--trl"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match=r"^no CUDA device found; expected one"):
        gpu_step.main()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu_step, "is_liger_kernel_available", lambda: False)
    with pytest.raises(SystemExit, match=r"^no liger-kernel; expected it"):
        gpu_step.main()


def test_the_shapes_are_those_of_the_recipes(gpu_step):
    recipes = {"8b-think": gpu_step.QWEN3_8B, "1.7b": gpu_step.QWEN3_1_7B}
    for name, shape in recipes.items():
        (stated,) = load_study(f"recipes/math-qwen3-{name}").architectures.values()
        assert {key: getattr(stated, key) for key in shape} == shape
