"""Loading any Hugging Face causal LM, and the two halves of its forward pass.

Enters: a directory or name. Leaves: a `LanguageModel` whose decoder gives hidden states and whose
head turns them into logits, kept apart so that the logits of a whole sequence with a large
vocabulary need never exist at once.
"""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Partial
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)
from transformers.modeling_utils import PreTrainedModel
from transformers.utils.hub import cached_file
from transformers.utils.logging import disable_progress_bar

from epistill.config import Lora
from epistill.errors import EpistillError, first_line
from epistill.objective.products import linear

DTypeName = Literal["float32", "bfloat16"]
LAB_NAME = "lab"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


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
    """

    compute_dtype: torch.dtype | None = None

    def __init__(
        self, network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str
    ) -> None:
        self.network = network
        self.tokenizer = tokenizer
        self.name = name

    def with_network(self, network: PreTrainedModel) -> LanguageModel:
        """Another network of the same kind, everything else alike."""
        model = LanguageModel(network, self.tokenizer, self.name)
        model.compute_dtype = self.compute_dtype
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
    def eos_ids(self) -> frozenset[int]:
        """Every token id that ends a response."""
        generation = getattr(self.network, "generation_config", None)
        found: set[int] = set()
        for value in (
            getattr(generation, "eos_token_id", None),
            self.network.config.eos_token_id,
            self.tokenizer.eos_token_id,
        ):
            values = value if isinstance(value, list | tuple) else [value]
            found.update(v for v in values if isinstance(v, int))
        return frozenset(found)

    @property
    def pad_id(self) -> int:
        """A token id to fill with; never read by attention, so any will do."""
        pad = self.tokenizer.pad_token_id
        return pad if isinstance(pad, int) else 0

    def decoder(self) -> nn.Module:
        """The network without its head."""
        return self._causal_lm().get_decoder()

    def output_layer(self) -> nn.Module:
        """The module that makes logits (of a LoRA student, possibly an adapted one)."""
        network = self._causal_lm()
        layer = network.get_output_embeddings()
        assert layer is not None, f"{type(network).__name__} has no output layer"
        return layer

    def input_layer(self) -> nn.Module:
        """The embedding."""
        return self._causal_lm().get_input_embeddings()

    def head(self) -> Head:
        """The output layer with the model's own scaling."""
        config = self._causal_lm().config
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
        self, input_ids: Int[Tensor, "B W"], rows: Int[Tensor, "N"], columns: Int[Tensor, "N"]
    ) -> Float[Tensor, "N H"]:
        """Hidden states at chosen positions of right-padded sequences.

        Padding is on the right, so causal attention never reads it and no mask is needed.
        """
        with self.computing():
            states = self.decoder()(input_ids=input_ids, use_cache=False)[0]
        chosen = states[rows, columns]
        return chosen if self.compute_dtype is None else chosen.to(self.compute_dtype)

    def _causal_lm(self) -> PreTrainedModel:
        get_base = getattr(self.network, "get_base_model", None)
        return get_base() if get_base is not None else self.network


def lab_directory() -> Path:
    """Where the package keeps the lab's base model."""
    return Path(str(resources.files("epistill.lab"))) / "star-search-base"


def load_model(
    name: str,
    *,
    dtype: DTypeName = "float32",
    device: str = "cpu",
    trust_remote_code: bool = False,
) -> LanguageModel:
    """Load a model and its tokenizer from a directory, a hub name, or "lab".

    Args:
        name: "lab" for the shipped model, a directory, or a name on the hub.
        dtype: Of the weights.
        device: Of the weights.
        trust_remote_code: Run code that came with the model; off unless asked.

    Raises:
        EpistillError: Not found, no tokenizer, pickled weights only, or a head whose logits this
            package would compute differently from the model itself.
    """
    source = model_source(name)
    if not sys.stderr.isatty():
        disable_progress_bar()  # a bar in a log file is noise
    tokenizer = load_tokenizer(source, name, trust_remote_code)
    _refuse_pickled_adapter(source, name)
    loader: Any = AutoModelForCausalLM
    try:
        network = loader.from_pretrained(
            source,
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
        )
    except (OSError, ValueError) as error:
        _explain_own_code(error, name)
        raise EpistillError(
            f"model {name!r} could not be loaded: {first_line(error)}; expected a causal LM with "
            "safetensors weights"
        ) from error
    try:
        network = network.to(device)
    except (RuntimeError, AssertionError) as error:
        said = f"device {device!r} cannot be used: {first_line(error)}"
        raise EpistillError(f"{said}; expected cpu, or cuda with a torch for it") from error
    model = LanguageModel(network.eval(), tokenizer, name)
    _check_head(model)
    return model


