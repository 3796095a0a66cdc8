"""Models for tests that cost next to nothing."""

from __future__ import annotations

import torch
from transformers import Qwen3ForCausalLM

from epistill.lab.build import build_config, build_tokenizer
from epistill.rollouts.model import LanguageModel


def make_tiny_model(seed: int = 0, layers: int = 1):
    """A random Qwen3 with the lab's tokenizer, float32."""
    tokenizer = build_tokenizer()
    config = build_config(tokenizer)
    config.num_hidden_layers = layers
    config.layer_types = ["full_attention"] * layers
    config.hidden_size, config.intermediate_size = 32, 48
    torch.manual_seed(seed)
    return LanguageModel(Qwen3ForCausalLM(config).eval(), tokenizer, "tiny")
