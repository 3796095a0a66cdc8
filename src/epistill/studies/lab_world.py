"""A world of the phase study: the lab's base model with its dials turned.

Enters: a `LabWorld`, a folder. Leaves: a model directory and the dials measured on it. Nominal
dials only aim; what the surface is drawn over is measured.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from epistill.environment import describe_environment
from epistill.lab.dials import measure_dials
from epistill.lab.pretrain import pretrain
from epistill.rollouts.load_model import load_model
from epistill.rollouts.model import LanguageModel
from epistill.store import RunStore
from epistill.studies.spec import LabWorld
from epistill.tasks.star_traces import DEFAULT_DIALS


def run_world(world: LabWorld, folder: Path) -> RunStore:
    """Adapt the base model to the world's dials; a finished world is returned as it is."""
    store = RunStore(folder)
    with store.locked():
        store.begin({"world": world.model_dump(mode="json")}, describe_environment())
        if store.result is not None:
            return store
        store.rewind(0)  # of a process that was killed; a world begins again
        start = load_model(world.start)
        network, tokenizer = pretrain(
            replace(DEFAULT_DIALS, **world.dials),
            seed=world.seed,
            steps=world.steps,
            start=start.causal_lm(),
            on_step=lambda step, loss: store.append_metrics({"step": step, "loss": loss}),
        )
        network.save_pretrained(folder / "model")
        tokenizer.save_pretrained(folder / "model")
        measured = measure_dials(LanguageModel(network, tokenizer, str(folder)))
        store.finish({"nominal": world.dials, "measured": measured})
    return store
