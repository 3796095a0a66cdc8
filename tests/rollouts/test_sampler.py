from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from epistill.config import SamplingConfig
from epistill.errors import BudgetExceeded
from epistill.rollouts import sampler
from epistill.rollouts.engine import PromptRequest
from epistill.rollouts.kv_cache import GrowingLayer, decoding_mask, make_cache
from epistill.rollouts.model import LanguageModel
from epistill.rollouts.prompts import render_prompt
from epistill.rollouts.sampler import filter_log_probs, sample
from epistill.tasks.star_search import star_problem


def requests(model, worlds=((5, 3), (3, 2), (4, 3), (5, 3))):
    problems = [star_problem(a, d, 0, "sampler", i) for i, (a, d) in enumerate(worlds)]
    return [PromptRequest(p.id, render_prompt(model.tokenizer, p.messages).ids) for p in problems]


def draw(model, seed=0, samples=3, entropies=False, **settings):
    sampling = SamplingConfig(**{"max_new_tokens": 40, **settings})
    return sample(
        model, requests(model), samples=samples, sampling=sampling, seed=seed, entropies=entropies
    )


def reference_log_probs(model, rollout, temperature=1.0):
    """The plain way: one forward pass over the whole sequence, no cache, no padding."""
    ids = torch.tensor([[*rollout.prompt_ids, *rollout.completion_ids]])
    with torch.no_grad():
        logits = model.network(ids).logits[0].double() / temperature
    start = len(rollout.prompt_ids)
    predicting = logits[start - 1 : -1].log_softmax(-1)
    entropy = -(predicting.exp() * predicting).sum(-1)
    chosen = predicting[torch.arange(len(rollout.completion_ids)), list(rollout.completion_ids)]
    return chosen, entropy


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_and_entropies_are_the_models_own(lab_model, temperature):
    """Prompts of different lengths, rows that leave: every number must still be right."""
    for rollout in draw(lab_model, temperature=temperature, entropies=True):
        log_probs, entropies = reference_log_probs(lab_model, rollout, temperature)
        torch.testing.assert_close(
            torch.tensor(rollout.logprobs).double(), log_probs, atol=2e-4, rtol=0
        )
        torch.testing.assert_close(
            torch.tensor(rollout.entropies).double(), entropies, atol=2e-4, rtol=0
        )


def test_greedy_equals_generate(lab_model):
    rollouts = draw(lab_model, temperature=0.0, samples=1)
    for rollout in rollouts:
        generated = lab_model.network.generate(
            torch.tensor([rollout.prompt_ids]), do_sample=False, max_new_tokens=40
        )
        assert tuple(generated[0, len(rollout.prompt_ids) :].tolist()) == rollout.completion_ids


def test_order_counts_and_stop_reasons(lab_model):
    rollouts = draw(lab_model)
    asked = requests(lab_model)
    assert [r.problem_id for r in rollouts] == [q.problem_id for q in asked for _ in range(3)]
    assert [r.sample for r in rollouts] == [0, 1, 2] * len(asked)
    end = lab_model.tokenizer.eos_token_id
    for rollout in rollouts:
        assert (rollout.completion_ids[-1] == end) == (rollout.stop_reason == "eos")
        assert end not in rollout.completion_ids[:-1]
        assert "<|im_end|>" not in rollout.text
    cut = draw(lab_model, max_new_tokens=3)
    assert {len(r.completion_ids) for r in cut} == {3}
    assert {r.stop_reason for r in cut} == {"length"}


def test_the_seed_decides(lab_model):
    assert draw(lab_model, seed=1) == draw(lab_model, seed=1)
    assert draw(lab_model, seed=1) != draw(lab_model, seed=2)


def test_entropies_are_recorded_where_asked_for_and_change_nothing_else(lab_model):
    plain, told = draw(lab_model), draw(lab_model, entropies=True)
    assert {rollout.entropies for rollout in plain} == {None}
    assert [dataclasses.replace(rollout, entropies=None) for rollout in told] == plain


def test_draws_do_not_depend_on_the_company(lab_model):
    """Sampled alone or beside others, in one batch or several: the same responses."""
    asked = [PromptRequest(r.problem_id, r.ids, draw) for draw, r in enumerate(requests(lab_model))]

    def ids(requests, **more):
        sampling = SamplingConfig(max_new_tokens=40, **more)
        rollouts = sample(lab_model, requests, samples=3, sampling=sampling, seed=5)
        return {(r.problem_id, r.sample): r.completion_ids for r in rollouts}

    together = ids(asked)
    assert ids(asked, batch_rows=3) == together
    assert {k: v for r in asked for k, v in ids([r]).items()} == together


