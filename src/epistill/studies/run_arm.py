"""One run from configuration to result: load, train, evaluate, finish.

Enters: a `RunConfig` and a folder. Leaves: a finished run directory. `epistill train` and every arm
of a study go through here.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError
from torch.distributed.tensor import DTensor

from epistill.alarm_rules import HELD_OUT
from epistill.config import EvalSet, RunConfig
from epistill.environment import describe_environment
from epistill.errors import EpistillError
from epistill.evaluation.evaluate import (
    evaluate_model,
    per_problem,
    problem_outcomes,
    summarise_outcomes,
)
from epistill.rollout_settings import VllmRollouts
from epistill.rollouts.in_process_engine import InProcessEngine
from epistill.rollouts.load_model import load_model
from epistill.rollouts.model import LanguageModel, on_device, with_lora
from epistill.rollouts.vllm_server import ServersLost
from epistill.rollouts.weights_file import gathered, own_tensors, write_model
from epistill.seeds import derive_seed
from epistill.store import RunStore, read_json
from epistill.studies.check_inputs import check_run
from epistill.studies.step_lines import steps_without_signal
from epistill.tasks.grading import Grader
from epistill.training.loop import train_student
from epistill.training.microbatch import fitting_microbatch_tokens
from epistill.training.server_rollouts import open_engine
from epistill.training.sharding import attention_waits, nowhere_whole
from epistill.world import World, current_world


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
    _check_push_schedule(config, world)
    store = RunStore(folder, writes=world.first)

    def begin() -> tuple[int | str, bool]:
        held.enter_context(store.locked())
        begun = begin_run(config, store, describe_environment())
        return begun.microbatch_tokens, store.result is not None

    with ExitStack() as held:
        tokens, finished = world.on_first(begin)
        if finished:
            return store
        config = config.model_copy(update={"microbatch_tokens": tokens})
        student = load_student(config, world)
        check_run(config, student)
        if config.microbatch_tokens == "auto":
            tokens = fitting_microbatch_tokens(config, student, world)
            config = config.model_copy(update={"microbatch_tokens": tokens})
            world.on_first(lambda: store.settle(config.identity()))
        grader = held.enter_context(Grader())

        servers = open_engine(config, student, store.folder)
        if servers is not None:
            held.callback(servers.close)

        def evaluated(chosen: EvalSet, done: int, keep: int) -> list[dict[str, Any]]:
            drawn, engine = config.eval_sampling or config.sampling, InProcessEngine(student)
            if servers is not None and nowhere_whole(config, world.size):
                servers.refresh(student, done, now=True)
                engine = servers.unscored()
            return evaluate_model(
                engine, chosen, grader, sampling=drawn, seed=config.seed, keep_texts=keep
            )

        def after_step(done: int, model: LanguageModel) -> dict[str, object] | None:
            """A small evaluation: means only, for the learning curve."""
            if world.first:
                on_step(done)
            if config.eval_every is None or done % config.eval_every or done >= config.steps:
                return None
            point: dict[str, object] = {"step": done}
            for chosen in config.evaluations:
                rows = evaluated(chosen.curve, done, 0)
                outcomes = problem_outcomes(rows)
                for measure in HELD_OUT:
                    if values := per_problem(outcomes, measure).values():
                        point[f"{chosen.name}/{measure}"] = sum(values) / len(values)
            kept = [row for row in store.curve() if row["step"] < done]
            store.write_evaluation("curve", [*kept, point])
            return point

        train_student(config, store, student, grader, servers=servers, on_step=after_step)
        try:
            final = {
                e.name: store_evaluation(store, e.name, e.kind, evaluated(e, config.steps, 1))
                for e in config.evaluations
            }
        except ServersLost as error:
            world.stop(f"{error}; the training is done, only the evaluations are missing")
        if save_model and config.steps > 0:
            _save_model(student, store.folder)
        world.on_first(lambda: _finish(config, store, final))
    return store


def _check_push_schedule(config: RunConfig, world: World) -> None:
    """An evaluation by servers pushes the weights: only where training would have pushed them."""
    if not isinstance(config.rollouts, VllmRollouts) or config.eval_every is None:
        return
    every = config.rollouts.push_every
    if config.eval_every % every and nowhere_whole(config, world.size):
        world.stop(
            f"eval_every = {config.eval_every}, and rollouts.push_every = {every}; expected a "
            "multiple of it, because the servers make the evaluations, and weights that are pushed "
            "for one would change what training samples from"
        )


def load_student(config: RunConfig, world: World) -> LanguageModel:
    """The model that a run starts from, with its adapter where it trains one.

    What no GPU is to hold whole begins in the host's memory (`sharding.placement` moves it); an
    attention that may need the GPU is given to it there.
    """
    on_host, device = nowhere_whole(config, world.size), world.device(config.device)
    on_device(torch.empty(0), device)  # known to be there before the weights are read
    student = load_model(
        config.model,
        dtype=config.dtype,
        device="cpu" if on_host else device,
        attention=None if attention_waits(config, world.size) else config.attention,
        precision=config.precision,
        chat_template=config.chat_template,
    )
    if config.lora is None:
        return student
    torch.manual_seed(derive_seed("lora", config.seed))
    return with_lora(student, config.lora)


def begin_run(config: RunConfig, store: RunStore, environment: Mapping[str, Any]) -> RunConfig:
    """Claim a directory for a run, or check that it is this one's (`RunStore.begin`).

    Returns:
        With the micro-batch that was found once: a resumed run adds its sums in the same order.
    """
    path = store.folder / "config.json"
    if config.microbatch_tokens == "auto" and path.exists():
        found = read_json(path).get("microbatch_tokens", "auto")  # `begin` judges the rest
        config = config.model_copy(update={"microbatch_tokens": found})
    store.begin(config.identity(), environment, migrate=RunConfig.identity_of)
    return config


def store_evaluation(
    store: RunStore, name: str, kind: str, rows: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Keep every record of a final evaluation; returns its summary for the result."""
    store.write_evaluation(f"final-{name}", rows)
    return summary_of(problem_outcomes(rows), kind)


