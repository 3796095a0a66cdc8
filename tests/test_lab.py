"""The shipped model against its card; the corpus against the ordinary code path."""

from __future__ import annotations

import pytest
import torch

from epistill.lab.card import measure_card, read_card
from epistill.lab.corpus import IGNORE, Corpus
from epistill.lab.dials import measure_dials
from epistill.records import Message
from epistill.rollouts.load_model import lab_directory
from epistill.rollouts.prompts import render_prompt
from epistill.tasks.star_traces import DEFAULT_DIALS


def test_the_shipped_weights_score_what_the_card_claims():
    claimed, found = read_card(), measure_card()
    # 400 problems x 8 samples with named seeds: only floating point may differ between machines.
    for world, score in claimed["score"].items():
        assert found["score"][world] == pytest.approx(score, abs=0.02)
        assert found["density_per_1k_tokens"][world] == pytest.approx(
            claimed["density_per_1k_tokens"][world], rel=0.05
        )


def test_the_card_counts_its_parameters_and_is_small(lab_model):
    count = sum(p.numel() for p in lab_model.network.parameters())
    assert read_card()["parameters"] == count
    size = sum(f.stat().st_size for f in lab_directory().iterdir())
    assert size < 3_000_000
    assert type(lab_model.network).__name__ == "Qwen3ForCausalLM"
    assert lab_model.tokenizer.is_fast


def test_the_readme_of_the_model_repeats_the_card():
    text = (lab_directory() / "README.md").read_text()
    for world, score in read_card()["score"].items():
        assert f"{world} .{round(score * 1000):03d}" in text


def test_the_dials_are_near_what_was_taught(lab_model):
    """Nominal dials only aim; docs/lab.md and the card say what was reached."""
    claimed = read_card()["dials"]
    assert measure_dials(lab_model) == pytest.approx(claimed, abs=0.01)
    assert claimed["commit"] == pytest.approx(DEFAULT_DIALS.commit, abs=0.1)
    assert claimed["recovery"] == pytest.approx(DEFAULT_DIALS.recovery, abs=0.2)


def test_corpus_encoding_equals_the_tokenizer(lab_model):
    """The corpus splits words itself for speed; ids must be those of template and tokenizer."""
    tokenizer = lab_model.tokenizer
    corpus = Corpus(tokenizer, DEFAULT_DIALS, seed=0)
    start, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    for index in range(60):
        sequence = corpus.sequence(index)
        assert tokenizer.unk_token_id not in sequence.ids
        asked = sequence.ids[2 : sequence.ids.index(end)]
        question = tokenizer.decode(list(asked))
        rendered = render_prompt(tokenizer, [Message("user", question)]).ids
        assert sequence.ids[: len(rendered)] == rendered
        assert set(sequence.labels[: len(rendered)]) == {IGNORE}
        assert sequence.ids[0] == start
        assert sequence.ids[-1] == sequence.labels[-1] == end


def test_corpus_is_named_by_seed_and_index(lab_model):
    def corpus(seed):
        return [Corpus(lab_model.tokenizer, DEFAULT_DIALS, seed).sequence(i) for i in range(20)]

    assert corpus(0) == corpus(0)
    assert corpus(0) != corpus(1)


def test_pretraining_moves_every_weight_and_repeats(monkeypatch):
    from transformers import Qwen3ForCausalLM

    from epistill.lab import pretrain
    from epistill.lab.build import build_config, build_tokenizer
    from epistill.seeds import derive_seed

    monkeypatch.setattr(pretrain, "BATCH_SIZE", 16)

    def trained(seed):
        found = []
        model, _ = pretrain.pretrain(
            DEFAULT_DIALS, seed=seed, steps=4, on_step=lambda step, loss: found.append(loss)
        )
        return found, dict(model.named_parameters())

    losses, weights = trained(0)
    torch.manual_seed(derive_seed("pretrain_init", 0))
    before = dict(Qwen3ForCausalLM(build_config(build_tokenizer())).named_parameters())
    assert all((weights[name] != before[name]).any() for name in before)
    assert len(losses) == 4
    assert losses == trained(0)[0]
    assert losses != trained(1)[0]


def test_the_templates_stay_within_the_labs_vocabulary(lab_model):
    from epistill.teacher.context import TEMPLATES

    for template in TEMPLATES.values():
        text = template.format(question="edges", context="so 18")
        ids = lab_model.tokenizer(text)["input_ids"]
        assert lab_model.tokenizer.unk_token_id not in ids
