"""A causal LM and the two halves of its forward pass, decoder and head.

They are kept apart so that the logits of a whole sequence need never exist at once.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Partial
from transformers import PreTrainedTokenizerBase
from transformers.modeling_utils import PreTrainedModel

from epistill.config import Lora
from epistill.errors import EpistillError, first_line
from epistill.objective.products import linear
from epistill.rollouts.low_rank import use_low_rank_sums


@dataclass(frozen=True, slots=True)
class Head:
    """The output layer as numbers: logits = cap(scale * (hidden W^T + b)).

    Attributes:
        weight: [V, H].
        bias: [V], or None.
        scale: Multiplier of the logits (Cohere, Granite); 1.0 elsewhere.
        softcap: cap * tanh(logits / cap) (Gemma 2); None for none.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def logits(self, hidden: Float[Tensor, "*batch H"]) -> Float[Tensor, "*batch V"]:
        """Logits of some positions."""
        return self.finish(linear(hidden, self.weight, self.bias))

    def finish(self, logits: Float[Tensor, "*batch V"]) -> Float[Tensor, "*batch V"]:
        """Scale and cap what the matrix product gave."""
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits


class LanguageModel:
    """A causal LM with its tokenizer, as every stage uses it.

    Args:
        network: The Hugging Face model (or a peft wrapper of one).
        tokenizer: Its tokenizer, with a chat template.
        name: Where it came from, for messages and logs.

    Attributes:
        compute_dtype: Forward passes run in it under autocast; None for the weights' own.
        packs: Rows go as one sequence, without padding (`align.packs` decides).
    """

    compute_dtype: torch.dtype | None = None
    packs: bool = False

    def __init__(
        self, network: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, name: str
    ) -> None:
        self.network = network
        self.tokenizer = tokenizer
        self.name = name

    def with_network(self, network: PreTrainedModel | PeftModel) -> LanguageModel:
        """Another network of the same kind, everything else alike."""
        model = LanguageModel(network, self.tokenizer, self.name)
        model.compute_dtype, model.packs = self.compute_dtype, self.packs
        return model

    def computing(self) -> AbstractContextManager[Any]:
        """What forward passes run under."""
        if self.compute_dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.compute_dtype)

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return next(self.network.parameters()).device

    @property
    def max_positions(self) -> int | None:
        """Longest sequence the model can read; None where its configuration does not say."""
        return getattr(self.network.config, "max_position_embeddings", None)

    @property
    def vocabulary(self) -> int:
        """Tokens of the head: every id is below it."""
        return int(self.network.config.get_text_config().vocab_size)

    @property
    def eos_ids(self) -> frozenset[int]:
        """Every token id that ends a response."""
        generation = getattr(self.network, "generation_config", None)
        places = (generation, self.network.config, self.tokenizer)
        found = [getattr(place, "eos_token_id", None) for place in places]
        several = [value if isinstance(value, list | tuple) else [value] for value in found]
        return frozenset(v for values in several for v in values if isinstance(v, int))

    @property
    def pad_id(self) -> int:
        """A token id to fill with; never read by attention, so any will do."""
        pad = self.tokenizer.pad_token_id
        return pad if isinstance(pad, int) else 0

    def decoder(self) -> nn.Module:
        """The network without its head."""
        return self.causal_lm().get_decoder()

    def output_layer(self) -> nn.Module:
        """The module that makes logits (of a LoRA student, possibly an adapted one)."""
        network = self.causal_lm()
        layer = network.get_output_embeddings()
        assert layer is not None, f"{type(network).__name__} has no output layer"
        return layer

    def head(self) -> Head:
        """The output layer with the model's own scaling."""
        config = self.causal_lm().config
        linear: Any = self.output_layer()
        weight, bias = self._gathered(linear.weight), getattr(linear, "bias", None)
        if hasattr(linear, "get_delta_weight") and not linear.disable_adapters:
            for adapter in linear.active_adapters:
                weight = weight + linear.get_delta_weight(adapter)
        scale = getattr(config, "logit_scale", None) or 1.0
        if dividing := getattr(config, "logits_scaling", None):
            scale = 1.0 / dividing
        softcap = getattr(config, "final_logit_softcapping", None)
        return Head(weight, None if bias is None else self._gathered(bias), scale, softcap)

    def _gathered(self, weight: Tensor) -> Tensor:
        """In the computing dtype and, of a sharded network, whole; the gradient finds its way back.

        Each process has the gradient of its own rows, so what flows back is a partial sum.
        """
        if self.compute_dtype is not None:
            weight = weight.to(self.compute_dtype)
        if isinstance(weight, DTensor):
            weight = weight.full_tensor(grad_placements=[Partial()])
        return weight

    def hidden(
        self,
        input_ids: Int[Tensor, "B W"],
        rows: Int[Tensor, "N"],
        columns: Int[Tensor, "N"],
        position_ids: Int[Tensor, "B W"] | None = None,
    ) -> Float[Tensor, "N H"]:
        """Hidden states at chosen positions of right-padded sequences, or of one packed sequence.

        Padding is on the right, so causal attention never reads it and no mask is needed. Packed
        rows are told apart by positions that begin again.
        """
        places = {} if position_ids is None else {"position_ids": position_ids}
        with self.computing():
            states = self.decoder()(input_ids=input_ids, use_cache=False, **places)[0]
        chosen = states[rows, columns]
        return chosen if self.compute_dtype is None else chosen.to(self.compute_dtype)

    def causal_lm(self) -> PreTrainedModel:
        """The network without an adapter around it."""
        network = self.network
        base: Any = network.get_base_model() if isinstance(network, PeftModel) else network
        return base


def on_device(weights: Any, device: str) -> Any:
    """A network or tensor moved there; EpistillError where the device is not to be had."""
    try:
        return weights.to(device)
    except (RuntimeError, AssertionError) as error:
        said = f"device {device!r} cannot be used: {first_line(error)}"
        raise EpistillError(f"{said}; expected cpu, or cuda with a torch for it") from error


def with_lora(model: LanguageModel, settings: Lora) -> LanguageModel:
    """The model with a fresh low-rank adapter, its base frozen.

    Raises:
        EpistillError: The target modules are not in this model.
    """
    targets = settings.targets
    adapter = LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.rank,
        lora_alpha=settings.alpha,  # pyright: ignore[reportArgumentType]
        lora_dropout=settings.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
    )
    try:
        network: Any = get_peft_model(model.network, adapter)
    except ValueError as error:
        raise EpistillError(
            f"model {model.name!r}: {first_line(error)}; name its linear layers in lora.targets"
        ) from error
    # Peft writes this set in whatever order it has; equal runs write equal files.
    adapter.target_modules = sorted(adapter.target_modules or ())
    use_low_rank_sums(network)
    return model.with_network(network.eval())