def summary_of(outcomes: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """kind, problems, samples (of each), and every measure with its interval."""
    estimates = {name: e.as_dict() for name, e in summarise_outcomes(outcomes).items()}
    samples = min(outcomes["samples"])
    return {"kind": kind, "problems": len(outcomes["samples"]), "samples": samples, **estimates}


def _save_model(student: LanguageModel, run: Path) -> None:
    """Write the weights as a Hugging Face directory; sharded ones without a whole copy."""
    folder, temporary = run / "model", run / ".model.tmp"
    network: Any = student.network
    own = dict(network.named_parameters())
    sharded = any(isinstance(one, DTensor) for one in own.values())
    failed: OSError | None = None
    adapter: dict[str, Any] = {}
    if sharded and isinstance(network, PeftModel):
        adapter = {"state_dict": {n: gathered(p) for n, p in own.items() if p.requires_grad}}
    elif sharded:
        failed = write_model(network, own_tensors(network), temporary)

    def finish() -> None:
        try:
            if failed is not None:
                raise failed
            if not sharded or adapter:
                shutil.rmtree(temporary, ignore_errors=True)  # of a run that was killed here
                network.save_pretrained(str(temporary), **adapter)
            elif network.can_generate():
                network.generation_config.save_pretrained(temporary)
            student.tokenizer.save_pretrained(temporary)
            shutil.rmtree(folder, ignore_errors=True)
            temporary.rename(folder)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise EpistillError(
                f"could not write the model to {folder}: {error}; make room and start the command "
                "again, it goes on from the last checkpoint"
            ) from error

    current_world().on_first(finish)


def _finish(config: RunConfig, store: RunStore, final: Mapping[str, Any]) -> None:
    """Write the result: whoever sees it finds everything."""
    stopped = next((a for a in store.alarms() if a["action"] == "stop"), None)
    store.finish(
        {
            "steps": config.steps if stopped is None else stopped["step"] + 1,
            "steps_without_signal": steps_without_signal(store.metrics(), config.method),
            "stopped_by": stopped,
            "evaluations": final,
        }
    )
