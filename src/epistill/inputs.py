"""What the command line reads: run configurations, task names, evaluation settings. Torch-free."""

from __future__ import annotations

import lzma
import re
import tomllib
from collections.abc import Mapping, Sequence
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from epistill.axes import Method
from epistill.config import (
    EvalSet,
    FileTask,
    NumberPairsTask,
    RunConfig,
    SamplingConfig,
    StarSearchTask,
    TaskConfig,
)
from epistill.errors import EpistillError, first_line
from epistill.json_files import strict_json
from epistill.method_import import with_methods_of
from epistill.methods import method
from epistill.preflights.preflight_config import PreflightConfig
from epistill.settings import Settings, checked

PACKED = ".xz"
MOST_BYTES = 2**28  # of what a packed file holds

_GENERATED: tuple[tuple[str, str, type[StarSearchTask | NumberPairsTask], str], ...] = (
    (
        "star-search",
        r"(?::(?P<arms>\d+)x(?P<depth>\d+))?",
        StarSearchTask,
        "star-search:ARMSxDEPTH, as star-search:5x3",
    ),
    (
        "number-pairs",
        r"(?::(?P<numbers>\d+)x(?P<largest>\d+))?(?::(?P<operation>sum|difference))?"
        r"(?::(?P<wording>plain|story))?",
        NumberPairsTask,
        "number-pairs:NUMBERSxLARGEST, as number-pairs:4x20, then :difference and :story if wanted",
    ),
)


def task_from_name(name: str) -> TaskConfig:
    """Read "star-search:6x3", "number-pairs:5x20:difference:story", a file, or a dataset name."""
    for stem, knobs, kind, expected in _GENERATED:
        if found := re.fullmatch(stem + knobs, name):
            knobs_given = {n: v for n, v in found.groupdict().items() if v is not None}
            return checked(kind, knobs_given, f"task {name!r}: ")
        if name.startswith(stem):
            raise EpistillError(f"no task {name!r}; expected {expected}")
    return FileTask(path=name)


class _Task(Settings):
    task: TaskConfig


def with_prompt(task: TaskConfig, prompt: str | None) -> TaskConfig:
    """A file's task with another prompt, in which {question} stands for the record's own text.

    Raises:
        EpistillError: It has no {question}, or the task is a generated one.
    """
    if prompt is None:
        return task
    if not isinstance(task, FileTask):
        raise EpistillError("--prompt changes what a file asks; expected data from a file")
    return checked(FileTask, {**task.model_dump(), "prompt": prompt})


def describe_task(source: str, split: str) -> dict[str, Any]:
    """rows, problems (distinct), the first prompt and answer, the grader chosen."""
    task = task_from_name(source)
    if not isinstance(task, FileTask):
        from epistill.tasks.coverage import generated_problem

        first, rows, problems = generated_problem(task, 0, 0), None, None
    else:
        from epistill.tasks.files import load_problems

        read = load_problems(source, split=split)
        first, rows, problems = read.problems[0], read.rows, len(read.problems)
    return {
        "source": source,
        "rows": rows,
        "problems": problems,
        "first_prompt": [{"role": m.role, "content": m.content} for m in first.messages],
        "first_answer": first.answer,
        "grader": first.grader,
        "has_solutions": first.solution is not None,
    }


