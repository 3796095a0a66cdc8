"""A preflight as a job of a study: measured on the untrained model before any arm trains.

Enters: a `Preflight`, a folder. Leaves: a run directory whose result is the preflight's report.
"""

from __future__ import annotations

from pathlib import Path

from epistill.environment import describe_environment
from epistill.preflights.preflight_engine import preflight_engine
from epistill.preflights.preflight_run import run_preflight
from epistill.store import RunStore
from epistill.studies.spec import Preflight, without_analysis


def run_preflight_job(preflight: Preflight, folder: Path) -> RunStore:
    """Carry out a preflight, or go on with it; a finished one is returned as it is."""
    store, settings = RunStore(folder), preflight.settings
    with store.locked():
        asked = without_analysis({"preflight": preflight.model_dump(mode="json")})
        store.begin(asked, describe_environment(), migrate=without_analysis)
        if store.result is not None:
            return store
        engine = preflight_engine(settings, folder / "cache")
        store.finish(run_preflight(settings, engine, folder / "cache"))
    return store
