"""Shapes, recipes and their plans, for the tests of what a study costs."""

from __future__ import annotations

import torch
import transformers

from epistill.studies.hardware import Architecture
from epistill.studies.load_study import RECIPES, load_study, shipped_studies

NAMES = [name for name in shipped_studies() if name.startswith(RECIPES)]
ARCHITECTURES = {
    name: shape for recipe in NAMES for name, shape in load_study(recipe).architectures.items()
}
SMALL = {
    "qwen3": {"num_key_value_heads": 2, "head_dim": 32},
    "qwen2": {"num_key_value_heads": 2},
    "llama": {"num_key_value_heads": 2},
    "olmo3": {"num_key_value_heads": 4, "sliding_window": 16},
}


def small(model_type: str, layers: int = 4, **changes) -> Architecture:
    settings = {
        "model_type": model_type, "hidden_size": 64, "intermediate_size": 176,
        "num_hidden_layers": layers, "num_attention_heads": 4, "vocab_size": 100,
        "max_position_embeddings": 256, "source": "a test", **SMALL[model_type], **changes,
    }  # fmt: skip
    return Architecture.model_validate(settings)


def network(shape: Architecture, dtype=torch.float32):
    config = transformers.AutoConfig.for_model(**shape.for_transformers())
    return transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)


def changed(**changes):
    spec = load_study("recipes/math-qwen3-8b-no-think")
    return spec.model_copy(update={"run": {**spec.run, **changes}})


SERVED = {"rollouts": {"engine": "vllm", "urls": ["http://x"], "model": "m"}}
