"""Models from GGUF files: loaded, saved as ordinary directories; what is wrong is one line."""

from __future__ import annotations

import shutil

import pytest
import torch

from epistill.errors import EpistillError
from epistill.rollouts import load_model as module
from epistill.rollouts.load_model import load_model, model_source

gguf = pytest.importorskip("gguf")
TOKENS = ["<|endoftext|>", "<|im_end|>", *(chr(c) for c in range(33, 127)), "Ġ", "ab", "Ġa"]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A tiny random Llama, written as llama.cpp writes them."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    heads, width, inner = 2, 32, 64
    out = gguf.GGUFWriter(path, "llama")
    out.add_context_length(128)
    out.add_embedding_length(width)
    out.add_block_count(1)
    out.add_feed_forward_length(inner)
    out.add_head_count(heads)
    out.add_head_count_kv(heads)
    out.add_layer_norm_rms_eps(1e-5)
    out.add_rope_freq_base(10_000.0)
    out.add_vocab_size(len(TOKENS))
    out.add_tokenizer_model("gpt2")
    out.add_token_list(TOKENS)
    out.add_token_merges(["a b", "Ġ a"])
    out.add_bos_token_id(0)
    out.add_eos_token_id(1)
    out.add_chat_template("{% for m in messages %}{{ m.content }}{% endfor %}")
    torch.manual_seed(0)
    square, wide = (width, width), (inner, width)
    shapes = {
        "token_embd": (len(TOKENS), width), "output_norm": (width,), "output": (len(TOKENS), width),
        "blk.0.attn_norm": (width,), "blk.0.ffn_norm": (width,), "blk.0.attn_q": square,
        "blk.0.attn_k": square, "blk.0.attn_v": square, "blk.0.attn_output": square,
        "blk.0.ffn_gate": wide, "blk.0.ffn_up": wide, "blk.0.ffn_down": wide[::-1],
    }  # fmt: skip
    for name, shape in shapes.items():
        out.add_tensor(f"{name}.weight", torch.randn(shape).numpy())
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path


def test_a_gguf_is_loaded_and_saved_as_an_ordinary_directory(file, tmp_path):
    model = load_model(str(file))
    model.network.save_pretrained(tmp_path / "plain")
    model.tokenizer.save_pretrained(tmp_path / "plain")
    again = load_model(str(tmp_path / "plain"))
    ids = torch.tensor([[5, 9, 2, 40]])
    with torch.no_grad():
        assert torch.equal(model.network(ids).logits, again.network(ids).logits)
    assert again.eos_ids == model.eos_ids == {1}
    assert again.tokenizer("ab a").input_ids == model.tokenizer("ab a").input_ids
    assert again.tokenizer.chat_template == model.tokenizer.chat_template
    assert "quantization_config" not in again.network.config.to_dict()


def test_a_log_gets_no_progress_bar(file, capsys):
    load_model(str(file))
    assert capsys.readouterr().err == ""


def test_a_directory_that_holds_only_one_is_that_file(file, tmp_path):
    assert model_source(str(file.parent)) == str(file)
    for name in "ab":
        shutil.copy(file, tmp_path / f"{name}.gguf")
    with pytest.raises(EpistillError, match=r"2 GGUF files; name one: a\.gguf, b\.gguf"):
        model_source(str(tmp_path))


@pytest.mark.parametrize("size", [0, 3, 200, 5000, 20_000])
def test_a_damaged_one_is_one_line(file, tmp_path, size):
    damaged = tmp_path / "half.gguf"
    damaged.write_bytes(file.read_bytes()[:size])
    with pytest.raises(EpistillError) as found:
        load_model(str(damaged))
    assert "half.gguf" in str(found.value)
    assert "\n" not in str(found.value)


def test_what_is_missing_is_said(file, monkeypatch, tmp_path):
    with pytest.raises(EpistillError, match="no such directory"):
        load_model(str(tmp_path / "none.gguf"))
    with pytest.raises(EpistillError, match="no such directory"):
        load_model("none.gguf")
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(EpistillError, match=r"epistill\[gguf\]"):
        load_model(str(file))


def test_a_local_model_is_named_by_its_whole_path(file, monkeypatch):
    monkeypatch.chdir(file.parent)
    assert model_source("./tiny.gguf") == str(file)
    assert load_model("tiny.gguf").network.config.name_or_path == str(file)
