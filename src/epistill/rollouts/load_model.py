"""Loading a causal LM from a directory or the hub, whatever is wrong with it said in one line.

Leaves a `LanguageModel` whose head and sampler are known to compute what the model's own do.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr, suppress
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerBase,
)
from transformers.modeling_utils import PreTrainedModel
from transformers.utils.hub import cached_file
from transformers.utils.logging import disable_progress_bar, is_progress_bar_enabled

from epistill.config import SamplingConfig
from epistill.errors import EpistillError, did_you_mean, first_line
from epistill.hub import hub_or_cache
from epistill.integrity import check_part
from epistill.json_files import open_file
from epistill.objective.products import use_fast_products
from epistill.rollouts.align import packs
from epistill.rollouts.model import LanguageModel, on_device
from epistill.rollouts.sampler import PromptRequest, sample

# Mean over the tokens of a check: rounding stays far below, a lost or foreign state does not.
MOST_GAP_NATS = {True: 0.02, False: 0.3}  # float32 or not

DTypeName = Literal["float32", "bfloat16"]
LAB_NAME = "lab"
GGUF = ".gguf"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
AN_ATTENTION = "an attention that it has and that is installed, as sdpa or eager"
ATTENTION_KEYS = ("attn_implementation", "_attn_implementation")  # both, or a file's would count
_LOADER: Any = AutoModelForCausalLM


def lab_directory() -> Path:
    """Where the package keeps the lab's base model."""
    return Path(str(resources.files("epistill.lab"))) / "star-search-base"


def load_model(
    name: str,
    *,
    dtype: str = "float32",
    device: str = "cpu",
    attention: str | None = None,
    precision: str | None = None,
    chat_template: str | None = None,
    trust_remote_code: bool = False,
) -> LanguageModel:
    """Load a model and its tokenizer from a directory, a GGUF file, a hub name, or "lab".

    Args:
        name: "lab" for the shipped model, a directory, a GGUF file (or a directory that holds only
            one; dequantised to `dtype`), or a name on the hub.
        dtype: Of the weights: float32 or bfloat16.
        device: Of the weights.
        attention: transformers' `attn_implementation`; None is its own choice, whatever the model's
            file names (it might name a kernel, which is code).
        precision: "bf16" computes in bfloat16, whatever the weights are; None in their type.
        chat_template: A Jinja file that replaces the tokenizer's own template (base models have
            none); it is saved with the model.
        trust_remote_code: Run code that came with the model; off unless asked.

    Raises:
        EpistillError: Not found, no tokenizer, pickled weights only, or an architecture that this
            package would compute otherwise than the model itself.
    """
    if dtype not in (known := get_args(DTypeName)):
        raise EpistillError(f"dtype is {dtype!r}; expected {' or '.join(known)}")
    source = model_source(name)
    if not sys.stderr.isatty():
        disable_progress_bar()  # a bar in a log file is noise
    with hub_or_cache(wanted=_needs_hub(source)):
        tokenizer = load_tokenizer(source, name, trust_remote_code, chat_template)
        _refuse_pickled_adapter(source, name)
        network: Any = _load_network(source, name, dtype, attention, trust_remote_code)
    network = on_device(network, device)
    use_fast_products(network)
    model = LanguageModel(network.eval(), tokenizer, name)
    model.compute_dtype = torch.bfloat16 if precision == "bf16" else None
    check_architecture(model)
    with _computing_anything(model):
        model.packs = packs(model)
    return model


def use_attention(model: LanguageModel, attention: str) -> None:
    """Give a loaded model another attention, and decide again whether its rows go packed."""
    config = model.causal_lm().config
    before = config._attn_implementation
    with _told(model.name, f"cannot have attention {attention!r}", AN_ATTENTION):
        model.causal_lm().set_attn_implementation(attention)
        if config._attn_implementation == before:  # transformers only warns
            raise ValueError("its kind cannot change it once it is loaded")
    with _computing_anything(model):
        model.packs = packs(model)


def load_without_weights(name: str, *, chat_template: str | None = None) -> LanguageModel:
    """Tokenizer, end tokens and sizes of a model that runs elsewhere, on torch's meta device.

    Raises:
        EpistillError: Not found, or no tokenizer.
    """
    source = model_source(name)
    with hub_or_cache(wanted=_needs_hub(source)):
        tokenizer = load_tokenizer(source, name, False, chat_template)
        expected = "a causal LM's config.json beside the tokenizer"
        with _told(name, "could not be read", expected), torch.device("meta"):
            config = AutoConfig.from_pretrained(source, **dict.fromkeys(ATTENTION_KEYS))
            network = _LOADER.from_config(config)
        with suppress(OSError):  # a model need not have one
            network.generation_config = GenerationConfig.from_pretrained(source)
    return LanguageModel(network.eval(), tokenizer, name)


