"""What a model elsewhere (on a server) has to be known by here: all of it but the weights.

Enters: a model's name. Leaves: a `LanguageModel` on torch's meta device.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from epistill.errors import EpistillError, first_line
from epistill.rollouts.load_model import load_tokenizer, model_source
from epistill.rollouts.model import LanguageModel


def load_without_weights(name: str, *, chat_template: str | None = None) -> LanguageModel:
    """Tokenizer, end tokens and sizes of a model that runs elsewhere.

    Args:
        name, chat_template: As for `load_model`.

    Raises:
        EpistillError: Not found, or no tokenizer.
    """
    source = model_source(name)
    tokenizer = load_tokenizer(source, name, trust=False, chat_template=chat_template)
    loader: Any = AutoModelForCausalLM
    try:
        config = AutoConfig.from_pretrained(source)
        with torch.device("meta"):
            network = loader.from_config(config)
    except (OSError, ValueError) as error:
        raise EpistillError(
            f"model {name!r} could not be read: {first_line(error)}; expected a causal LM's "
            "config.json beside the tokenizer"
        ) from error
    with suppress(OSError):  # a model need not have one
        network.generation_config = GenerationConfig.from_pretrained(source)
    return LanguageModel(network.eval(), tokenizer, name)
