"""Giving vLLM servers new weights: a file on a disk they share, reloaded, and seen to be there.

The endpoints exist only where the server was started with VLLM_SERVER_DEV_MODE=1. vLLM's transfer
over NCCL, which needs CUDA, is not used.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import torch

from epistill.errors import EpistillError
from epistill.objective import token_log_probs
from epistill.rollouts.align import align
from epistill.rollouts.model import LanguageModel
from epistill.rollouts.vllm_api import WeightInfo, read_reply
from epistill.rollouts.vllm_client import Client
from epistill.rollouts.vllm_server import (
    COMPLETIONS,
    Refused,
    Server,
    ServerRequest,
    UnusableReply,
    shown_reply,
)
from epistill.rollouts.weights_file import WEIGHTS, merged_tensors, write_model
from epistill.seeds import named_random
from epistill.world import current_world

PROBE_TOKENS = 32
# The probe's mean gap between trainer and server may be .05 nats plus 2 % of the log-probs' mean
# size: several times what bfloat16 costs, far less than what other weights cost.
PROBE_GAP_NATS = 0.05
PROBE_GAP_SHARE = 0.02
# Log-probs that moved less than this may read the same on the server.
PROBE_MOVED_NATS = 1e-3


def write_weights(model: LanguageModel, folder: Path) -> None:
    """Write the model's whole weights as one file, adapters merged; an old file stays until then.

    All processes of a run call it together.

    Raises:
        EpistillError: No room, or no permission.
    """
    temporary = folder / f".{WEIGHTS}.{os.getpid()}.tmp"
    network = model.causal_lm()
    failed = write_model(network, merged_tensors(network), temporary)

    def finish() -> None:
        try:
            if failed is not None:
                raise failed
            for name in (WEIGHTS, "config.json"):
                (temporary / name).replace(folder / name)
        except OSError as error:
            raise EpistillError(
                f"could not write weights for the vLLM servers into {folder}: {error}; make room "
                "or choose another rollouts.weights_folder"
            ) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    current_world().on_first(finish)


def probe_ids(vocabulary: int) -> tuple[int, ...]:
    """A fixed sequence of token ids whose log-probs tell one set of weights from another."""
    draw = named_random("vllm_probe", vocabulary)
    return tuple(draw.randrange(vocabulary) for _ in range(PROBE_TOKENS))


@torch.no_grad()
def probe_log_probs(model: LanguageModel, ids: Sequence[int]) -> tuple[float, ...]:
    """What the trainer's own network says about the probe, from its second token on."""
    probe = align(model, [ids[:1]], [ids[1:]])
    logits = model.head().logits(probe.hidden(model)).float()
    return tuple(token_log_probs(logits, probe.token_ids).tolist())


def push_to(
    client: Client,
    server: Server,
    folder: Path,
    version: int,
    probe: ServerRequest,
    *,
    expected: Sequence[float],
    expected_before: Sequence[float] | None,
) -> float:
    """Make one server take the weights, and see from its log-probs that it did.

    Args:
        client, server: Whom to ask.
        folder: Holds model.safetensors, at the same path for the server.
        version: Of the weights.
        probe: Scores the probe.
        expected, expected_before: The trainer's log-probs of the probe, now and at the last push.

    Returns:
        Mean absolute gap of the probe in nats per token.

    Raises:
        UnusableReply: It did not take them.
    """
    if server.lost is not None:
        client.call(server, "/health", seconds=5)
    reload = {"method": "reload_weights", "kwargs": {"weights_path": str(folder.resolve())}}
    try:  # a failure in between may leave half of each
        client.call(server, "/collective_rpc", reload)
        client.call(server, "/reset_prefix_cache", {})
        client.call(server, "/update_weight_version", {"new_version": str(version)})
    except Refused as error:
        raise Refused(
            f"{error}; expected a vLLM server with development endpoints "
            "(VLLM_SERVER_DEV_MODE=1, on a trusted network) of version 0.32 or later"
        ) from error
    found = tuple(probe.read(client.call(server, COMPLETIONS, probe.body))["log_probs"])
    gap = fmean(abs(f - e) for f, e in zip(found, expected, strict=True))
    if gap > PROBE_GAP_NATS + PROBE_GAP_SHARE * fmean(map(abs, expected)):
        raise UnusableReply(
            f"after the reload its log-probs differ from the trainer's by {gap:.3g} nats per token"
        )
    if server.probe == found and expected_before is not None:
        moved = max(abs(a - b) for a, b in zip(expected, expected_before, strict=True))
        if moved > PROBE_MOVED_NATS:
            raise UnusableReply("the reload changed nothing")
    server.probe, server.version, server.lost, server.tempered = found, version, None, False
    return gap


def check_version(client: Client, server: Server) -> int | None:
    """The version of the server's weights by its own word; a server with others is lost.

    Raises:
        UnusableReply: It has others.
    """
    says = read_reply(WeightInfo, client.call(server, "/weight_info")).weight_version
    if says != str(server.version):
        server.lost = f"its weights have version {shown_reply(says)}, expected {server.version}"
        raise UnusableReply(f"{server.lost}: it was restarted, or someone else changed them")
    return server.version
