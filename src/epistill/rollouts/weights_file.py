"""A model's weights as one safetensors file, written tensor by tensor, from whole or sharded ones.

Of sharded weights never more than one tensor is whole: it is gathered, written and gone. Every
process of a run calls these together, the first one writes.
"""

from __future__ import annotations

import copy
import json
import shutil
import struct
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_utils import PreTrainedModel

from epistill.world import current_world

WEIGHTS = "model.safetensors"
# As the format names them: https://huggingface.co/docs/safetensors
NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


def gathered(tensor: Tensor) -> Tensor:
    """The whole of a tensor, sharded or not."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def write_model(
    network: PreTrainedModel, tensors: Mapping[str, Tensor], folder: Path
) -> OSError | None:
    """Write config.json and the tensors, under these names, into a new folder.

    Returns:
        What went wrong in the first process, which alone writes: the others gather to the end.
    """
    header = _header(tensors)  # in every process: what it cannot name stops them all
    failed: OSError | None = None
    with ExitStack() as held:
        try:
            file = held.enter_context(_begun(network, header, folder))
        except OSError as error:
            file, failed = None, error
        for tensor in tensors.values():
            full = gathered(tensor)
            try:
                if file is not None and failed is None:
                    file.write(full.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
                    file.flush()
            except OSError as error:
                failed = error
    return failed


def _header(tensors: Mapping[str, Tensor]) -> bytes:
    found: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + prod(tensor.shape) * tensor.element_size()
        shape = list(tensor.shape)
        found[name] = {"dtype": NAMES[tensor.dtype], "shape": shape, "data_offsets": [begin, end]}
    encoded = json.dumps(found).encode()
    encoded += b" " * (-len(encoded) % 8)
    return struct.pack("<Q", len(encoded)) + encoded


@contextmanager
def _begun(network: PreTrainedModel, header: bytes, folder: Path) -> Iterator[BinaryIO | None]:
    """The file after its header, in the first process."""
    if not current_world().first:
        yield None
        return
    shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed here
    folder.mkdir(parents=True)
    config = copy.copy(network.config)
    config.architectures = config.architectures or [type(network).__name__]
    config.save_pretrained(folder)
    with (folder / WEIGHTS).open("wb") as file:
        file.write(header)
        yield file


def own_tensors(network: PreTrainedModel) -> dict[str, Tensor]:
    """The state dict as a directory on the hub names it, a tied head left out."""
    once = {name for name, _ in network.named_parameters()}
    tied = {name for name, _ in network.named_parameters(remove_duplicate=False)} - once
    state = {name: tensor for name, tensor in network.state_dict().items() if name not in tied}
    return revert_weight_conversion(network, state)


def merged_tensors(network: PreTrainedModel) -> dict[str, Tensor]:
    """The state dict under the base model's own names, low-rank adapters added in.

    A tied head is there under its own name too: vLLM on a CPU keeps a packed copy of the head,
    which only a name in the file makes it renew.
    """
    state: dict[str, Tensor] = network.state_dict()
    for owner, each in network.named_modules():
        module: Any = each
        if hasattr(module, "get_delta_weight"):
            own = {name: state.pop(name) for name in [*state] if name.startswith(f"{owner}.")}
            for name, tensor in own.items():
                if name == f"{owner}.base_layer.weight":
                    for adapter in module.active_adapters:
                        tensor = tensor + module.get_delta_weight(adapter).to(tensor.dtype)
                if name.startswith(f"{owner}.base_layer."):
                    state[name.replace(".base_layer.", ".")] = tensor
    return revert_weight_conversion(network, state)
