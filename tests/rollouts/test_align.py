"""Student and teacher score the very same tokens."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from epistill.objective import token_log_probs
from epistill.records import Message
from epistill.rollouts.align import align, micro_batches
from epistill.rollouts.prompts import render_prompt
from epistill.teacher.context import insert_context

OPENING = (
    "{% for m in messages %}<|im_start|>{{ m.role }} {{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant{{ tail }}{% endif %}"
)


def scores(model, prompts, completions):
    batch = align(prompts, completions, pad_id=model.pad_id, device=model.device)
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