def with_lora(model: LanguageModel, settings: Lora) -> LanguageModel:
    """The model with a fresh low-rank adapter, its base frozen.

    Raises:
        EpistillError: The target modules are not in this model.
    """
    from peft import LoraConfig, get_peft_model

    names = settings.targets
    targets = names if isinstance(names, str) else list(names)
    adapter = LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.rank,
        lora_alpha=settings.alpha,  # pyright: ignore[reportArgumentType]
        lora_dropout=settings.dropout,
        target_modules=targets,
    )
    try:
        network: Any = get_peft_model(model.network, adapter)
    except ValueError as error:
        raise EpistillError(
            f"model {model.name!r}: {first_line(error)}; name its linear layers in lora.targets"
        ) from error
    return model.with_network(network.eval())


def model_source(name: str) -> str:
    """A directory or a hub name.

    Raises:
        EpistillError: It looks like a directory and is none of a model.
    """
    directory = lab_directory() if name == LAB_NAME else Path(name)
    looks_local = name.startswith((".", "/", "~")) or directory.exists() or name == LAB_NAME
    if looks_local:
        directory = directory.expanduser()
        known = ("config.json", "adapter_config.json")
        if not any((directory / file).is_file() for file in known):
            found = "no such directory" if not directory.is_dir() else "no config.json in it"
            raise EpistillError(
                f"model {name!r}: {found}; expected a Hugging Face model directory, a hub name or "
                f"{LAB_NAME!r}"
            )
    return str(directory) if looks_local else name


def load_tokenizer(source: str, name: str, trust: bool) -> PreTrainedTokenizerBase:
    """A fast tokenizer from a `model_source`; EpistillError without one."""
    folder = Path(source)
    # Without any file the library makes up an empty tokenizer instead of failing.
    if folder.is_dir() and not any((folder / file).is_file() for file in TOKENIZER_FILES):
        raise EpistillError(
            f"model {name!r} has no usable tokenizer: none of {', '.join(TOKENIZER_FILES)} is in "
            "it; copy the tokenizer's files beside the weights"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust)
    except (OSError, ValueError) as error:
        _explain_own_code(error, name)
        raise EpistillError(
            f"model {name!r} has no usable tokenizer: {first_line(error)}; expected "
            "tokenizer.json and tokenizer_config.json beside the weights"
        ) from error
    if not getattr(tokenizer, "is_fast", False):
        raise EpistillError(
            f"model {name!r} has a slow tokenizer; expected a fast one (tokenizer.json), which "
            "maps tokens to text offsets"
        )
    return tokenizer


def _refuse_pickled_adapter(source: str, name: str) -> None:
    """Transformers falls back to a pickled adapter, whatever `use_safetensors` says."""

    def has(file: str) -> bool:
        try:
            return cached_file(source, file) is not None
        except OSError:
            return False

    if has("adapter_config.json") and not has("adapter_model.safetensors"):
        raise EpistillError(
            f"model {name!r} is an adapter without adapter_model.safetensors; pickled weights are "
            "not loaded: save it again as safetensors"
        )


def _explain_own_code(error: Exception, name: str) -> None:
    if "trust_remote_code" in str(error):
        raise EpistillError(
            f"model {name!r} comes with code of its own, which is not run; expected a kind of "
            "model that transformers has, or, where you trust the author, "
            "load_model(..., trust_remote_code=True)"
        ) from error


def _check_head(model: LanguageModel) -> None:
    """Our head and the model's own must agree, or an unknown scaling would go unnoticed."""
    ids = torch.arange(4, device=model.device).unsqueeze(0)
    rows, columns = torch.zeros(4, dtype=torch.long, device=model.device), ids[0]
    with torch.no_grad():
        ours = model.head().logits(model.hidden(ids, rows, columns)).float()
        theirs = model.network(input_ids=ids, use_cache=False).logits[0].float()
    if not torch.allclose(ours, theirs, rtol=1e-2, atol=1e-2):
        raise EpistillError(
            f"model {model.name!r} ({type(model.network).__name__}) computes its logits in a way "
            f"this package does not know (gap {(ours - theirs).abs().max().item():.3g}); expected "
            "hidden @ W^T with scale, bias or soft-cap; report the architecture"
        )
