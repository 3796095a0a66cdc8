"""From settings to an engine: a model in this process, or vLLM servers and what they serve.

Enters: a `PreflightConfig`, the cache's folder. Leaves: an `Engine`. A server does not say which
weights it has, so it is asked for the log-probs of a fixed sequence: results that were cached with
other weights, under the same name, are never mixed with its own.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from epistill.errors import EpistillError, damaged
from epistill.json_files import read_json, write_json
from epistill.preflights.preflight_config import PreflightConfig
from epistill.preflights.scoring_engine import Engine, InProcess
from epistill.preflights.served_scores import Served
from epistill.rollouts.load_model import load_model
from epistill.rollouts.model import LanguageModel
from epistill.rollouts.reply_cache import KeptReplies
from epistill.rollouts.served_model import load_outline
from epistill.rollouts.vllm import VllmPool
from epistill.rollouts.vllm_client import API_KEY, Client, Server, UnusableReply
from epistill.rollouts.vllm_push import probe_ids

PROBES = "served-models.json"
SAME_SERVERS_NATS = 0.05  # mean gap between servers of one model, in their own arithmetic
SAME_CACHE_NATS = 1e-3  # largest gap at which earlier results are reused


def make_engine(config: PreflightConfig, folder: Path) -> Engine:
    """The engine that the settings name.

    Args:
        config: Its `engine`, model and device.
        folder: Of the cache; for servers also of replies to unfinished work.

    Raises:
        EpistillError: No model, no server, or servers of different models.
    """
    if config.engine != "inprocess":
        return _served(config, folder)
    model = load_model(
        config.model,
        dtype=config.dtype,
        device=config.device,
        chat_template=config.chat_template,
    )
    return InProcess(model, microbatch_tokens=config.microbatch_tokens)


def _served(config: PreflightConfig, folder: Path) -> Served:
    outline = load_outline(config.model)
    urls = [url.strip().rstrip("/") for url in config.engine.split(",")]
    vocabulary = int(outline.network.config.get_text_config().vocab_size)
    names, limits, probes = [], [], []
    for url in urls:
        name, limit = _model_at(url, config.model)
        with_probe = probe_ids(min(vocabulary, len(outline.tokenizer)))
        (found,) = _pool([url], name, outline).score([with_probe[:1]], [with_probe[1:]])
        names.append(name)
        limits.append(limit)
        probes.append([float(value) for value in found.log_probs])
    gaps = np.abs(np.array(probes) - probes[0]).mean(axis=1)
    if len(set(names)) > 1 or gaps.max() > SAME_SERVERS_NATS:
        raise EpistillError(
            f"the servers {', '.join(urls)} serve {', '.join(names)} with log-probs up to "
            f"{gaps.max():.3g} nats apart; expected one model under one name on all of them"
        )
    identity = {"engine": "vllm", "model": names[0], "probe": _known(folder / PROBES, probes[0])}
    sha = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    kept = KeptReplies(folder / f"replies-{sha[:16]}.jsonl")
    known = [limit for limit in (*limits, outline.max_positions) if limit is not None]
    return Served(
        _pool(urls, names[0], outline, kept=kept),
        tokenizer=outline.tokenizer,
        eos_ids=outline.eos_ids,
        vocabulary=vocabulary,
        max_positions=min(known, default=None),
        top_k=config.top_k,
        identity=identity,
        kept=kept,
    )


def _pool(
    urls: Sequence[str], name: str, outline: LanguageModel, kept: KeptReplies | None = None
) -> VllmPool:
    return VllmPool(
        urls,
        name,
        tokenizer=outline.tokenizer,
        ends=outline.eos_ids,
        kept=kept,
        api_key=os.environ.get(API_KEY),
    )


def _model_at(url: str, wanted: str) -> tuple[str, int | None]:
    """The name of the served model and the longest request it takes.

    Raises:
        EpistillError: No server there, or it serves several models and none has the wanted name.
    """
    server = Server(url)
    client = Client([server], api_key=os.environ.get(API_KEY))
    try:
        told: Any = client.patiently(lambda: client.call(server, "/v1/models"))
    except UnusableReply as failure:
        server.lost = str(failure)
        raise client.lost_error() from failure
    finally:
        client.close()
    listed = told.get("data") if isinstance(told, dict) else None
    models = {m["id"]: m.get("max_model_len") for m in listed or () if "id" in m}
    if len(models) == 1:
        return next(iter(models.items()))
    if wanted in models:
        return wanted, models[wanted]
    raise EpistillError(
        f"the server at {url} serves {', '.join(models) or 'no model'}; expected one model, or "
        f"one of the name {wanted!r}"
    )


def _known(path: Path, probe: Sequence[float]) -> str:
    """Name of the weights with this probe: an earlier one's where they are the same."""
    known: list[list[float]] = read_json(path, list) if path.exists() else []
    for earlier in known:
        if np.shape(earlier) != np.shape(probe):
            raise damaged(path, "it holds something else than probes")
        if np.abs(np.array(earlier) - probe).max() <= SAME_CACHE_NATS:
            return _name(earlier)
    write_json(path, [*known, list(probe)])
    return _name(probe)


def _name(probe: Sequence[float]) -> str:
    return hashlib.sha256(json.dumps(list(probe)).encode()).hexdigest()
