"""From settings to an engine."""

from __future__ import annotations

from epistill.preflight.config import PreflightConfig
from epistill.preflight.engine import Engine, InProcess
from epistill.rollouts.model import load_model


def make_engine(config: PreflightConfig) -> Engine:
    """The engine that the settings name."""
    model = load_model(config.model, dtype=config.dtype, device=config.device)
    return InProcess(model, microbatch_tokens=config.microbatch_tokens)
