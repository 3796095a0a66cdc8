"""Tokens per second of our sampler beside `model.generate`, on the lab model.

    python benchmarks/generate.py [--repeats 5] [--threads 2] [--out FILE.json]

Both sample 8 responses to each of rows/8 problems at temperature 1, at most 96 new tokens. generate
gets the prompts repeated, as its users do (`num_return_sequences` does the same inside).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from common import medians_in_turn, report

from epistill.config import SamplingConfig
from epistill.rollouts.engine import PromptRequest
from epistill.rollouts.load_model import load_model
from epistill.rollouts.prompts import render_prompt
from epistill.rollouts.sampler import sample
from epistill.tasks.star_search import star_problem

SAMPLES, LIMIT = 8, 96


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = load_model("lab")
    rows = []
    for count in (64, 256):
        problems = [star_problem(5, 3, 0, "bench", i) for i in range(count // SAMPLES)]
        requests = [
            PromptRequest(p.id, render_prompt(model.tokenizer, p.messages).ids) for p in problems
        ]
        tokens = {"ours": [], "generate": []}

        def ours(requests=requests, tokens=tokens):
            rollouts = sample(
                model,
                requests,
                samples=SAMPLES,
                sampling=SamplingConfig(max_new_tokens=LIMIT),
                seed=len(tokens["ours"]),
            )
            tokens["ours"].append(sum(len(r.completion_ids) for r in rollouts))

        def generate(requests=requests, tokens=tokens):
            torch.manual_seed(len(tokens["generate"]))
            prompts = torch.tensor([r.ids for r in requests])
            with torch.inference_mode():
                out = model.network.generate(
                    prompts,
                    attention_mask=torch.ones_like(prompts),
                    do_sample=True,
                    top_k=0,
                    num_return_sequences=SAMPLES,
                    max_new_tokens=LIMIT,
                )
            tokens["generate"].append(int((out[:, prompts.shape[1] :] != model.pad_id).sum()))

        seconds = medians_in_turn({"ours": ours, "generate": generate}, options.repeats)
        speed = {n: sum(tokens[n]) / len(tokens[n]) / s for n, s in seconds.items()}
        rows.append(
            {
                "rows": count,
                "ours tokens/s": speed["ours"],
                "generate tokens/s": speed["generate"],
                "ratio": speed["ours"] / speed["generate"],
                "bar": 1.3 if count == 64 else 1.1,
            }
        )
    report(f"generation, lab model, {options.threads} threads", rows, options.out)


if __name__ == "__main__":
    main()