def test_small_batches_stay_right(lab_model):
    rollouts = sample(
        lab_model,
        requests(lab_model),
        samples=2,
        sampling=SamplingConfig(max_new_tokens=30, batch_rows=2),
        seed=0,
    )
    for rollout in rollouts:
        log_probs, _ = reference_log_probs(lab_model, rollout)
        torch.testing.assert_close(
            torch.tensor(rollout.logprobs).double(), log_probs, atol=2e-4, rtol=0
        )


def test_top_k_and_top_p_reach_the_sampler(lab_model):
    for settings_ in ({"top_k": 1}, {"top_p": 1e-6}):
        narrow = draw(lab_model, samples=1, **settings_)
        greedy = draw(lab_model, samples=1, temperature=0.0)
        assert [r.completion_ids for r in narrow] == [r.completion_ids for r in greedy]


def test_a_stop_text_ends_a_response_where_it_is_complete(lab_model):
    """Against the same draws without it: cut behind the token that completes it, not said twice."""
    whole = draw(lab_model, max_new_tokens=60)
    middle = max((rollout.text for rollout in whole), key=len)
    stop = middle[len(middle) // 2 :][:5]
    found = draw(lab_model, max_new_tokens=60, stop=("never written", stop))
    assert any(stop in rollout.text for rollout in whole)
    for before, after in zip(whole, found, strict=True):
        n = len(after.completion_ids)
        assert after.completion_ids == before.completion_ids[:n]
        text = before.text.partition(stop)[0]
        assert after.text == text
        if stop in before.text:
            decode = lab_model.tokenizer.decode
            assert stop in decode(list(after.completion_ids))
            assert stop not in decode(list(after.completion_ids[:-1]))
            assert after.stop_reason == "eos"
        else:
            assert after == before


@pytest.mark.parametrize("large", [2**14, 1], ids=["by-keys", "by-running-sum"])
def test_first_tokens_follow_the_models_distribution(lab_model, monkeypatch, large):
    monkeypatch.setattr(sampler, "LARGE_VOCABULARY", large)
    request = requests(lab_model)[:1]
    rollouts = sample(
        lab_model, request, samples=4000, seed=0,
        sampling=SamplingConfig(max_new_tokens=1, batch_rows=4000),
    )  # fmt: skip
    with torch.no_grad():
        logits = lab_model.network(torch.tensor([request[0].ids])).logits[0, -1]
    expected = logits.double().softmax(-1)
    counts = torch.zeros_like(expected)
    for rollout in rollouts:
        counts[rollout.completion_ids[0]] += 1
    error = (counts / 4000 - expected).abs()
    assert (error < 5 * (expected * (1 - expected) / 4000).sqrt() + 1e-3).all()


@pytest.mark.parametrize("size", [7, sampler.SUMMED, 3 * sampler.SUMMED, 1000])
def test_a_running_sum_by_blocks_finds_the_token_of_the_whole_sum(size):
    generator = torch.Generator().manual_seed(size)
    logits = 4 * torch.randn(500, size, generator=generator)
    logits[:, size // 2 :].masked_fill_(logits[:, size // 2 :] < 2, -torch.inf)
    log_probs = logits.log_softmax(-1)
    noise = torch.empty(500, 1).exponential_(generator=generator)
    noise[:2] = torch.tensor([[1e-30], [60.0]])  # the last token that has any mass, and the first
    found = sampler.by_running_sum(log_probs, SamplingConfig(), noise)
    sums = log_probs.exp().cumsum(-1, dtype=torch.float64)
    reached = (-noise.double()).exp() * sums[:, -1:]
    assert log_probs.gather(1, found.unsqueeze(1)).isfinite().all()
    above = torch.nn.functional.pad(sums, (1, 0))
    low, high = (above.gather(1, found.unsqueeze(1) + more) for more in (0, 1))
    assert ((low - 1e-6 <= reached) & (reached <= high + 1e-6)).all()
    assert found[1] == log_probs[1].isfinite().nonzero()[0]


def test_a_running_sum_draws_neither_what_is_filtered_nor_by_its_neighbours(lab_model, monkeypatch):
    monkeypatch.setattr(sampler, "LARGE_VOCABULARY", 1)
    several = requests(lab_model)[:3]
    settings = {"samples": 4, "seed": 3, "sampling": SamplingConfig(max_new_tokens=12, top_k=2)}
    together = sample(lab_model, several, **settings)
    alone = [r for one in several for r in sample(lab_model, [one], **settings)]
    assert [r.completion_ids for r in together] == [r.completion_ids for r in alone]
    for rollout in together:
        ids = torch.tensor([[*rollout.prompt_ids, *rollout.completion_ids]])
        with torch.no_grad():
            logits = lab_model.network(ids).logits[0, len(rollout.prompt_ids) - 1 : -1]
        likely = logits.topk(2).indices
        assert (likely == torch.tensor(rollout.completion_ids).unsqueeze(1)).any(1).all()


def test_a_prompt_too_long_for_the_model_is_refused(lab_model):
    with pytest.raises(BudgetExceeded, match="512 positions"):
        draw(lab_model, max_new_tokens=500)


@settings(max_examples=50)
@given(st.lists(st.floats(-5, 5), min_size=2, max_size=9), st.integers(1, 9), st.floats(0.05, 1.0))
def test_filters_keep_the_smallest_sufficient_set(logits, k, p):
    log_probs = torch.tensor(logits, dtype=torch.float64).log_softmax(-1)
    kept = filter_log_probs(log_probs.unsqueeze(0), top_k=k, top_p=p)[0].isfinite()
    order = sorted(range(len(logits)), key=lambda i: -log_probs[i].item())
    by_k = [i for i in order if log_probs[i] >= log_probs[order[min(k, len(order)) - 1]]]
    mass = math.fsum(log_probs[i].exp().item() for i in by_k)
    gathered, expected = 0.0, []
    for i in by_k:
        if gathered >= p - 1e-12 and gathered > 0:
            break
        expected.append(i)
        gathered += log_probs[i].exp().item() / mass
    found = {i for i in range(len(logits)) if kept[i]}
    # Equal log-probs may be kept in either order; the kept mass is what is defined.
    assert len(found) >= 1
    assert abs(len(found) - len(expected)) <= (len(set(logits)) < len(logits)) * len(logits)
    assert found <= set(by_k)


def sampler_models():
    """Other architectures: grouped-query Llama, Mistral with windows, learned positions GPT-2."""
    from transformers import (
        GPT2Config,
        GPT2LMHeadModel,
        LlamaConfig,
        LlamaForCausalLM,
        MistralConfig,
        MistralForCausalLM,
    )

    common = {"vocab_size": 90, "max_position_embeddings": 256}
    torch.manual_seed(0)
    yield LlamaForCausalLM(
        LlamaConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, **common,
        )
    )  # fmt: skip
    for window in (16, 50):  # shorter than what is read, and as long
        yield MistralForCausalLM(
            MistralConfig(
                hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                num_key_value_heads=2, sliding_window=window, **common,
            )
        )  # fmt: skip
    yield GPT2LMHeadModel(
        GPT2Config(vocab_size=90, n_positions=256, n_embd=32, n_layer=2, n_head=4)
    )


OTHERS = ["llama", "mistral-sliding", "mistral-window-of-all", "gpt2"]


@pytest.mark.parametrize("which", OTHERS)
@pytest.mark.parametrize("second", [range(20, 27), range(40, 70)], ids=["padded", "unpadded"])
@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-4), (torch.bfloat16, 0.02)])
def test_other_architectures(lab_model, which, second, dtype, near):
    network = list(sampler_models())[OTHERS.index(which)].eval().to(dtype)
    model = LanguageModel(network, lab_model.tokenizer, "other")
    rollouts = sample(
        model,
        [PromptRequest("a", tuple(range(5, 35))), PromptRequest("b", tuple(second))],
        samples=2,
        sampling=SamplingConfig(max_new_tokens=20),
        seed=0,
    )
    for rollout in rollouts:
        log_probs, _ = reference_log_probs(model, rollout)
        torch.testing.assert_close(
            torch.tensor(rollout.logprobs).double(), log_probs, atol=near, rtol=0
        )


def test_which_caches_grow_and_which_steps_get_a_mask():
    llama, sliding, whole, gpt2 = sampler_models()
    for network, grows in ((llama, True), (sliding, False), (whole, True), (gpt2, True)):
        cache = make_cache(network.config, 30, 20)
        assert all((type(layer) is GrowingLayer) == grows for layer in cache.layers)
        assert decoding_mask(cache, network, None) is None  # float32 needs none
        assert (decoding_mask(cache, network, torch.bfloat16) is not None) == grows
    llama.set_attn_implementation("eager")
    assert decoding_mask(make_cache(llama.config, 30, 20), llama, torch.bfloat16) is None