def read_settings(path: Path | Traversable) -> dict[str, Any]:
    """A TOML or JSON file of settings, which may be packed (.json.xz).

    Raises:
        EpistillError: It cannot be read, is no TOML (JSON), no settings by name, or unpacks to more
            than 256 MiB.
    """
    json_named = path.name.removesuffix(PACKED).endswith(".json")
    form, parse = ("JSON", strict_json) if json_named else ("TOML", tomllib.loads)
    try:
        settings = parse(_text(path))
    except OSError as error:
        raise EpistillError(f"could not read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError, lzma.LZMAError) as error:
        raise EpistillError(f"{path} is not {form}: {first_line(error)[:200]}") from error
    if not isinstance(settings, dict):
        raise EpistillError(f"{path} is a {type(settings).__name__}; expected settings by name")
    return settings


def _text(path: Path | Traversable) -> str:
    if not path.name.endswith(PACKED):
        return path.read_text(encoding="utf-8")
    unpacker = lzma.LZMADecompressor(memlimit=MOST_BYTES)
    content = unpacker.decompress(path.read_bytes(), MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise ValueError(f"it unpacks to more than {MOST_BYTES >> 20} MiB")
    if not unpacker.eof:
        raise ValueError("its packed data end in the middle")
    return content.decode("utf-8")


def load_run_config(config: RunConfig | str | Path | None, flags: Mapping[str, Any]) -> RunConfig:
    """A run's configuration, or a TOML file of one (or JSON, as a run writes it), flags on top.

    Args:
        config: What is changed; None starts from nothing.
        flags: Settings of `RunConfig` by name; `task` and `method` may be names; None changes
            nothing. Those of `SamplingConfig` go to `sampling`, `prompt` to a file's task, and
            `lora_rank` makes an adapter.

    Raises:
        EpistillError: No such file, not TOML or JSON, or settings that do not fit.
    """
    settings: dict[str, Any] = {}
    if isinstance(config, RunConfig):
        settings = dict(config)
    elif config is not None:
        if not Path(config).is_file():
            raise EpistillError(f"no file {config}; expected a TOML run configuration")
        settings = read_settings(Path(config))
        if not flags.get("method"):
            settings = with_methods_of(settings, Path(config))
    flags = {name: value for name, value in flags.items() if value is not None}
    task = flags.pop("task", None) or settings.get("task") or settings.get("data")
    if isinstance(task, str):
        settings.pop("data", None)
        task = task_from_name(task)
    if (prompt := flags.pop("prompt", None)) is not None and task is not None:
        task = with_prompt(checked(_Task, {"task": task}).task, prompt)
    if task is not None:
        settings["task"] = task
    drawn = {name: flags.pop(name) for name in tuple(flags) if name in SamplingConfig.model_fields}
    adapter = {"rank": flags.pop("lora_rank")} if "lora_rank" in flags else {}
    for name, changes in (("sampling", drawn), ("lora", adapter)):
        if changes:
            settings[name] = {**dict(settings.get(name) or {}), **changes}
    chosen = flags.pop("method", None) or settings.pop("method", None)
    if isinstance(chosen, str):
        chosen = {"name": chosen}
    named = isinstance(chosen, Method) or bool(chosen and chosen.get("name"))
    missing = [] if named else ["method"]
    missing += [n for n in ("model", "task") if n not in settings and n not in flags]
    if missing:
        raise EpistillError(
            f"nothing says which {' and which '.join(missing)} to use; pass --"
            f"{' and --'.join({'task': 'data'}.get(n, n) for n in missing)}, or a TOML file"
        )
    if not isinstance(chosen, Method):
        changes = dict(chosen or {})
        chosen = method(changes.pop("name"), **changes)
    return checked(RunConfig, {**settings, **flags, "method": chosen})


def evaluation_settings(
    data: str, samples: int, problems: int, sampling: Mapping[str, Any], prompt: str | None = None
) -> tuple[EvalSet, SamplingConfig]:
    """Checked settings of `epistill eval`; of the lab's world the held-out problems."""
    task = with_prompt(task_from_name(data), prompt)
    if not isinstance(task, FileTask):
        task = task.model_copy(update={"split": "test"})
    settings = {"name": data, "task": task.model_dump(), "samples": samples, "problems": problems}
    return checked(EvalSet, settings), checked(SamplingConfig, sampling)


def preflight_settings(
    *, data: str, contexts: Sequence[str] | None, prompt: str | None = None, **settings: Any
) -> PreflightConfig:
    """Checked settings of `epistill preflight`; those of `SamplingConfig` alone go to `sampling`.

    Raises:
        EpistillError: Settings that do not fit.
    """
    only = SamplingConfig.model_fields.keys() - PreflightConfig.model_fields.keys()
    if drawn := {name: settings.pop(name) for name in tuple(settings) if name in only}:
        settings["sampling"] = {**dict(settings.get("sampling") or {}), **drawn}
    names = tuple(name.strip() for name in contexts or () if name.strip())
    task = with_prompt(task_from_name(data), prompt).model_dump()
    return checked(PreflightConfig, {**settings, "task": task, "contexts": names})
