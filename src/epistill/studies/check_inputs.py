"""What runs read is there and fits their models, before the first of them trains.

Enters: a run and its model, or the jobs of a study. Leaves: nothing, or one line.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from epistill.config import RunConfig, SamplingConfig
from epistill.errors import EpistillError
from epistill.preflights.preflight_config import PreflightConfig
from epistill.records import Problem
from epistill.rollout_settings import InProcessRollouts
from epistill.rollouts.engine import PromptRequest
from epistill.rollouts.load_model import load_without_weights, model_source
from epistill.rollouts.model import LanguageModel
from epistill.rollouts.prompts import render_prompt
from epistill.rollouts.sampler import check_budget
from epistill.studies.spec import Probe
from epistill.tasks.coverage import load_eval_problems, make_curriculum

LONGEST = 8  # rendering one prompt takes milliseconds, and files hold thousands


def check_run(config: RunConfig, model: LanguageModel | None) -> None:
    """Problems of training and evaluations are there; the longest prompts and responses fit.

    Args:
        config: The run.
        model: Of which only tokenizer and sizes are used; None checks the problems alone.

    Raises:
        EpistillError: A file is not there or cannot be read, or a response may become longer than
            what the model can read.
    """
    curriculum = make_curriculum(config.task, config.coverage, config.seed)
    if _samples(config):
        problems = curriculum.pool or curriculum.at(0, config.problems_per_step)
        _check_fits(model, problems, config.sampling)
    for chosen in config.evaluations:
        try:
            problems = load_eval_problems(chosen.task, chosen.problems)
            _check_fits(model, problems, chosen.drawn(config.eval_sampling or config.sampling))
        except EpistillError as error:
            raise EpistillError(f"evaluation {chosen.name!r}: {error}") from error


def check_jobs(payloads: Mapping[str, Mapping[str, Any]], out: Path) -> None:
    """Models and data of a study's jobs, for processes of this machine.

    Args:
        payloads: Of each job by its name, as `jobs.carry_out` takes them.
        out: The study's folder: a model in it is made by a job that comes first.

    Raises:
        EpistillError: As `check_run`, with the job's name.
    """
    models: dict[tuple[str, str | None], LanguageModel | None] = {}
    seen: set[str] = set()
    for name, payload in payloads.items():
        job = _settings(payload)
        # Without what changes neither problems nor lengths; one seed stands for the others.
        read = job.model_dump_json(exclude={"method", "learning_rate", "seed", "contexts"})
        if (key := f"{isinstance(job, RunConfig) and _samples(job)} {read}") in seen:
            continue
        seen.add(key)
        try:
            place = job.model, job.chat_template
            if place not in models:
                models[place] = _without_weights(*place, out)
            if isinstance(job, RunConfig):
                check_run(job, models[place])
            else:
                count = job.candidates if isinstance(job, Probe) else None
                problems = load_eval_problems(job.task, count or job.problems)
                _check_fits(models[place], problems, job.sampling)
        except EpistillError as error:
            raise EpistillError(f"{name}: {error}") from error


def _settings(payload: Mapping[str, Any]) -> RunConfig | Probe | PreflightConfig:
    if "run" in payload:
        return RunConfig.model_validate(payload["run"])
    if "probe" in payload:
        return Probe.model_validate(payload["probe"])
    return PreflightConfig.model_validate(payload["preflight"]["settings"])


def _without_weights(name: str, chat_template: str | None, out: Path) -> LanguageModel | None:
    """The model without weights; None where that would take a download, an adapter or GGUF file."""
    if Path(name).is_relative_to(out):
        return None
    local = (Path(model_source(name)) / "config.json").is_file()
    return load_without_weights(name, chat_template=chat_template) if local else None


def _samples(config: RunConfig) -> bool:
    """Whether this process writes the responses of the training itself."""
    trains = config.steps > 0 and config.method.traces is None
    return trains and isinstance(config.rollouts, InProcessRollouts)


def _check_fits(
    model: LanguageModel | None, problems: Iterable[Problem], sampling: SamplingConfig
) -> None:
    """The problems that are longest in characters, with a response of any length."""
    if model is None:
        return
    longest = sorted(problems, key=lambda p: sum(len(m.content) for m in p.messages))[-LONGEST:]
    prompts = [
        render_prompt(model.tokenizer, p.messages, thinking=sampling.thinking) for p in longest
    ]
    check_budget(model, [PromptRequest("", prompt.ids) for prompt in prompts], sampling)
