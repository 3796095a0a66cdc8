"""Two other ways to score a group's responses, beside the plain one; equality is asserted first.

    python benchmarks/prefix.py MODEL [--dtype float32] [--repeats 5] [--threads 2]
        [--device cuda] [--attention flash_attention_2] [--out FILE.json]
    torchrun --nproc-per-node 2 benchmarks/prefix.py MODEL --shard ...: of a sharded model

Plain: rows of prompt and response, padded on the right. "packed": as `align` makes them for a model
that packs, which with the attention of a CPU is a mask over the whole (kernels for variable lengths
are CUDA's). "prompt once": by `SharedPrompts`, as in every pass without gradients of one process: a
teacher's, or the scores before a step. 4 problems x 4 responses of 64 to 128 tokens. Of a sharded
model whole scores are compared, with prompts once and without, and the tokens that are read.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch
from common import medians_in_turn, report

from epistill.config import RunConfig
from epistill.methods import method
from epistill.rollouts import shared_prompts
from epistill.rollouts.align import align
from epistill.rollouts.load_model import load_model
from epistill.rollouts.scoring import score_completions
from epistill.rollouts.shared_prompts import SharedPrompts
from epistill.training.sharding import placement
from epistill.world import joined

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
    return align(model, prompts, said).hidden(model).cpu()


def packed(model, prompts, said):
    packing = model.with_network(model.network)
    packing.packs = True
    return plain(packing, prompts, said)


def prompt_once(model, prompts, said):
    batches = [range(len(prompts))]
    return SharedPrompts(prompts, said, batches, most_tokens=2**14).hidden(model).cpu()


def sharded(model, world, repeats):
    """Rows of the table: seconds, and tokens that all processes read."""
    read: list[int] = []
    model.decoder().register_forward_pre_hook(
        lambda module, args, kwargs: read.append(kwargs["input_ids"].numel()), with_kwargs=True
    )

    def scored(least_saved, prompts, said):
        read.clear()
        with patch.object(shared_prompts, "LEAST_SAVED", least_saved):
            return score_completions(model, prompts, said, microbatch_tokens=2048)

    for tokens in PROMPTS:
        sides = {"plain": 1.0, "prompt once": shared_prompts.LEAST_SAVED}  # nothing saves all
        calls = {name: partial(scored, least, *drawn(tokens)) for name, least in sides.items()}
        row, found = {"prompt tokens": tokens}, []
        for name, call in calls.items():
            found.append(torch.cat([one.log_probs for one in call()]))
            row[f"{name} tokens"] = world.sum_numbers({"read": sum(read)})["read"]
        torch.testing.assert_close(*found, atol=1e-3, rtol=1e-4)
        medians = medians_in_turn(calls, repeats)
        row |= {f"{name} s": seconds for name, seconds in medians.items()}
        yield {**row, "plain / prompt once": medians["plain"] / medians["prompt once"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--attention")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--shard", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    made = {"dtype": options.dtype, "device": options.device, "attention": options.attention}
    model = load_model(options.model, **made)
    model.packs = False  # the plain way is padded whatever the attention is
    if options.shard:
        with joined() as world:
            task = {"type": "star_search"}  # of no account
            settings = {"model": options.model, "task": task, "method": method("grpo")}
            settings |= {"parallel": "shard", "device": options.device}
            placement(RunConfig.model_validate(settings), world)(model)
            rows = list(sharded(model, world, options.repeats))
            if world.first:
                title = f"{Path(options.model).name}, sharded over {world.size} processes"
                report(f"{title}, {options.dtype}, medians of {options.repeats}", rows, options.out)
        return
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
    made = f"{options.dtype}, {model.network.config._attn_implementation}, {options.device}"
    title = f"{Path(options.model).name}, {made}, {PROBLEMS} x {SAMPLES} responses"
    report(f"{title}, {options.threads} threads, medians of {options.repeats}", rows, options.out)


if __name__ == "__main__":
    main()
