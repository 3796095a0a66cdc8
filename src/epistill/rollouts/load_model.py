"""Loading a causal LM from a directory or the hub, whatever is wrong with it said in one line.

Enters: a name. Leaves: a `LanguageModel` whose head is known to compute what the model's own does.
"""

from __future__ import annotations

import sys
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils.hub import cached_file
from transformers.utils.logging import disable_progress_bar

from epistill.errors import EpistillError, first_line
from epistill.integrity import check_against_manifest
from epistill.rollouts.model import LanguageModel

DTypeName = Literal["float32", "bfloat16"]
LAB_NAME = "lab"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


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
    except Exception as error:  # a hostile or broken file can raise anything at all in there
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
        inside = directory / "model"
        if (directory / "environment.json").is_file() and (inside / "config.json").is_file():
            raise EpistillError(f"{name!r} is the folder of a run; its model is {str(inside)!r}")
        if directory.name == inside.name and (directory.parent / "environment.json").is_file():
            for file in directory.iterdir():  # a run wrote it, with checksums
                check_against_manifest(directory.parent, f"{inside.name}/{file.name}")
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
    except Exception as error:  # as above
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
