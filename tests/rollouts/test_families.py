"""Tiny random models of the families that people train: the sampler says what the network says."""

from __future__ import annotations

import pytest
import torch

from epistill.config import SamplingConfig
from epistill.errors import EpistillError
from epistill.rollouts.load_model import check_architecture, lab_directory, load_tokenizer
from epistill.rollouts.sampler import PromptRequest, sample
from epistill.rollouts.scoring import score_completions
from tests.helpers.families import FAMILIES, tiny_model

# minimax has a cache of its own, mamba loses its state under padding, the others scale their logits.
REFUSED = {"minimax", "mamba", "falcon_h1", "hyperclovax"}


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(str(lab_directory()), "lab", trust=False)


def test_there_are_many():
    assert len(set(FAMILIES) - REFUSED) >= 35


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - REFUSED))
def test_sampled_in_a_batch_as_alone_and_as_the_network_says(family, tokenizer):
    model = tiny_model(family, tokenizer)
    draw = torch.Generator().manual_seed(3)
    requests = [
        PromptRequest(
            str(n), tuple(torch.randint(3, len(tokenizer), (n,), generator=draw).tolist()), n
        )
        for n in (1, 4, 9)
    ]
    sampling = SamplingConfig(max_new_tokens=12)  # beyond every window
    batch = sample(model, requests, samples=2, sampling=sampling, seed=1)
    alone = [
        r for one in requests for r in sample(model, [one], samples=2, sampling=sampling, seed=1)
    ]
    assert [r.completion_ids for r in batch] == [r.completion_ids for r in alone]
    # Prompts read once for both of their rows, where the family's cache allows it.
    prompts, said = [r.prompt_ids for r in batch], [r.completion_ids for r in batch]
    for rollout, scores in zip(batch, score_completions(model, prompts, said), strict=True):
        ids = torch.tensor([[*rollout.prompt_ids, *rollout.completion_ids]])
        with torch.no_grad():
            logits = model.network(input_ids=ids, use_cache=False).logits[
                0, len(rollout.prompt_ids) - 1 : -1
            ]
        expected = logits.log_softmax(-1)[range(len(logits)), list(rollout.completion_ids)]
        torch.testing.assert_close(torch.tensor(rollout.logprobs), expected, rtol=1e-4, atol=3e-4)
        torch.testing.assert_close(scores.log_probs, expected, rtol=1e-4, atol=3e-4)


@pytest.mark.parametrize("family", sorted(REFUSED))
def test_what_would_be_computed_otherwise_is_refused_by_name(family, tokenizer):
    model = tiny_model(family, tokenizer)
    with pytest.raises(EpistillError, match=type(model.network).__name__) as found:
        check_architecture(model)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("family", ["llama", "qwen3_5_text", "gemma2", "granitemoehybrid"])
def test_what_is_right_is_accepted(family, tokenizer):
    check_architecture(tiny_model(family, tokenizer))
