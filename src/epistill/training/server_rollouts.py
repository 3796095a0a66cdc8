"""Rollouts from servers: opened from the settings, compared with the trainer, corrected.

Enters: a `RunConfig`, rollouts with the log-probs of the engine that sampled them. Leaves: the
trainer's own log-probs of the same tokens, truncated importance weights, and the numbers behind
both. The trainer's current log-probs then stand for "when it was sampled" in clipped ratios, and

    weight_t = min(exp(log p_trainer,t - log p_engine,t), importance_cap)

multiplies every term of the token's loss: it corrects both for an engine that computes differently
and for weights that are some steps old. Source: truncated importance sampling, Ionides 2008; for
engines that differ from the trainer, Yao et al. 2025.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from epistill.config import RunConfig
from epistill.errors import EpistillError
from epistill.records import GradedRollout
from epistill.rollout_settings import VllmRollouts
from epistill.rollouts.in_process_engine import InProcessEngine
from epistill.rollouts.load_model import lab_directory
from epistill.rollouts.model import LanguageModel
from epistill.rollouts.vllm_client import API_KEY
from epistill.rollouts.vllm_engine import VllmEngine
from epistill.training_rows import TrainingRow

WEIGHTS_FOLDER = "engine_weights"


def open_engine(config: RunConfig, student: LanguageModel, folder: Path) -> VllmEngine | None:
    """The engine that the settings name; None samples in this process.

    Args:
        config: The run.
        student: Its tokenizer and end tokens are the engine's too.
        folder: The run's; pushed weights lie in it unless the settings name another place.

    Raises:
        EpistillError: The weights would be written over the model that the run starts from.
    """
    settings = config.rollouts
    if not isinstance(settings, VllmRollouts):
        return None
    weights = Path(settings.weights_folder or folder / WEIGHTS_FOLDER)
    start = lab_directory() if config.model == "lab" else Path(config.model)
    if weights.resolve() in (start.resolve(), lab_directory().resolve()):
        raise EpistillError(
            f"rollouts.weights_folder is {weights}, the model the run starts from; expected a "
            "folder of its own, because every step overwrites the weights in it"
        )
    return VllmEngine(
        settings.urls,
        settings.model,
        student,
        weights_folder=weights,
        push_every=settings.push_every,
        in_flight=settings.in_flight,
        attempts=settings.attempts,
        timeout=settings.timeout_seconds,
        api_key=os.environ.get(API_KEY),
    )


def teacher_engine(config: RunConfig, servers: VllmEngine | None) -> VllmEngine | None:
    """What scores the teacher before a step; None: this process."""
    rollouts = config.rollouts
    served = isinstance(rollouts, VllmRollouts) and rollouts.teacher_scores == "servers"
    return servers if served else None


def corrected(
    student: LanguageModel,
    rows: Sequence[TrainingRow],
    graded: Sequence[GradedRollout],
    config: RunConfig,
    step: int,
) -> tuple[list[TrainingRow], list[GradedRollout], dict[str, Any]]:
    """Score the rollouts with the current weights and weigh their tokens.

    Args:
        student: The trainer's weights after `step` optimiser batches.
        rows: Of the rollouts.
        graded: Rollouts with the engine's log-probs, stamped with the version that sampled them.
        config: Its rollouts are a server's.
        step: Rollouts of an older version are stale.

    Returns:
        The rows with the trainer's log-probs and entropies and with importance weights; the
        rollouts, with the trainer's entropies where its weights were the same; for the metrics.
    """
    assert isinstance(config.rollouts, VllmRollouts)
    cap = config.rollouts.importance_cap
    engine = InProcessEngine(
        student,
        temperature=config.sampling.temperature or 1.0,
        microbatch_tokens=config.most_microbatch_tokens,
    )
    scores = engine.score([row.prompt_ids for row in rows], [row.completion_ids for row in rows])
    weighted, seen = list(rows), list(graded)
    ratios: list[Tensor] = []
    fresh: list[Tensor] = []
    lags = [step - item.rollout.policy_version for item in graded]
    for i, (item, score, lag) in enumerate(zip(graded, scores, lags, strict=True)):
        gap = score.log_probs.double() - torch.tensor(item.rollout.logprobs, dtype=torch.float64)
        ratios.append(gap.clamp(-20, 20).exp())
        entropies = tuple(score.entropies.tolist())
        weighted[i] = replace(
            rows[i],
            old_log_probs=tuple(score.log_probs.tolist()),
            entropies=entropies,
            importance=tuple(ratios[-1].clamp(max=cap).tolist()),
        )
        if lag == 0:
            fresh.append(gap.abs())
            seen[i] = replace(item, rollout=replace(item.rollout, entropies=entropies))
    flat = torch.cat(ratios)
    same = torch.cat(fresh) if fresh else None
    numbers = {
        "engine_gap_nats_per_token": None if same is None else float(same.mean()),
        "engine_gap_max_nats": None if same is None else float(same.max()),
        "policy_lag_steps": max(lags),
        "stale_rollout_share": sum(lag != 0 for lag in lags) / len(lags),
        "importance_weight_mean": float(flat.clamp(max=cap).mean()),
        "importance_capped_share": float((flat > cap).double().mean()),
    }
    return weighted, seen, numbers
