"""Responses that are known, not learned: in every group a right one, then a wrong one, and so on.

What a small model learns, and so what it draws, depends on the rounding of the processor.
"""

from __future__ import annotations

from epistill.records import Rollout
from epistill.rollouts.sampler import decode_text
from epistill.rollouts.scoring import score_completions
from epistill.studies import tiny
from epistill.tasks.star_search import star_problem


def answer_with(patch, responses_of):
    """Every engine of this process answers so; the log-probs are the model's own.

    Args:
        patch: A `MonkeyPatch`.
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
        scores = score_completions(model, prompts, written, temperature=sampling.temperature)
        return [
            Rollout(
                request.problem_id, i, request.ids, ids, tuple(found.log_probs.tolist()), "eos",
                decode_text(model.tokenizer, model.eos_ids, ids), policy_version,
                tuple(found.entropies.tolist()),
            )
            for (request, i), ids, found in zip(asked, written, scores, strict=True)
        ]  # fmt: skip

    patch.setattr("epistill.rollouts.in_process_engine.sample", answer)


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
        _, size, *split, seed, index = name.split("-")
        arms, depth = map(int, size.split("x"))
        problem = star_problem(arms, depth, int(seed), "-".join(split), int(index))
        starts = problem.messages[0].content.split(" from ")[1].split()
        wrong = next(start for start in starts if start != problem.answer)
        waits = "wait " * max(1, 12 - steps)
        return tuple(f"{waits}so {a} </think> answer {a}" for a in (problem.answer, wrong))

    answer_with(patch, responses_of)
