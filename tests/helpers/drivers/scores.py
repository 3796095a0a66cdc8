"""Scores the same rows with several sharded networks; each process writes what it found and read."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from epistill.config import RunConfig
from epistill.interrupts import ended_before_finalization
from epistill.rollouts import shared_prompts
from epistill.rollouts.scoring import score_completions
from epistill.training.sharding import placement
from epistill.world import joined
from tests.helpers.families import tiny_model
from tests.helpers.models import make_tiny_model
from tests.helpers.plain_flash import FLASH, use_plain_flash

# (tokens of the prompt, tokens of each response): groups of any size.
GROUPS = [
    (20, (3, 9, 1, 12, 7)),
    (31, (6,)),
    (9, (1, 5, 1)),
    (14, (11, 2)),
    (25, (8, 4, 30, 2, 9, 6)),
]
NETWORKS = {
    "plain": ("llama", {}),
    "windows": ("mistral", {"sliding_window": 40}),  # longer than most rows
    "packed": ("llama", {"attn_implementation": FLASH}),
}
MOST_TOKENS = 80


def rows():
    """Prompts and completions of all groups, group after group."""
    draw = torch.Generator().manual_seed(5)

    def ids(length):
        return tuple(torch.randint(3, 60, (length,), generator=draw).tolist())

    drawn = [(ids(length), [ids(n) for n in said]) for length, said in GROUPS]
    pairs = [(prompt, one) for prompt, said in drawn for one in said]
    return [prompt for prompt, _ in pairs], [one for _, one in pairs]


def network(name):
    family, changes = NETWORKS[name]
    model = tiny_model(family, make_tiny_model().tokenizer, **changes)
    model.network.double()  # the plain kernel takes no float32
    model.packs = name == "packed"
    return model


def scored(model):
    return score_completions(model, *rows(), microbatch_tokens=MOST_TOKENS)


def main(folder, world):
    config = RunConfig.model_validate(
        {
            "model": "tiny",
            "task": {"type": "star_search"},
            "method": {"name": "grpo"},
            "parallel": "shard",
        }
    )
    found = {}
    # Rows so short are read whole: a call takes longer to gather than to compute.
    gather = dict(shared_prompts.GATHER_TOKENS)
    for name, of_network in {**{name: name for name in NETWORKS}, "weighed": "plain"}.items():
        shared_prompts.GATHER_TOKENS = gather if name == "weighed" else {}
        model, read = network(of_network), []
        placement(config, world)(model)
        model.decoder().register_forward_pre_hook(
            lambda module, args, kwargs, read=read: read.append(kwargs["input_ids"].numel()),
            with_kwargs=True,
        )
        log_probs = [one.log_probs.tolist() for one in scored(model)]
        found[name] = {"read": read, "log_probs": log_probs}
    (folder / f"scores-{world.rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    torch.set_num_threads(1)
    with ended_before_finalization(), pytest.MonkeyPatch.context() as patch, joined() as world:
        use_plain_flash(patch)
        main(Path(sys.argv[1]), world)
