"""Takes one optimiser step per case on the tiny model, rows made by hand; alone or under torchrun.

Writes the summed gradient of each case as safetensors, and the step's numbers as JSON.
"""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor
from torch.nn.modules.module import register_module_forward_pre_hook

from epistill.config import Lora, RunConfig
from epistill.interrupts import ended_before_finalization
from epistill.methods import method
from epistill.rollouts import shared_prompts
from epistill.rollouts.model import with_lora
from epistill.training.optimiser_steps import gradients_of_step
from epistill.training.sharding import gathered, sum_gradients
from epistill.training.train_state import make_train_state
from epistill.training_rows import TrainingRow
from epistill.world import joined
from tests.helpers.models import make_tiny_model

PROMPTS = [(5, 6, 7), (8, 9), (10, 11, 12, 13), (5, 6, 7), (8, 9, 14)]
COMPLETIONS = [(20, 21, 22), (23, 24, 25, 26, 27), (28,), (29, 30), (31, 32, 33, 34)]
ADVANTAGES = [0.5, -0.5, 0.0, 0.25, -0.25]
# The only row with a context: one of two processes has nothing to distil.
CONTEXTS = [None, None, (10, 11, 50), None, None]
# Of a case with "group": all rows answer one question, and have one context.
QUESTION, GUIDED = tuple(range(5, 16)), (*range(50, 54), *range(5, 16))


def student_of(case):
    torch.manual_seed(0)
    model = make_tiny_model(0, layers=2)
    if case.get("untied"):
        head = model.network.get_output_embeddings()
        head.weight = torch.nn.Parameter(head.weight.detach().clone() * 1.5)
        model.network.config.tie_word_embeddings = False
    if case.get("lora"):
        model = with_lora(model, Lora(rank=2, alpha=4.0))
        with torch.no_grad():
            for name, parameter in model.network.named_parameters():
                if "lora_B" in name and case["lora"] == "moved":
                    parameter.normal_(std=0.1)
    return model


def step(case, world):
    settings = {
        "model": "tiny", "task": {"type": "star_search"}, "microbatch_tokens": 16,
        "method": method(case["method"], **case.get("axes", {})).model_dump(), **case["run"],
    }  # fmt: skip
    config = RunConfig.model_validate(settings)
    student = student_of(case)
    state = make_train_state(config, student, world)
    prompts, contexts = PROMPTS, CONTEXTS
    if case.get("group"):
        prompts, contexts = [QUESTION] * len(PROMPTS), [GUIDED] * len(PROMPTS)
    rows = [
        TrainingRow(p, c, tuple(-3.0 for _ in c), a, t)
        for p, c, a, t in zip(prompts, COMPLETIONS, ADVANTAGES, contexts, strict=True)
    ]
    state.trained.network.train()
    calls = []
    block = next(m for n, m in state.trained.network.named_modules() if n.endswith("layers.0"))
    inner = block.self_attn.forward  # a module's own hooks do not see what is computed again
    block.self_attn.forward = lambda *args, **kwargs: (calls.append(1), inner(*args, **kwargs))[1]
    with counted_tokens() as read:
        result = gradients_of_step(config, state, rows, None, 0)
    parameters = dict(state.trained.network.named_parameters())
    sum_gradients(parameters.values(), world)
    found = {
        name: gathered(p.grad).clone().contiguous()
        for name, p in parameters.items()
        if p.grad is not None
    }
    numbers = {**asdict(result), **layout_of(state), "block_calls": len(calls)}
    return found, {**numbers, "scored_tokens": world.sum_numbers({"read": sum(read)})["read"]}


@contextmanager
def counted_tokens():
    """Tokens that networks read without a gradient, call by call."""
    read = []

    def count(module, args):
        if isinstance(module, torch.nn.Embedding) and not torch.is_grad_enabled():
            read.append(args[0].numel())

    handle = register_module_forward_pre_hook(count)
    yield read
    handle.remove()


def layout(tensor):
    return (
        (str(tensor.placements), tensor.to_local().shape) if isinstance(tensor, DTensor) else None
    )


def layout_of(state):
    """Whether each copied teacher lies over the processes as the student does, tensor by tensor."""
    own = {n: layout(p) for n, p in state.trained.network.named_parameters()}
    copies = [t._model.network for t in state.teachers().values() if hasattr(t, "_model")]
    averages = [t._kept for t in state.teachers().values() if hasattr(t, "_kept")]
    theirs = [{n: layout(p) for n, p in copy.named_parameters()} for copy in copies]
    theirs += [{n: layout(p) for n, p in average.items()} for average in averages]
    return {
        "teachers_laid_out_alike": all(one == own for one in theirs),
        "sharded": all(value is not None for value in own.values()),
    }


def write_step(out, name, case, world):
    gradients, numbers = step(case, world)
    if world.first:
        save_file(gradients, out / f"{name}.safetensors")
        (out / f"{name}.json").write_text(json.dumps(numbers))


if __name__ == "__main__":
    shared_prompts.GATHER_TOKENS = {}  # rows so short would be read whole
    torch.set_num_threads(1)
    with ended_before_finalization(), joined() as world:
        for name, case in json.loads(Path(sys.argv[2]).read_text()).items():
            write_step(Path(sys.argv[1]), name, case, world)
