"""One run from configuration to result: load, train, evaluate, finish.

Enters: a `RunConfig` and a folder. Leaves: a finished run directory. `epistill train` and every arm
of a study go through here.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from epistill.config import EvalSet, RunConfig
from epistill.environment import describe_environment
from epistill.errors import EpistillError
from epistill.evaluation.evaluate import (
    as_rows,
    evaluate_model,
    grouped,
    per_problem,
    summarise_evaluation,
)
from epistill.rollouts.in_process_engine import InProcessEngine
from epistill.rollouts.load_model import load_model
from epistill.rollouts.model import LanguageModel, with_lora
from epistill.seeds import derive_seed
from epistill.store import RunStore, read_json
from epistill.studies.step_lines import steps_without_signal
from epistill.tasks.grading import Grader
from epistill.training.loop import train_student
from epistill.training.microbatch import fitting_microbatch_tokens
from epistill.world import current_world

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

    Under `torchrun` (`world.joined`) all processes call this alike.

    Args:
        config: The run.
        folder: Its directory.
        save_model: Keep the trained weights as a Hugging Face directory under `model/`.
        on_step: Called with the number of steps done.

    Raises:
        EpistillError: The folder holds another configuration, or is in use.
    """
    world = current_world()
    store = RunStore(folder, writes=world.first)
    with ExitStack() as held:
        tokens, finished = world.on_first(lambda: _begin(config, store, held))
        if finished:
            return store
        config = config.model_copy(update={"microbatch_tokens": tokens})
        student = load_model(
            config.model,
            dtype=config.dtype,
            device=world.device(config.device),
            chat_template=config.chat_template,
        )
        if config.lora is not None:
            torch.manual_seed(derive_seed("lora", config.seed))
            student = with_lora(student, config.lora)
        if config.microbatch_tokens == "auto":
            tokens = fitting_microbatch_tokens(config, student, world)
            config = config.model_copy(update={"microbatch_tokens": tokens})
            world.on_first(lambda: _claim(config, store))
        grader = held.enter_context(Grader())

        def after_step(done: int, model: LanguageModel) -> None:
            if world.first:
                on_step(done)
            every = config.eval_every
            if every is not None and (done % every == 0) and done < config.steps:
                _curve_point(config, store, model, grader, done)

        train_student(config, store, student, grader, on_step=after_step)
        final = _final(config, store, student, grader)
        world.on_first(lambda: _finish(config, store, student, final, save_model=save_model))
    return store


def _begin(config: RunConfig, store: RunStore, held: ExitStack) -> tuple[int | str, bool]:
    """Take hold of the directory: its run's micro-batch, and whether the run is finished already.

    A micro-batch that was found once stays: a resumed run adds its sums in the same order.
    """
    held.enter_context(store.locked())
    path = store.folder / "config.json"
    if config.microbatch_tokens == "auto" and path.exists():
        found = read_json(path).get("microbatch_tokens", "auto")  # `begin` judges the rest
        config = config.model_copy(update={"microbatch_tokens": found})
    _claim(config, store)
    return config.microbatch_tokens, store.result is not None


def _claim(config: RunConfig, store: RunStore) -> None:
    store.begin(config.identity(), describe_environment(), migrate=RunConfig.identity_of)


def _finish(
    config: RunConfig,
    store: RunStore,
    student: LanguageModel,
    final: dict[str, dict[str, object]],
    *,
    save_model: bool,
) -> None:
    """Write the weights, then the result: whoever sees it finds everything."""
    if save_model and config.steps > 0:
        folder, temporary = store.folder / "model", store.folder / ".model.tmp"
        try:
            shutil.rmtree(temporary, ignore_errors=True)  # of a run that was killed here
            student.network.save_pretrained(str(temporary))
            student.tokenizer.save_pretrained(temporary)
            shutil.rmtree(folder, ignore_errors=True)
            temporary.rename(folder)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise EpistillError(
                f"could not write the model to {folder}: {error}; make room and start the command "
                "again, it goes on from the last checkpoint"
            ) from error
    stopped = next((a for a in store.alarms() if a["action"] == "stop"), None)
    steps = config.steps if stopped is None else stopped["step"] + 1
    without = steps_without_signal(store.metrics(), config.method)
    store.finish(
        {
            "steps": steps,
            "steps_without_signal": without,
            "stopped_by": stopped,
            "evaluations": final,
        }
    )


def _curve_point(
    config: RunConfig, store: RunStore, model: LanguageModel, grader: Grader, done: int
) -> None:
    """A small evaluation during training: means only, for the learning curve."""
    point: dict[str, object] = {"step": done}
    for chosen in config.evaluations:
        small = chosen.model_copy(update={"problems": chosen.curve_problems, "samples": 1})
        rows = _evaluated(config, small, model, grader, keep_texts=0)
        for measure in ("score", "length_tokens", "density_per_1k_tokens"):
            values = per_problem(rows, measure).values()
            point[f"{chosen.name}/{measure}"] = sum(values) / len(values)
    kept = [row for row in store.read_records("evaluations", CURVE) or [] if row["step"] < done]
    store.write_records("evaluations", CURVE, [*kept, point])


def _evaluated(
    config: RunConfig, chosen: EvalSet, model: LanguageModel, grader: Grader, *, keep_texts: int
) -> list[dict[str, Any]]:
    drawn, engine = config.eval_sampling or config.sampling, InProcessEngine(model)
    records = evaluate_model(
        engine, chosen, grader, sampling=drawn, seed=config.seed, keep_texts=keep_texts
    )
    return as_rows(records)


def _final(
    config: RunConfig, store: RunStore, model: LanguageModel, grader: Grader
) -> dict[str, dict[str, object]]:
    """The evaluations at the end, every record stored; returns their estimates."""
    summaries: dict[str, dict[str, object]] = {}
    for chosen in config.evaluations:
        rows = _evaluated(config, chosen, model, grader, keep_texts=1)
        store.write_records("evaluations", f"{FINAL}-{chosen.name}", rows)
        estimates = {name: e.as_dict() for name, e in summarise_evaluation(rows).items()}
        summaries[chosen.name] = {
            "kind": chosen.kind,
            "problems": len(grouped(rows)),
            "samples": chosen.samples,
            **estimates,
        }
    return summaries
