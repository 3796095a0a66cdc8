"""Student and teacher score the very same tokens."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from epistill.objective import token_log_probs
from epistill.records import Message
from epistill.rollouts import align as module
from epistill.rollouts.align import align, micro_batches, packs
from epistill.rollouts.prompts import render_prompt
from epistill.teacher.context import insert_context
from tests.helpers.families import FAMILIES, tiny_model
from tests.helpers.plain_flash import FLASH, use_plain_flash

OPENING = (
    "{% for m in messages %}<|im_start|>{{ m.role }} {{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant{{ tail }}{% endif %}"
)


def scores(model, prompts, completions):
    batch = align(model, prompts, completions)
    with torch.no_grad():
        logits = model.head().logits(batch.hidden(model))
    return token_log_probs(logits, batch.token_ids), batch


def one_by_one(model, prompt, completion):
    with torch.no_grad():
        logits = model.network(torch.tensor([[*prompt, *completion]])).logits[0]
    start = len(prompt) - 1
    return token_log_probs(logits[start : start + len(completion)], torch.tensor(completion))


@pytest.mark.parametrize("tail", ["", " <think>"], ids=["plain", "opens-think"])
def test_token_for_token_alignment(lab_model, tail):
    """With the teacher's longer prompts, each flat position scores the same completion token, and
    equals an unbatched pass over the teacher's own sequence."""
    tokenizer = lab_model.tokenizer.__class__.from_pretrained(lab_model.tokenizer.name_or_path)
    tokenizer.chat_template = OPENING.replace("{{ tail }}", tail)
    questions = ["edges 13 gold from 13", "edges 13 14 , 14 gold , 20 dust from 13 20"]
    contexts = ["so 13 </think> answer 13", "<think> maybe 20 dust so 13 </think> answer 13"]
    completions = [tokenizer(t, add_special_tokens=False)["input_ids"] for t in (
        "so 13 </think> answer 13 <|im_end|>",
        "maybe 20 dust wait try 13 14 gold </think> answer 13 <|im_end|>",
    )]  # fmt: skip
    student = [render_prompt(tokenizer, [Message("user", q)]).ids for q in questions]
    teacher = [
        render_prompt(tokenizer, [Message("user", insert_context(q, c, "solution"))]).ids
        for q, c in zip(questions, contexts, strict=True)
    ]
    assert all(t[-1] == s[-1] for s, t in zip(student, teacher, strict=True))  # same frame
    mine, my_batch = scores(lab_model, student, completions)
    theirs, their_batch = scores(lab_model, teacher, completions)
    assert torch.equal(my_batch.token_ids, their_batch.token_ids)
    flat = [token for completion in completions for token in completion]
    assert my_batch.token_ids.tolist() == flat
    for prompts, found in ((student, mine), (teacher, theirs)):
        expected = torch.cat(
            [one_by_one(lab_model, p, c) for p, c in zip(prompts, completions, strict=True)]
        )
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)
    assert not torch.allclose(mine, theirs, atol=0.1)


def test_without_context_teacher_and_student_agree_exactly(lab_model):
    prompt = render_prompt(lab_model.tokenizer, [Message("user", "edges 13 gold from 13")]).ids
    completion = lab_model.tokenizer("so 13 </think>", add_special_tokens=False)["input_ids"]
    first, _ = scores(lab_model, [prompt], [completion])
    second, _ = scores(lab_model, [prompt], [completion])
    assert torch.equal(first, second)


@given(st.lists(st.integers(1, 300), min_size=1, max_size=40), st.integers(1, 500))
def test_micro_batches_hold_every_row_once_within_the_limit(lengths, limit):
    batches = list(micro_batches(lengths, max_tokens=limit))
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        padded = max(lengths[i] for i in batch) * len(batch)
        assert padded <= limit or len(batch) == 1
        assert padded - sum(lengths[i] for i in batch) <= 0.1 * padded


def test_padding_is_under_a_tenth_on_long_tailed_lengths_in_few_batches():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randn(256, generator=generator).mul(0.8).add(6).exp().long().tolist()
    batches = list(micro_batches(lengths, max_tokens=32_768))
    padded = sum(max(lengths[i] for i in batch) * len(batch) for batch in batches)
    assert max(lengths) > 10 * sorted(lengths)[len(lengths) // 2]
    assert padded < sum(lengths) / 0.9
    assert len(batches) < 40


@given(st.lists(st.integers(1, 300), min_size=1, max_size=40), st.integers(1, 500))
def test_packed_micro_batches_are_full(lengths, limit):
    batches = list(micro_batches(lengths, max_tokens=limit, packed=True))
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    sizes = [sum(lengths[i] for i in batch) for batch in batches]
    assert all(n <= limit or len(batch) == 1 for n, batch in zip(sizes, batches, strict=True))
    for before, after in pairwise(batches):
        assert sum(lengths[i] for i in before) + lengths[after[0]] > limit


ROWS = [list(range(3, 3 + n)) for n in (9, 4, 13, 2, 8)]
# Families with states that run along tokens.
RUNNING = {
    "bamba", "falcon_h1", "granitemoehybrid", "jamba", "lfm2", "mamba", "mamba2", "minimax",
    "qwen3_5_text", "qwen3_next",
}  # fmt: skip
# transformers sums these in float32, whatever the model's numbers are.
ROUNDED = {"eager": 1e-6, "gemma2": 1e-6, "glm4_moe": 1e-6, "deepseek_v3": 1e-6}


def hidden(model, *, packed):
    model.packs = packed
    with torch.no_grad():
        batch = align(model, [row[:1] for row in ROWS], [row[1:] for row in ROWS])
        return batch.hidden(model), batch


@pytest.mark.parametrize("attention", [None, "eager", FLASH])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_rows_are_packed_where_that_changes_nothing(family, attention, lab_model, monkeypatch):
    """Decided of every family as if its attention had variable lengths, which only FLASH has."""
    use_plain_flash(monkeypatch)
    monkeypatch.setattr(module, "is_flash_attention_requested", lambda config: True)
    made = {"attn_implementation": attention, "experts_implementation": "eager"}
    model = tiny_model(family, lab_model.tokenizer, **made)
    model.network.double()
    decided = packs(model)
    (apart, _), (together, batch) = hidden(model, packed=False), hidden(model, packed=True)
    gap = float((together - apart).norm() / apart.norm())
    assert batch.input_ids.shape == batch.position_ids.shape == (1, sum(map(len, ROWS)))
    near = max(ROUNDED.get(name, 1e-9) for name in (attention, family))
    assert gap < near if decided else gap > 0.2
    masked_otherwise = {"gpt_oss", "opt", "falcon"} if attention != FLASH else set()
    assert decided == (family not in RUNNING | masked_otherwise)


@pytest.mark.parametrize("attention", ["flash_attention_2", "flash_attention_3", FLASH])
def test_what_packs_is_decided_by_attention(attention, lab_model, monkeypatch):
    use_plain_flash(monkeypatch)
    model = tiny_model("llama", lab_model.tokenizer)
    model.network.double()
    config = model.network.config
    for other in ("sdpa", "eager", "flex_attention"):
        config._attn_implementation = other
        assert not packs(model)
    config._attn_implementation = attention
    assert packs(model)
    monkeypatch.setattr(config, "attention_chunk_size", 8192, raising=False)
    assert not packs(model)  # chunks are longer than what is tried


def test_another_network_of_the_kind_packs_too(lab_model):
    model = lab_model.with_network(lab_model.network)
    model.packs = True
    assert model.with_network(model.network).packs
