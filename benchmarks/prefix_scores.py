"""Scores of a long context's responses through a vLLM server: from its prefix cache, and plainly.

    python benchmarks/prefix_scores.py MODEL URL [--context 2000] [--responses 4] [--tokens 64]
        [--repeats 3] [--out FILE.json]

The server of MODEL is started as docs/vllm.md says, with the options for long contexts. Every round
has a context of its own, so that the first request finds nothing in the cache; both ways score the
same rows in turn, and agree to 1e-3 nats. Seconds are of the whole group.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import torch
from common import report, timed

from epistill.rollouts.load_model import load_without_weights
from epistill.rollouts.vllm_engine import VllmEngine

NEAR_NATS = 1e-3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("url")
    parser.add_argument("--context", type=int, default=2000)
    parser.add_argument("--responses", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    model = load_without_weights(options.model)
    draw = torch.Generator().manual_seed(options.seed)
    seconds: dict[str, list[float]] = {"plain": [], "from the cache": []}
    largest = 0.0
    for turn in range(options.repeats):
        drawn = torch.randint(100, 30_000, (options.context,), generator=draw).tolist()
        prompts = [tuple(drawn)] * options.responses
        size = (options.responses, options.tokens)
        said = [tuple(row) for row in torch.randint(100, 30_000, size, generator=draw).tolist()]
        found = {}
        for way in list(seconds)[:: 1 if turn % 2 else -1]:
            engine = VllmEngine([options.url], "m", model, timeout=3600)
            if way == "plain":
                engine.client.servers[0].by_prefix = False

            def score(way=way, engine=engine, prompts=prompts, said=said, found=found):
                found[way] = engine.score(prompts, said)

            seconds[way].append(timed(score))
            counts = engine.client.counts
            assert counts["answered"] == (0 if way == "plain" else options.responses), counts
            engine.close()
        for one, other in zip(*found.values(), strict=True):
            largest = max(largest, (one.log_probs - other.log_probs).abs().max().item())
        print(turn, {way: round(taken[-1], 2) for way, taken in seconds.items()}, flush=True)
    assert largest < NEAR_NATS, largest
    medians = {way: statistics.median(taken) for way, taken in seconds.items()}
    row = {"context tokens": options.context, "responses": options.responses}
    row |= {f"{way} s": taken for way, taken in medians.items()}
    row |= {"plain / from the cache": medians["plain"] / medians["from the cache"]}
    row |= {"largest gap nats": largest}
    title = f"{Path(options.model).name} through vLLM, responses of {options.tokens} tokens"
    report(f"{title}, medians of {options.repeats}", [row], options.out)


if __name__ == "__main__":
    main()
