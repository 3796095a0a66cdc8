"""Responses from servers, with the rules for words (`word_rules`), of which a server knows nothing.

A response is a chain of draws, so it may be cut at any token and drawn anew from there. A server
writes as if there were no rules; `RuledDraws.write`, which the in-process sampler uses too, reads
its tokens up to the first that a rule decides, and what comes after that is dropped. A forced word
needs no request; a refused token is drawn again, alone and without the tokens refused there so far;
then the server goes on from what is written. Responses go on together, in turns of one request
each, and those that stand at one place share it, as the samples of a prompt do at first.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import suppress
from itertools import count
from typing import Any

from transformers import PreTrainedTokenizerBase

from epistill.rollouts.engine import Drawing, Ids, PromptRequest
from epistill.rollouts.ruled_draws import RuledDraws, RuledRow
from epistill.rollouts.vllm_server import ServerRequest
from epistill.seeds import derive_seed

Answers = list[tuple[Any, Any]]  # to each request: its replies, and the version that wrote them


def server_responses(
    requests: Sequence[PromptRequest],
    drawing: Drawing,
    tokenizer: PreTrainedTokenizerBase,
    ends: Collection[int],
    sample_request: Callable[..., ServerRequest],
    run: Callable[[Sequence[ServerRequest]], Answers],
) -> Answers:
    """The responses to each prompt: ids, logprobs and stop; greedy ones once.

    Under rules also `forced`, and the log-probs are NaN: a server gives those after its bias, and
    none of forced tokens.

    Args:
        requests: Prompts.
        drawing: As of every engine.
        tokenizer, ends: Of the model; its end tokens.
        sample_request: `vllm_api.sample_request`, with what is the same in all requests.
        run: Has requests answered, all at once.
    """
    sampling, length = drawing["sampling"], drawing["sampling"].max_new_tokens
    # Greedy responses are all the same, and the server refuses to repeat them.
    samples = 1 if sampling.temperature == 0.0 else drawing["samples"]

    def asked(prompt: int, rows: int, turn: int = 0, written: Ids = (), refused: Ids = ()) -> Any:
        ids = (*requests[prompt].ids, *written)
        # The turn is part of the name: who comes to a place later is not told the same once more.
        named = (turn, refused) if turn else ()
        # After t cuts a part of length / t is asked for at once, so that little is dropped.
        part = min(length - len(written), math.ceil(length / max(1, turn)))
        return sample_request(
            ids,
            samples=rows,
            sampling=sampling.model_copy(update={"max_new_tokens": 1 if refused else part}),
            seed=derive_seed("sample", drawing["seed"], requests[prompt].draw, ids, *named),
            refused=refused,
        )

    if not sampling.has_rules:
        return run([asked(prompt, samples) for prompt in range(len(requests))])
    rules = RuledDraws(tokenizer, ends, sampling, samples * len(requests))
    responses = [_response(rules, row, ends, length) for row in rules.rows]
    told: dict[int, Any] = dict.fromkeys(range(len(responses)))
    version = None
    for turn in count():
        waiting: dict[tuple[int, Ids, Ids], list[int]] = defaultdict(list)
        for row, ids in told.items():
            with suppress(StopIteration):
                refused = responses[row].send(ids)
                place = row // samples, tuple(rules.rows[row].ids), tuple(refused)
                waiting[place].append(row)
        if not waiting:
            break
        found = run([asked(i, len(rows), turn, *at) for (i, *at), rows in waiting.items()])
        version = found[0][1]
        told = {
            row: reply["ids"]
            for rows, (replies, _) in zip(waiting.values(), found, strict=True)
            for row, reply in zip(rows, replies, strict=True)
        }
    written = [
        {
            "ids": row.ids,
            "logprobs": [math.nan] * len(row.ids),
            "stop": "eos" if row.ids[-1] in ends else "length",
            "forced": tuple(row.decided),
        }
        for row in rules.rows
    ]
    return [(written[i : i + samples], version) for i in range(0, len(written), samples)]


def _response(
    rules: RuledDraws, row: RuledRow, ends: Collection[int], length: int
) -> Generator[Ids, Ids, None]:
    """Writes a response: yields the tokens refused where it stands, is sent what a server wrote."""
    ahead: deque[int] = deque()
    while len(row.ids) < length and not (row.ids and row.ids[-1] in ends):
        token = rules.write(row)
        with suppress(StopIteration):
            refused = next(token)
            while True:
                if refused or not ahead:
                    ahead = deque((yield refused))
                refused = token.send(ahead.popleft())
        if row.decided[-1]:
            ahead.clear()  # it follows other words
