"""A real vLLM server for tests: the lab model in a shape its CPU kernels serve, start and stop."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

WIDE = 32  # vLLM's CPU attention serves no head of 16 dimensions, which the lab model has


def widen_heads(source: Path, folder: Path, wide: int = WIDE) -> Path:
    """Write the same function with wider attention heads: the added dimensions are zero.

    Rotary pairs keep their frequency: dimension j of d goes to j * wide/d within its half. The
    norms of queries and keys divide by the root mean square over more dimensions, and scores are
    divided by the root of more; their weights take both back. Only the norm's epsilon differs.
    """
    old = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float64)
    config = type(old.config).from_pretrained(source)
    narrow, heads = config.head_dim, config.num_attention_heads
    factor = wide // narrow
    config.head_dim = wide
    new = type(old)(config).double()
    half = torch.arange(narrow // 2) * factor
    places = torch.cat([half, wide // 2 + half])

    def spread(weight: torch.Tensor) -> torch.Tensor:
        """[heads * narrow, ...] to [heads * wide, ...], zeros between."""
        out = weight.new_zeros(weight.shape[0] // narrow, wide, *weight.shape[1:])
        out[:, places] = weight.view(-1, narrow, *weight.shape[1:])
        return out.flatten(0, 1)

    state = dict(old.state_dict())
    for name, weight in old.state_dict().items():
        kind = name.split(".")[-2]
        if kind in ("q_proj", "k_proj", "v_proj"):
            state[name] = spread(weight)
        elif kind == "o_proj":
            state[name] = spread(weight.T).T.contiguous()
        elif kind in ("q_norm", "k_norm"):
            # sqrt(narrow / wide) takes back the norm; the query also takes back the score's scale.
            state[name] = spread(weight) * (1.0 if kind == "q_norm" else (narrow / wide) ** 0.5)
    assert heads * wide == state["model.layers.0.self_attn.q_proj.weight"].shape[0]
    new.load_state_dict(state)
    new.float().save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return folder
