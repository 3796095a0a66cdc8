"""Two other ways to score a group's responses, beside the plain one; equality is asserted first.

    python benchmarks/prefix.py MODEL [--dtype float32] [--repeats 5] [--threads 2]
        [--out FILE.json]

Plain: rows of prompt and response, padded on the right, as `align` makes them. "packed": all rows
in one sequence whose positions begin again with each, transformers' way to packed sequences (on a
CPU by a mask over the whole; kernels for variable lengths are CUDA's). "prompt once": by
`SharedPrompts`, as in every pass without gradients of one process: a teacher's, or the scores
before a step. 4 problems x 4 responses of 64 to 128 tokens.
"""

from __future__ import annotations

import argparse
from functools import partial
from itertools import accumulate
from pathlib import Path

import torch
from common import medians_in_turn, report

from epistill.rollouts.align import align
from epistill.rollouts.load_model import load_model
from epistill.rollouts.shared_prompts import SharedPrompts

PROBLEMS, SAMPLES = 4, 4
PROMPTS = (32, 128, 512)  # tokens
NEAR = {"float32": 1e-4, "bfloat16": 0.05}  # of the hidden states' norm


def drawn(prompt_tokens):
    """Prompts, one for each row, and completions; token ids."""
    draw = torch.Generator().manual_seed(prompt_tokens)
    each = torch.randint(100, 30_000, (PROBLEMS, prompt_tokens), generator=draw).tolist()
    lengths = torch.randint(64, 129, (PROBLEMS * SAMPLES,), generator=draw).tolist()
    said = [torch.randint(100, 30_000, (n,), generator=draw).tolist() for n in lengths]
    return [prompt for prompt in each for _ in range(SAMPLES)], said


@torch.inference_mode()
def plain(model, prompts, said):
    """[N, H]: what predicts each token of the responses."""
    return align(prompts, said, pad_id=0, device=model.device).hidden(model)


@torch.inference_mode()
def packed(model, prompts, said):
    lengths = [len(p) + len(c) for p, c in zip(prompts, said, strict=True)]
    ids = torch.tensor([[t for p, c in zip(prompts, said, strict=True) for t in (*p, *c)]])
    positions = torch.cat([torch.arange(n) for n in lengths]).unsqueeze(0)
    states = model.decoder()(input_ids=ids, position_ids=positions, use_cache=False)[0][0]
    ends = accumulate(lengths)
    return torch.cat([states[e - len(c) - 1 : e - 1] for e, c in zip(ends, said, strict=True)])


def prompt_once(model, prompts, said):
    return SharedPrompts(prompts, said, most_tokens=2**14).hidden(model, prompts, said)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = load_model(options.model, dtype=options.dtype)
    rows = []
    for tokens in PROMPTS:
        prompts, said = drawn(tokens)
        sides = {"plain": plain, "packed": packed, "prompt once": prompt_once}
        expected, *others = (side(model, prompts, said) for side in sides.values())
        for found in others:
            difference = (found - expected).float().norm() / expected.float().norm()
            assert difference < NEAR[options.dtype], difference
        calls = {name: partial(side, model, prompts, said) for name, side in sides.items()}
        medians = medians_in_turn(calls, options.repeats)
        row = {"prompt tokens": tokens, **{f"{name} s": s for name, s in medians.items()}}
        for name in ("packed", "prompt once"):
            row[f"plain / {name}"] = medians["plain"] / medians[name]
        rows.append(row)
    title = f"{Path(options.model).name}, {options.dtype}, {PROBLEMS} x {SAMPLES} responses"
    report(f"{title}, {options.threads} threads, medians of {options.repeats}", rows, options.out)


if __name__ == "__main__":
    main()