def check_architecture(model: LanguageModel) -> None:
    """Refuse a network that this package would compute otherwise than the network itself."""
    with _computing_anything(model):
        _check_head(model)
        _check_sampler(model)


@contextmanager
def _computing_anything(model: LanguageModel) -> Iterator[None]:
    """Passes without gradients of a network that nobody has looked at: what it raises is told."""
    try:
        with model.computing(), torch.no_grad():
            yield
    except EpistillError:
        raise
    except Exception as error:  # code of the model's kind, or a kernel: anything at all
        attention = model.causal_lm().config._attn_implementation
        raise EpistillError(
            f"model {model.name!r}: the architecture {type(model.network).__name__} with attention "
            f"{attention!r} cannot be computed in batches here ({first_line(error)[:160]}); "
            "expected another attention, number type or device, or report the architecture"
        ) from error


@contextmanager
def _told(name: str, fault: str, expected: str) -> Iterator[None]:
    """One line for what a hostile or broken file raises, which can be anything at all."""
    try:
        yield
    except Exception as error:
        if "trust_remote_code" in str(error):
            fault, expected = (
                "comes with code of its own, which is not run",
                (
                    "a kind of model that transformers has, or, where you trust the author, "
                    "load_model(..., trust_remote_code=True)"
                ),
            )
        else:
            fault += f": {first_line(error)}"
        raise EpistillError(f"model {name!r} {fault}; expected {expected}") from error


def _load_network(
    source: str, name: str, dtype: str, attention: str | None, trust: bool
) -> PreTrainedModel:
    folder, form = _place(source)
    options = {"dtype": getattr(torch, dtype), "trust_remote_code": trust, **form}
    options |= dict.fromkeys(ATTENTION_KEYS, attention)
    kind = "a GGUF of a kind that transformers reads" if form else "safetensors weights"
    fault, expected = "could not be loaded", f"a causal LM with {kind}"
    if attention is not None:
        fault += f" with attention {attention!r}"
        expected += f", and {AN_ATTENTION}"
    with _told(name, fault, expected):
        if not form:
            return _LOADER.from_pretrained(folder, use_safetensors=True, **options)
        # Its bar asks nobody whether bars are wanted.
        with nullcontext() if is_progress_bar_enabled() else redirect_stderr(io.StringIO()):
            read = _LOADER.from_pretrained(folder, **options)
        # What came from a GGUF refuses to be saved; the same weights in a fresh model do not.
        del read.config.quantization_config
        network = _LOADER.from_config(read.config, dtype=read.dtype, attn_implementation=attention)
        network.load_state_dict(read.state_dict())
    network.tie_weights()
    network.config.name_or_path = source
    return network


def model_source(name: str) -> str:
    """A directory or a hub name.

    Raises:
        EpistillError: It looks like a directory and is none of a model.
    """
    directory = lab_directory() if name == LAB_NAME else Path(name)
    looks_local = name.startswith((".", "/", "~")) or directory.exists() or name == LAB_NAME
    if not looks_local and not name.endswith(GGUF):
        return name
    directory = directory.expanduser().resolve()  # an adapter's base is found from anywhere
    known = ("config.json", "adapter_config.json")
    if not any((directory / file).is_file() for file in known):
        if (file := _gguf_file(directory, name)) is not None:
            return str(file)
        found = "no such directory" if not directory.is_dir() else "no config.json in it"
        raise EpistillError(
            f"model {name!r}: {found}; expected a Hugging Face model directory, a GGUF file, a hub "
            f"name or {LAB_NAME!r}"
        )
    inside = directory / "model"
    if (directory / "environment.json").is_file() and (inside / "config.json").is_file():
        raise EpistillError(f"{name!r} is the folder of a run; its model is {str(inside)!r}")
    a_runs = ("environment.json", "result.json")
    if directory.name == inside.name and any((directory.parent / n).is_file() for n in a_runs):
        check_part(directory.parent, inside.name)
    return str(directory)


def _needs_hub(source: str) -> bool:
    """Whether some of it may have to come from there: all, or an adapter's base."""
    return not Path(source).exists() or (Path(source) / "adapter_config.json").is_file()


def _gguf_file(path: Path, name: str) -> Path | None:
    """The file, or the only one of a directory."""
    found = [path] if path.is_file() else sorted(path.glob(f"*{GGUF}"))
    if len(found) > 1:
        raise EpistillError(
            f"model {name!r} holds {len(found)} GGUF files; name one: "
            f"{', '.join(file.name for file in found)}"
        )
    if found and find_spec("gguf") is None:
        raise EpistillError(
            f"model {name!r} is a GGUF file, which needs the package gguf; pip install "
            "'epistill[gguf]'"
        )
    return found[0] if found and found[0].suffix == GGUF else None


