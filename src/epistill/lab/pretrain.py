"""Pretrain the lab's base model from nothing, or turn the dials of one that exists.

    epistill lab pretrain --out DIR            # about 10 minutes on two cores, seeded

Enters: dials, seed, steps, optionally a model to start from. Leaves: a Hugging Face model directory
with safetensors. Muon for the matrices of the layers, AdamW for embeddings and norms.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase, Qwen3ForCausalLM
from transformers.modeling_utils import PreTrainedModel

from epistill.errors import EpistillError
from epistill.lab.build import build_config, build_tokenizer
from epistill.lab.corpus import IGNORE, Corpus, batches
from epistill.seeds import derive_seed
from epistill.tasks.star_traces import DEFAULT_DIALS, Dials

STEPS = 6_000
BATCH_SIZE = 128
MUON_LR = 0.02
ADAMW_LR = 3e-3
WARMUP = 50


def _optimizers(model: torch.nn.Module) -> list[torch.optim.Optimizer]:
    named = list(model.named_parameters())
    matrices = [p for name, p in named if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in named if p.ndim != 2 or "embed" in name]
    return [
        torch.optim.Muon(matrices, lr=MUON_LR, momentum=0.95, weight_decay=0.0),
        torch.optim.AdamW(others, lr=ADAMW_LR, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def _learning_rate_factor(step: int, steps: int) -> float:
    """Linear warm-up, then linear decay to zero."""
    return min((step + 1) / min(WARMUP, max(steps // 10, 1)), (steps - step) / steps)


def pretrain(
    dials: Dials,
    *,
    seed: int,
    steps: int,
    start: PreTrainedModel | None = None,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Train on the corpus of these dials.

    Args:
        dials: The world's dials.
        seed: Names initial weights and every sequence.
        steps: Optimiser steps of BATCH_SIZE sequences.
        start: A lab model to go on from; None starts from random weights.
        on_step: Called with (step, loss in nats per learned token).

    Returns:
        The model, in float32 and eval mode, and its tokenizer.
    """
    tokenizer = build_tokenizer()
    if start is None:
        torch.manual_seed(derive_seed("pretrain_init", seed))
        model: PreTrainedModel = Qwen3ForCausalLM(build_config(tokenizer))
    else:
        model = start
    model.train()
    optimizers = _optimizers(model)
    groups = [(group, group["lr"]) for o in optimizers for group in o.param_groups]
    trained = [parameter for group, _ in groups for parameter in group["params"]]
    corpus = Corpus(tokenizer, dials, seed)
    for step, (ids, labels) in enumerate(batches(corpus, batch_size=BATCH_SIZE, steps=steps)):
        factor = _learning_rate_factor(step, steps)
        for group, rate in groups:
            group["lr"] = rate * factor
        # Padding is on the right and carries no label, so causal attention needs no mask.
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORE
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        on_step(step, loss.item())
    return model.eval(), tokenizer


def pretrain_to(
    out: Path, *, seed: int, steps: int | None, threads: int | None, say: Callable[[str], None]
) -> None:
    """Pretrain the default world's model into a new folder, telling how far it is.

    Raises:
        EpistillError: The folder is not empty.
    """
    if out.exists() and any(out.iterdir()):
        raise EpistillError(f"{out} is not empty; expected a new folder for the model")
    if threads is not None:
        torch.set_num_threads(threads)
    total = steps or STEPS
    started = time.monotonic()
    recent: list[float] = []

    def tell(step: int, loss: float) -> None:
        recent.append(loss)
        if (step + 1) % 100 == 0:
            mean, seconds = sum(recent) / len(recent), time.monotonic() - started
            say(f"step {step + 1} of {total}: {mean:.4f} nats per token, {seconds:.0f} s")
            recent.clear()

    model, tokenizer = pretrain(DEFAULT_DIALS, seed=seed, steps=total, on_step=tell)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
