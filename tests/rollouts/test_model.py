from __future__ import annotations

import shutil

import pytest
import torch

from epistill.errors import EpistillError
from epistill.rollouts.load_model import lab_directory, load_model, use_attention
from epistill.rollouts.model import Head, LanguageModel
from tests.helpers.plain_flash import FLASH, use_plain_flash


@pytest.fixture
def copy_of_lab(tmp_path):
    return shutil.copytree(lab_directory(), tmp_path / "model")


def test_a_directory_loads_like_the_shipped_model(copy_of_lab, lab_model):
    loaded = load_model(str(copy_of_lab))
    for name, parameter in loaded.network.named_parameters():
        assert torch.equal(parameter, dict(lab_model.network.named_parameters())[name])
    assert loaded.max_positions == 512
    assert loaded.tokenizer.convert_ids_to_tokens(sorted(loaded.eos_ids)) == ["<|im_end|>"]


@pytest.mark.parametrize(
    ("remove", "words"),
    [
        (("config.json",), "no config.json in it"),
        (("tokenizer.json", "tokenizer_config.json"), "no usable tokenizer"),
        (("model.safetensors",), "safetensors weights"),
    ],
)
def test_incomplete_directories_get_one_line(copy_of_lab, remove, words):
    for name in remove:
        (copy_of_lab / name).unlink()
    with pytest.raises(EpistillError, match=words) as caught:
        load_model(str(copy_of_lab))
    assert "\n" not in str(caught.value)


def test_pickled_weights_are_not_loaded(copy_of_lab, lab_model):
    (copy_of_lab / "model.safetensors").unlink()
    torch.save(lab_model.network.state_dict(), copy_of_lab / "pytorch_model.bin")
    with pytest.raises(EpistillError, match="could not be loaded"):
        load_model(str(copy_of_lab))


def test_nothing_there():
    with pytest.raises(EpistillError, match="no such directory"):
        load_model("./nowhere")


def test_hidden_states_and_head_are_the_models_logits(lab_model):
    ids = torch.randint(0, 60, (3, 17), generator=torch.Generator().manual_seed(0))
    rows, columns = torch.tensor([0, 2, 2]), torch.tensor([16, 0, 5])
    with torch.no_grad():
        found = lab_model.head().logits(lab_model.hidden(ids, rows, columns))
        expected = lab_model.network(ids).logits[rows, columns]
    torch.testing.assert_close(found, expected)


def families():
    from transformers import (
        CohereConfig,
        CohereForCausalLM,
        Gemma2Config,
        Gemma2ForCausalLM,
        GraniteConfig,
        GraniteForCausalLM,
    )

    common = {
        "vocab_size": 73, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
    }  # fmt: skip
    return {
        "soft-cap": lambda: Gemma2ForCausalLM(
            Gemma2Config(head_dim=8, final_logit_softcapping=0.5, **common)
        ),
        "logit scale": lambda: CohereForCausalLM(CohereConfig(logit_scale=0.0625, **common)),
        "logits scaling": lambda: GraniteForCausalLM(GraniteConfig(logits_scaling=8.0, **common)),
    }


@pytest.mark.parametrize("family", ["soft-cap", "logit scale", "logits scaling"])
def test_models_that_scale_or_cap_their_logits(family, lab_model, tmp_path):
    torch.manual_seed(0)
    network = families()[family]().eval()
    with torch.no_grad():
        network.get_output_embeddings().weight.mul_(20)  # so that the cap binds
    network.save_pretrained(tmp_path)
    lab_model.tokenizer.save_pretrained(tmp_path)
    model = load_model(str(tmp_path))  # refuses if its head disagrees with the model's
    plain = Head(model.head().weight)
    ids = torch.arange(8).unsqueeze(0)
    rows, columns = torch.zeros(8, dtype=torch.long), torch.arange(8)
    with torch.no_grad():
        hidden = model.hidden(ids, rows, columns)
        torch.testing.assert_close(model.head().logits(hidden), model.network(ids).logits[0])
        assert not torch.allclose(plain.logits(hidden), model.network(ids).logits[0], atol=1e-3)


def test_an_unknown_head_is_refused(lab_model, tmp_path):
    """Were a model to change its logits in a way we do not know, the check must say so."""
    from epistill.rollouts import load_model as module

    strange = LanguageModel(lab_model.network, lab_model.tokenizer, "strange")
    strange.head = lambda: Head(lab_model.head().weight, scale=2.0)
    with pytest.raises(EpistillError, match="a way this package does not know"):
        module._check_head(strange)


def test_attention_is_the_one_that_was_named(monkeypatch):
    use_plain_flash(monkeypatch)
    plain, eager = load_model("lab"), load_model("lab", attention="eager")
    assert [one.network.config._attn_implementation for one in (plain, eager)] == ["sdpa", "eager"]
    assert [plain.packs, eager.packs] == [False, False]
    # Weights in float32 need bfloat16 to compute in: the kernel has no float32.
    for computes in ({"dtype": "bfloat16"}, {"precision": "bf16"}):
        assert load_model("lab", attention=FLASH, **computes).packs
    with pytest.raises(EpistillError, match=r"only support fp16 and bf16.*number type") as refused:
        load_model("lab", attention=FLASH)
    assert "\n" not in str(refused.value)


def test_attention_may_be_given_once_the_weights_are_there(monkeypatch):
    use_plain_flash(monkeypatch)
    at_once, later = (load_model("lab", dtype="bfloat16", attention=a) for a in (FLASH, None))
    assert (at_once.packs, later.packs) == (True, False)
    use_attention(later, FLASH)
    assert later.packs
    row = torch.arange(5, 17)
    asked = row.unsqueeze(0), torch.zeros_like(row), row - 5
    assert torch.equal(later.hidden(*asked), at_once.hidden(*asked))
    for model, attention, said in (
        (load_model("lab"), FLASH, "only support fp16 and bf16"),
        (later, "flesh", "cannot have attention 'flesh'"),
    ):
        with pytest.raises(EpistillError, match=said) as refused:
            use_attention(model, attention)
        assert "\n" not in str(refused.value)


def test_the_folder_of_a_run_names_its_model(tmp_path):
    for path in (tmp_path / "config.json", tmp_path / "environment.json"):
        path.write_text("{}")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(EpistillError, match=r"the folder of a run; its model is .*model'"):
        load_model(str(tmp_path))