def _place(source: str) -> tuple[str, dict[str, str]]:
    """Where transformers finds a `model_source`, and how it is told of a GGUF file."""
    path = Path(source)
    return (str(path.parent), {"gguf_file": path.name}) if path.suffix == GGUF else (source, {})


def load_tokenizer(
    source: str, name: str, trust: bool, chat_template: str | None = None
) -> PreTrainedTokenizerBase:
    """A fast tokenizer from a `model_source`, a file as its template; EpistillError without."""
    folder = Path(source)
    # Without any file the library makes up an empty tokenizer instead of failing.
    if folder.is_dir() and not any((folder / file).is_file() for file in TOKENIZER_FILES):
        raise EpistillError(
            f"model {name!r} has no usable tokenizer: none of {', '.join(TOKENIZER_FILES)} is in "
            "it; copy the tokenizer's files beside the weights"
        )
    expected = "tokenizer.json and tokenizer_config.json beside the weights"
    expected += did_you_mean(name, [LAB_NAME])
    with _told(name, "has no usable tokenizer", expected):
        place, form = _place(source)
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=trust, **form)
    if not getattr(tokenizer, "is_fast", False):
        raise EpistillError(
            f"model {name!r} has a slow tokenizer; expected a fast one (tokenizer.json), which "
            "maps tokens to text offsets"
        )
    if chat_template is not None:
        try:
            with open_file(Path(chat_template)) as file:
                tokenizer.chat_template = file.read().decode("utf-8")
        except (OSError, ValueError) as error:
            raise EpistillError(
                f"chat template {chat_template!r} cannot be read ({first_line(error)}); expected a "
                "file in Jinja, as a model's chat_template.jinja"
            ) from error
    return tokenizer


def _refuse_pickled_adapter(source: str, name: str) -> None:
    """Transformers falls back to a pickled adapter, whatever `use_safetensors` says."""

    def has(file: str) -> bool:
        with suppress(OSError):
            return cached_file(source, file) is not None
        return False

    if has("adapter_config.json") and not has("adapter_model.safetensors"):
        raise EpistillError(
            f"model {name!r} is an adapter without adapter_model.safetensors; pickled weights are "
            "not loaded: save it again as safetensors"
        )


def _check_head(model: LanguageModel) -> None:
    """Our head and the model's own must agree, or an unknown scaling would go unnoticed."""
    ids = torch.arange(4, device=model.device).unsqueeze(0)
    rows, columns = torch.zeros(4, dtype=torch.long, device=model.device), ids[0]
    ours = model.head().logits(model.hidden(ids, rows, columns)).float()
    theirs = model.network(input_ids=ids, use_cache=False).logits[0].float()
    if not torch.allclose(ours, theirs, rtol=1e-2, atol=1e-2):
        raise EpistillError(
            f"model {model.name!r} ({type(model.network).__name__}) computes its logits in a way "
            f"this package does not know (gap {(ours - theirs).abs().max().item():.3g}); expected "
            "hidden @ W^T with scale, bias or soft-cap; report the architecture"
        )


def _check_sampler(model: LanguageModel) -> None:
    """What the sampler says of its tokens must be what a plain forward pass says of them.

    A cache that rows cannot leave, state that padding disturbs: found here, not in the numbers.
    """
    vocabulary = model.head().weight.shape[0]
    asked = [
        PromptRequest("check", tuple(i % vocabulary for i in range(5, 5 + length)), index)
        for index, length in enumerate((3, 6))
    ]
    options: Any = {"samples": 2, "sampling": SamplingConfig(max_new_tokens=4), "seed": 0}
    gaps: list[float] = []
    for rollout in (*sample(model, asked, **options), *sample(model, asked[:1], **options)):
        ids = torch.tensor([[*rollout.prompt_ids, *rollout.completion_ids]])
        logits = model.network(input_ids=ids.to(model.device), use_cache=False).logits
        log_probs = logits[0, len(rollout.prompt_ids) - 1 : -1].float().log_softmax(-1).cpu()
        own = log_probs[range(len(log_probs)), list(rollout.completion_ids)]
        gaps += (own - torch.tensor(rollout.logprobs)).abs().tolist()
    gap = sum(gaps) / len(gaps)
    if not gap <= MOST_GAP_NATS[(model.compute_dtype or model.network.dtype) == torch.float32]:
        raise EpistillError(
            f"model {model.name!r}: sampled in a batch with a cache, the architecture "
            f"{type(model.network).__name__} gives its tokens other log-probs than alone (gap "
            f"{gap:.3g} nats); expected none; report the architecture"
        )
