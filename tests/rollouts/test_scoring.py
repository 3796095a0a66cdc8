from __future__ import annotations

import torch

from epistill.config import SamplingConfig
from epistill.rollouts.engine import PromptRequest
from epistill.rollouts.prompts import render_prompt
from epistill.rollouts.sampler import sample
from epistill.rollouts.scoring import score_completions
from epistill.tasks.star_search import star_problem


def test_scores_equal_what_the_sampler_recorded(lab_model):
    problems = [star_problem(a, 2, 0, "score", i) for i, a in enumerate((3, 5, 4, 2))]
    requests = [
        PromptRequest(p.id, render_prompt(lab_model.tokenizer, p.messages).ids) for p in problems
    ]
    for temperature in (1.0, 0.7):
        rollouts = sample(
            lab_model,
            requests,
            samples=2,
            sampling=SamplingConfig(temperature=temperature, max_new_tokens=40),
            seed=0,
            entropies=True,
        )
        for tokens in (10_000, 50):
            scores = score_completions(
                lab_model,
                [r.prompt_ids for r in rollouts],
                [r.completion_ids for r in rollouts],
                temperature=temperature,
                microbatch_tokens=tokens,
            )
            for rollout, found in zip(rollouts, scores, strict=True):
                recorded = torch.tensor(rollout.logprobs)
                torch.testing.assert_close(found.log_probs, recorded, atol=2e-4, rtol=0)
                recorded = torch.tensor(rollout.entropies)
                torch.testing.assert_close(found.entropies, recorded, atol=2e-4, rtol=0)
