"""Responses that are known, not learned: in every group a right one, then a wrong one, and so on.

What a small model learns, and so what it draws, depends on the rounding of the processor.
"""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

from epistill.records import Rollout
from epistill.rollouts.sampler import decode_text
from epistill.seeds import named_random
from epistill.studies import tiny
from epistill.tasks.star_search import make_star
from epistill.tasks.star_traces import DEFAULT_DIALS, searching_trace


def sampler_of(responses_of):
    """A sampler that answers so; the log-probs are the model's own.

    Args:
        responses_of: From a problem's id and the step of training to the right and
            the wrong response.
    """

    def answer(model, requests, *, samples, sampling, policy_version=0, **_):
        end = model.tokenizer.eos_token_id
        asked = [(request, i) for request in requests for i in range(samples)]
        prompts = [request.ids for request, _ in asked]
        texts = [responses_of(r.problem_id, policy_version)[i % 2] for r, i in asked]
        written = [(*model.tokenizer.encode(text, add_special_tokens=False), end) for text in texts]
        assert max(map(len, written)) <= sampling.max_new_tokens
        scored = [
            own_scores(model, prompt, ids, sampling.temperature)
            for prompt, ids in zip(prompts, written, strict=True)
        ]
        return [
            Rollout(
                request.problem_id, i, request.ids, ids, log_probs, "eos",
                decode_text(model.tokenizer, model.eos_ids, ids), policy_version, entropies,
            )
            for (request, i), ids, (log_probs, entropies) in zip(asked, written, scored, strict=True)
        ]  # fmt: skip

    return answer


def answer_with(patch, responses_of):
    """Every engine of this process samples as `sampler_of` says."""
    patch.setattr("epistill.rollouts.in_process_engine.sample", sampler_of(responses_of))


@torch.no_grad()
def own_scores(model, prompt, ids, temperature):
    """Log-probs and entropies of one response, by this process alone: each has its own prompts."""
    read = torch.tensor([[*prompt, *ids]], device=model.device)
    logits = model.network(read).logits[0, len(prompt) - 1 : -1].float() / temperature
    log_p = logits.log_softmax(-1)
    chosen = log_p.gather(-1, torch.tensor(ids, device=model.device).unsqueeze(-1)).squeeze(-1)
    entropies = -(log_p.exp() * log_p).sum(-1)
    return tuple(chosen.tolist()), tuple(entropies.tolist())


def know_toy_answers(patch):
    """The models of toy-sized recipes are not taught, but answer as if they had been."""
    responses, write = {}, tiny._responses

    def remember(problem, shape, thinking):
        responses[problem.id] = write(problem, shape, thinking)
        return responses[problem.id]

    patch.setattr(tiny, "_teach", lambda network, rows: None)
    patch.setattr(tiny, "_responses", remember)
    answer_with(patch, lambda name, _: responses[name])


def know_star_answers(patch):
    """The lab's problems are answered after a wait, which is shorter at every step."""

    def responses_of(name, steps):
        star = _star(name)
        waits = "wait " * max(1, 12 - steps)
        return tuple(f"{waits}so {a} </think> answer {a}" for a in (star.answer, _wrong(star)))

    answer_with(patch, responses_of)


def know_star_traces(patch, until):
    """The lab's problems are searched in its own words up to a step; then they are just answered."""

    def responses_of(name, steps):
        star, rng = _star(name), named_random("known_traces", name, steps)
        if steps >= until:
            return tuple(f"so {a} </think> answer {a}" for a in (star.answer, _wrong(star)))
        right = wrong = searching_trace(star, rng, DEFAULT_DIALS, must_solve=True)
        while wrong.endswith(f" {star.answer}"):
            wrong = searching_trace(star, rng, DEFAULT_DIALS)
        return right, wrong

    answer_with(patch, responses_of)


def _star(name):
    """The star of a problem's id."""
    _, size, *split, seed, index = name.split("-")
    arms, depth = map(int, size.split("x"))
    return make_star(arms, depth, "-".join(split), int(seed), int(index))


def _wrong(star):
    return next(arm[0] for i, arm in enumerate(star.arms) if i != star.gold)


@contextmanager
def known_where_watched(config):
    """A run whose monitor fires at any fall gets known answers: each step's are shorter."""
    with pytest.MonkeyPatch.context() as patch:
        if config.get("monitor", {}).get("standard_errors") == 0.0:
            know_star_answers(patch)
        yield
