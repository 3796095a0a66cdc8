"""Sampling from a real model beside `model.generate`, with the floor: the forward passes alone.

    python benchmarks/real_model.py MODEL [--dtypes float32 bfloat16] [--repeats 5] [--threads 2]
        [--prompts 8] [--tokens 128] [--out FILE.json]

Each prompt 4 responses at temperature 1; no end token, so that all sides write equally much.
generate gets the prompts repeated and a network that transformers loaded, as its users do. The
floor runs decoder and head as often and as wide as the sampler must, by its cache, and draws
nothing. Processor seconds are reported beside the clock's: on a shared machine only they, on one
thread, are about the code.
"""

from __future__ import annotations

import argparse
from functools import partial
from itertools import count
from pathlib import Path

import torch
from common import medians_in_turn, report
from transformers import AutoModelForCausalLM

from epistill.config import SamplingConfig
from epistill.rollouts.engine import PromptRequest
from epistill.rollouts.kv_cache import decoding_mask, make_cache, select_rows
from epistill.rollouts.load_model import load_model
from epistill.rollouts.model import LanguageModel
from epistill.rollouts.sampler import sample

SAMPLES, PROMPT_TOKENS = 4, 48


class Endless(LanguageModel):
    """Every response has the full length."""

    @property
    def eos_ids(self):
        return frozenset()


def prompt_ids(prompts):
    """[prompts, 48] of any tokens."""
    draw = torch.Generator().manual_seed(0)
    return torch.randint(100, 30_000, (prompts, PROMPT_TOKENS), generator=draw)


def sides(model, peer, prompts, limit):
    """Ours, generate, floor, each a function of the round."""
    ids = prompt_ids(prompts)
    requests = [PromptRequest(str(i), tuple(row.tolist()), i) for i, row in enumerate(ids)]
    repeated = ids.repeat_interleave(SAMPLES, 0)
    mask = torch.ones_like(repeated)

    def ours(seed):
        drawn = SamplingConfig(max_new_tokens=limit)
        found = sample(model, requests, samples=SAMPLES, sampling=drawn, seed=seed)
        assert all(len(rollout.completion_ids) == limit for rollout in found)

    @torch.inference_mode()
    def generate(seed):
        torch.manual_seed(seed)
        out = peer.generate(
            repeated, attention_mask=mask, do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
            max_new_tokens=limit, min_new_tokens=limit, pad_token_id=model.pad_id,
        )  # fmt: skip
        assert out.shape[1] == PROMPT_TOKENS + limit

    @torch.inference_mode()
    def floor(seed):
        decoder, head = model.decoder(), model.head()
        cache = make_cache(model.network.config, PROMPT_TOKENS, limit)
        cached = {"past_key_values": cache, "use_cache": True}
        decoder(input_ids=ids, **cached)
        select_rows(cache, torch.arange(prompts).repeat_interleave(SAMPLES))
        mask = decoding_mask(cache, model.network, None)
        for _ in range(limit - 1):
            states = decoder(input_ids=repeated[:, :1], attention_mask=mask, **cached)[0]
            head.logits(states[:, -1])

    return {"ours": ours, "generate": generate, "floor": floor}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for dtype in options.dtypes:
        loaded = load_model(options.model, dtype=dtype)
        ours = Endless(loaded.network, loaded.tokenizer, loaded.name)
        peer = AutoModelForCausalLM.from_pretrained(options.model, dtype=getattr(torch, dtype))
        functions = sides(ours, peer.eval(), options.prompts, options.tokens)
        calls = {side: partial(next, map(one, count())) for side, one in functions.items()}
        seconds = medians_in_turn(calls, options.repeats)
        for clock, ending in (("wall", ""), ("processor", ", processor")):
            medians = {side: seconds[side + ending] for side in functions}
            rows.append(
                {"dtype": dtype, "clock": clock, **medians}
                | {"generate / ours": medians["generate"] / medians["ours"]}
                | {"ours / floor": medians["ours"] / medians["floor"]}
            )
            print(rows[-1], flush=True)
    rows_written = options.prompts * SAMPLES
    title = f"{Path(options.model).name}: {rows_written} rows x {options.tokens} tokens"
    report(f"{title}, {options.threads} threads, medians of {options.repeats}", rows, options.out)


if __name__ == "__main__":
    main()
