from __future__ import annotations

import pytest
import torch
from peft import PeftModel

from epistill.errors import EpistillError
from epistill.json_files import read_jsonl
from epistill.records import Message
from epistill.rollouts.load_model import lab_directory, load_model
from epistill.rollouts.prompts import render_prompt
from epistill.smollm2.warm_start import PER_STEP, merge_shipped, shipped_adapter, warm_start


def test_the_whole_way_on_a_small_model_and_again(tmp_path):
    lab = str(lab_directory())
    merged = warm_start(lab, tmp_path / "warm", seed=3, sequences=3 * PER_STEP)
    assert len(read_jsonl(tmp_path / "warm" / "corpus.jsonl")) == 3 * PER_STEP
    written = (merged / "model.safetensors").stat().st_mtime_ns
    assert warm_start(lab, tmp_path / "warm", seed=3, sequences=3 * PER_STEP) == merged
    assert (merged / "model.safetensors").stat().st_mtime_ns == written

    found = load_model(str(merged), dtype="bfloat16")
    assert not hasattr(found.network, "peft_config")
    prompt = render_prompt(found.tokenizer, [Message("user", "from 10 11")])
    assert prompt.opens_thinking
    assert "system" not in prompt.text
    base = dict(load_model(lab, dtype="bfloat16").network.named_parameters())
    adapted = PeftModel.from_pretrained(
        load_model(lab, dtype="bfloat16").causal_lm(), str(tmp_path / "warm" / "run" / "model")
    )
    ours = dict(found.network.named_parameters())
    theirs = dict(adapted.merge_and_unload().named_parameters())
    assert ours.keys() == theirs.keys() == base.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in base)
    assert not all(torch.equal(ours[name], base[name]) for name in base)


def test_too_few_sequences_are_refused(tmp_path):
    with pytest.raises(EpistillError, match="at least 24"):
        warm_start("lab", tmp_path, sequences=10)


def test_the_shipped_adapter_goes_on_its_own_base_only(tmp_path):
    with pytest.raises(EpistillError, match="other weights"):
        merge_shipped("lab", tmp_path)
    assert not (tmp_path / "merged").exists()


def test_the_shipped_adapter_is_small_and_has_a_card():
    files = {file.name: file.stat().st_size for file in shipped_adapter().iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "card.json", "README.md"} <= set(
        files
    )
    assert sum(files.values()) < 12e6
