"""From settings to the engine: a model in this process, or vLLM servers.

A server does not say which weights it has, so it is asked for the log-probs of a fixed sequence:
results that were cached with other weights, under the same name, are never mixed with its own.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydantic import FiniteFloat, TypeAdapter

from epistill.errors import EpistillError, damaged
from epistill.json_files import read_json, write_json
from epistill.rollouts.engine import Engine
from epistill.rollouts.engine_settings import EngineSettings
from epistill.rollouts.in_process_engine import InProcessEngine
from epistill.rollouts.load_model import load_model, load_without_weights
from epistill.rollouts.stored_replies import StoredReplies
from epistill.rollouts.vllm_api import ServedModels, read_reply
from epistill.rollouts.vllm_client import API_KEY, Client
from epistill.rollouts.vllm_engine import VllmEngine
from epistill.rollouts.vllm_server import Server, UnusableReply, shown_reply
from epistill.rollouts.vllm_weights import probe_ids

PROBES = "served-models.json"
SAME_SERVERS_NATS = 0.05  # mean gap between servers of one model, in their own arithmetic
LISTING_SECONDS = 30.0  # what a server says of itself costs it nothing
SAME_CACHE_NATS = 1e-3  # largest gap at which earlier results are reused


def load_engine(
    settings: EngineSettings, folder: Path | None = None, *, scored: bool = True
) -> Engine:
    """The engine that the settings name.

    Args:
        settings: Its `engine`, model and device.
        folder: Where servers' replies to unfinished work are kept, and what their weights are known
            by; None keeps nothing.
        scored: Whether log-probs are read; without, servers may use filters and rules
            (`VllmEngine.unscored`).

    Raises:
        EpistillError: No model, no server, or servers of different models.
    """
    if settings.urls:
        served = _served(settings, folder)
        return served if scored else served.unscored()
    model = load_model(
        settings.model,
        dtype=settings.dtype,
        device=settings.device,
        attention=settings.attention,
        chat_template=settings.chat_template,
    )
    return InProcessEngine(model, microbatch_tokens=settings.microbatch_tokens)


def _served(settings: EngineSettings, folder: Path | None) -> VllmEngine:
    model = load_without_weights(settings.model, chat_template=settings.chat_template)
    api_key = os.environ.get(API_KEY)
    urls = settings.urls
    served = [_model_at(url, settings.model, api_key) for url in urls]
    probes = [
        _probe(VllmEngine([url], name, model, api_key=api_key))
        for url, (name, _) in zip(urls, served, strict=True)
    ]
    names = [name for name, _ in served]
    gaps = np.abs(np.array(probes) - probes[0]).mean(axis=1)
    if len(set(names)) > 1 or gaps.max() > SAME_SERVERS_NATS:
        raise EpistillError(
            f"the servers {', '.join(urls)} serve {', '.join(names)} with log-probs up to "
            f"{gaps.max():.3g} nats apart; expected one model under one name on all of them"
        )
    weights = _name(probes[0]) if folder is None else _known(folder / PROBES, probes[0])
    identity = {"engine": "vllm", "model": names[0], "probe": weights}
    sha = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    limits = [limit for _, limit in served] + [model.max_positions]
    return VllmEngine(
        urls,
        names[0],
        model,
        top_k=settings.top_k,
        max_positions=min((limit for limit in limits if limit is not None), default=None),
        identity=identity,
        finished_replies=folder and StoredReplies(folder / f"replies-{sha[:16]}.jsonl"),
        api_key=api_key,
        keeps=folder is not None,
    )


def _probe(engine: VllmEngine) -> list[float]:
    """Log-probs of the fixed sequence."""
    ids = probe_ids(min(engine.model.vocabulary, len(engine.tokenizer)))
    try:
        return engine.score([ids[:1]], [ids[1:]])[0].log_probs.tolist()
    finally:
        engine.close()


def _model_at(url: str, wanted: str, api_key: str | None) -> tuple[str, int | None]:
    """The name of the served model and the longest request it takes.

    Raises:
        EpistillError: No server there, or it serves several models and none has the wanted name.
    """
    server = Server(url)
    client = Client([server], api_key=api_key, timeout=LISTING_SECONDS)
    try:
        told = client.with_retries(
            lambda: read_reply(ServedModels, client.call(server, "/v1/models"))
        )
    except UnusableReply as failure:
        server.lost = str(failure)
        raise client.lost_error() from failure
    finally:
        client.close()
    models = {model.id: model.max_model_len for model in told.data}
    if len(models) == 1:
        return next(iter(models.items()))
    if wanted in models:
        return wanted, models[wanted]
    raise EpistillError(
        f"the server at {url} serves {shown_reply(', '.join(models)) or 'no model'}; expected one "
        f"model, or one of the name {wanted!r}"
    )


def _known(path: Path, probe: Sequence[float]) -> str:
    """Name of the weights with this probe: an earlier one's where they are the same."""
    read = read_json(path, list) if path.exists() else []
    try:
        known = TypeAdapter(list[list[FiniteFloat]]).validate_python(read, strict=True)
        gaps = [np.abs(np.subtract(earlier, probe)).max() for earlier in known]
    except ValueError as error:  # of another length, too
        raise damaged(path, "it holds something else than probes") from error
    for earlier, gap in zip(known, gaps, strict=True):
        if gap <= SAME_CACHE_NATS:
            return _name(earlier)
    write_json(path, [*known, list(probe)])
    return _name(probe)


def _name(probe: Sequence[float]) -> str:
    return hashlib.sha256(json.dumps(list(probe)).encode()).hexdigest()
