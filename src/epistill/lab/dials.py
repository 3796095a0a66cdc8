"""What a lab model's dials really are, read from its next-token probabilities.

A world is adapted towards nominal dials; the axes of the phase study are these measured ones.
"""

from __future__ import annotations

import torch

from epistill.records import Message
from epistill.rollouts.align import align
from epistill.rollouts.model import LanguageModel
from epistill.rollouts.prompts import render_prompt
from epistill.seeds import named_random
from epistill.tasks.star_search import make_star
from epistill.tasks.star_traces import DEFAULT_DIALS, searching_trace
from epistill.teacher.context import insert_context

STARS = 200


def measure_dials(model: LanguageModel, *, arms: int = 5, depth: int = 3) -> dict[str, float]:
    """Function of doubt and recovery of a lab model.

    commit: mean over stars and arms of P(`</think>`) after the unguided model wrote "so" and an
    arm's start. recovery: with a solution as context, mean of 1 - P(`</think>`) after the student's
    failed steps, half of them a wrong arm walked to its dust, half "so" and a wrong arm.

    Args:
        model: A lab model.
        arms, depth: Size of the stars.
    """
    unguided: list[tuple[str, str]] = []
    guided: list[tuple[str, str]] = []
    for index in range(STARS):
        star = make_star(arms, depth, "dials", index)
        rng = named_random("dials", index)
        unguided.append((star.prompt, f"so {rng.choice(star.arms)[0]}"))
        solution = "<think> " + searching_trace(star, rng, DEFAULT_DIALS, must_solve=True)
        wrong = rng.choice([i for i in range(len(star.arms)) if i != star.gold])
        walk = " ".join((*star.arms[wrong], star.end(wrong)))
        question = insert_context(star.prompt, solution, "solution")
        guided += [(question, f"maybe {walk}"), (question, f"so {star.arms[wrong][0]}")]
    return {"commit": _mean_stop(model, unguided), "recovery": 1 - _mean_stop(model, guided)}


def _mean_stop(model: LanguageModel, cases: list[tuple[str, str]]) -> float:
    """Mean P(`</think>`) right after each prefix."""
    tokenizer = model.tokenizer
    stop = tokenizer.convert_tokens_to_ids("</think>")
    prompts = [render_prompt(tokenizer, [Message("user", question)]).ids for question, _ in cases]
    # The stop token is appended as the last completion token: its own log-prob is what is asked.
    completions = [
        [*tokenizer(prefix, add_special_tokens=False)["input_ids"], stop] for _, prefix in cases
    ]
    batch = align(model, prompts, completions)
    ends = torch.tensor([len(completion) for completion in completions]).cumsum(0) - 1
    with torch.no_grad():
        hidden = batch.hidden(model)[ends]
        return float(model.head().logits(hidden).softmax(-1)[:, stop].mean())
