"""One run from configuration to result: load, train, evaluate, finish.

Enters: a `RunConfig` and a folder. Leaves: a finished run directory. `epistill train` and every arm
of a study go through here.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from epistill.config import RunConfig
from epistill.environment import describe_environment
from epistill.evaluate.run import as_rows, evaluate, grouped, per_problem, summarise
from epistill.rollouts.model import LanguageModel, load_model, with_lora
from epistill.seeds import derive_seed
from epistill.store import RunStore
from epistill.tasks.grading import Grader
from epistill.train.loop import train

CURVE = "curve"
FINAL = "final"


def run(
    config: RunConfig,
    folder: Path,
    *,
    save_model: bool = True,
    on_step: Callable[[int], None] = lambda done: None,
) -> RunStore:
    """Carry out a run, or go on with it; a finished one is returned as it is.

    Args:
        config: The run.
        folder: Its directory.
        save_model: Keep the trained weights as a Hugging Face directory under `model/`.
        on_step: Called with the number of steps done.

    Raises:
        EpistillError: The folder holds another configuration, or is in use.
    """
    store = RunStore(folder)
    with store.locked():
        store.begin(config.model_dump(mode="json"), describe_environment())
        if store.result is not None:
            return store
        student = load_model(config.model, dtype=config.dtype, device=config.device)
        if config.lora is not None:
            torch.manual_seed(derive_seed("lora", config.seed))
            student = with_lora(student, config.lora)
        with Grader() as grader:

            def after_step(done: int, model: LanguageModel) -> None:
                on_step(done)
                every = config.eval_every
                if every is not None and (done % every == 0) and done < config.steps:
                    _curve_point(config, store, model, grader, done)

            train(config, store, student, grader, on_step=after_step)
            final = _final(config, store, student, grader)
        if save_model and config.steps > 0:
            student.network.save_pretrained(store.folder / "model")
            student.tokenizer.save_pretrained(store.folder / "model")
        stopped = next((a for a in store.alarms() if a["action"] == "stop"), None)
        steps = config.steps if stopped is None else stopped["step"] + 1
        store.finish({"steps": steps, "stopped_by": stopped, "evaluations": final})
    return store


def _curve_point(
    config: RunConfig, store: RunStore, model: LanguageModel, grader: Grader, done: int
) -> None:
    """A small evaluation during training: means only, for the learning curve."""
    point: dict[str, object] = {"step": done}
    for chosen in config.evaluations:
        small = chosen.model_copy(update={"problems": chosen.curve_problems, "samples": 1})
        rows = as_rows(
            evaluate(
                model,
                small,
                grader,
                sampling=config.eval_sampling or config.sampling,
                seed=config.seed,
                keep_texts=0,
            )
        )
        for measure in ("score", "length_tokens", "density_per_1k_tokens"):
            values = per_problem(rows, measure).values()
            point[f"{chosen.name}/{measure}"] = sum(values) / len(values)
    kept = [row for row in store.read_records("evaluations", CURVE) or [] if row["step"] < done]
    store.write_records("evaluations", CURVE, [*kept, point])


def _final(
    config: RunConfig, store: RunStore, model: LanguageModel, grader: Grader
) -> dict[str, dict[str, object]]:
    """The evaluations at the end, every record stored; returns their estimates."""
    summaries: dict[str, dict[str, object]] = {}
    for chosen in config.evaluations:
        rows = as_rows(
            evaluate(
                model,
                chosen,
                grader,
                sampling=config.eval_sampling or config.sampling,
                seed=config.seed,
            )
        )
        store.write_records("evaluations", f"{FINAL}-{chosen.name}", rows)
        estimates = {name: e.as_dict() for name, e in summarise(rows).items()}
        summaries[chosen.name] = {
            "kind": chosen.kind,
            "problems": len(grouped(rows)),
            "samples": chosen.samples,
            **estimates,
        }
    return summaries
