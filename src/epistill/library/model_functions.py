"""What the commands that run models do, as functions: `epistill.train(...)`.

The settings are the commands' flags, whose meaning `--help` tells. Every function raises
`EpistillError` with the line that its command prints, and imports what it needs when it is called.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from epistill.library.results import Export, Flag, Place, Result, Seed, as_path, at_least_one
from epistill.number_rows import estimate_rows

if TYPE_CHECKING:
    from epistill.axes import Method
    from epistill.config import RunConfig


def study_names() -> Iterable[str]:
    """Of the studies in the package; a shell completes them."""
    from epistill.studies.load_study import shipped_studies

    return shipped_studies()


def method_names() -> Iterable[str]:
    """Of the published methods; a shell completes them too."""
    from epistill.methods import METHODS

    return METHODS


Model = Annotated[str, Flag("Directory, hub name, or lab.")]
Data = Annotated[str, Flag("File, dataset, or star-search[:5x3].", ("--data",))]


def train(
    config: RunConfig | Place | None = None,
    *,
    out: Place = "runs/train",
    model: str | None = None,
    data: str | None = None,
    method: str | Method | None = None,
    on_step: Callable[[int], None] = lambda done: None,
    track: str | None = None,
    **settings: Any,
) -> Result:
    """Train one model with one method; the same call resumes. Rows: one per step.

    Args:
        config: A `RunConfig`, or a TOML or JSON file of one; what follows changes it.
        out: Run directory; the trained model is in `model/`.
        model: Directory, hub name, or "lab".
        data: File, dataset, or "star-search[:5x3]".
        method: A name (see `epistill.methods`), or what `method(...)` makes.
        on_step: Called with the number of steps done.
        track: A tracker that is told every step and evaluation: trackio, wandb or tensorboard.
        **settings: Any other of `RunConfig` or `SamplingConfig`.
    """
    from epistill.inputs import load_run_config

    chosen = load_run_config(config, {"model": model, "task": data, "method": method, **settings})
    from epistill.integrations.tracking import check_tracker, mirrored
    from epistill.studies.run_arm import run
    from epistill.studies.step_lines import idle_steps_line
    from epistill.world import joined

    check_tracker(track)
    with joined() as world, ExitStack() as held:
        tool, folder, failures = track if world.first else None, Path(out), list[str]()
        catch_up = held.enter_context(
            mirrored(tool, folder, "epistill", folder.name, failures.append)
        )

        def after_step(done: int) -> None:
            on_step(done)
            catch_up()

        store = run(chosen, folder, on_step=after_step)
        held.close()
        found = store.result or {}
        said = idle_steps_line(found.get("steps_without_signal", {}), found.get("steps", 0))
        return Result(
            {"folder": str(store.folder), **found},
            tuple(store.metrics()),
            store.folder,
            (*failures, *([] if said is None else [said])),
        )


def evaluate(
    model: Model,
    data: Data,
    *,
    samples: Annotated[int, Flag("Samples per problem.", ("-k", "--samples"))] = 4,
    problems: Annotated[int, Flag("First so many problems.")] = 128,
    max_new_tokens: Annotated[int, Flag("Of a response.")] = 256,
    engine: str = "inprocess",
    prompt: str | None = None,
    chat_template: Place | None = None,
    dtype: str = "float32",
    device: str = "cpu",
    attention: str | None = None,
    seed: Seed = 0,
    out: Annotated[Place | None, Flag("Write every record here (JSONL).")] = None,
    **sampling: Any,
) -> Result:
    """Measure avg@k, pass@k, maj@k, length and marker density of a model.

    Rows: one per measure.

    Args:
        model: Directory, hub name, or "lab"; with a server, whose tokenizer it is.
        data: File, dataset, or "star-search[:5x3]"; of the lab's world the held-out problems.
        samples: Per problem.
        problems: The first so many.
        max_new_tokens: Of a response.
        engine: "inprocess", or addresses of vLLM servers (http://..., commas between).
        prompt: What is asked, with "{question}" where a file's own text goes.
        chat_template: A Jinja file, for a base model without one.
        dtype, device: Of the weights, in process.
        attention: transformers' `attn_implementation`, in process; None is its own choice.
        seed: Names every draw.
        out: Where every record is written (JSONL); `measure`, `grade` and `compare` read it.
        **sampling: Others of `SamplingConfig`, as `temperature`; `force` and `block` are words
            forced into the responses or kept out of them by rules of `epistill.word_rules`.
    """
    from epistill.inputs import evaluation_settings

    drawing = {"max_new_tokens": max_new_tokens, **sampling}
    chosen, drawn = evaluation_settings(data, samples, problems, drawing, prompt)
    from epistill.rollouts.engine_settings import EngineSettings
    from epistill.settings import checked

    place = {"engine": engine, "dtype": dtype, "device": device, "attention": attention}
    template = None if chat_template is None else str(chat_template)
    settings = checked(EngineSettings, {"model": model, "chat_template": template, **place})
    settings.check_sampling(drawn)
    from epistill.evaluation.evaluate import (
        evaluate_model,
        self_contained_rows,
        summarise_evaluation,
    )
    from epistill.rollouts.load_engine import load_engine
    from epistill.store import write_jsonl
    from epistill.tasks.grading import Grader

    source = load_engine(settings, scored=False)
    kept = 1 if out is None else samples
    with Grader() as grader:
        rows = evaluate_model(source, chosen, grader, sampling=drawn, seed=seed, keep_texts=kept)
    if out is not None:
        write_jsonl(Path(out), self_contained_rows(rows, source.tokenizer, model, chosen, drawn))
    found = {name: estimate.as_dict() for name, estimate in summarise_evaluation(rows).items()}
    summary = {
        "problems": len({row["problem_id"] for row in rows}),
        "samples": samples,
        "sampling": drawn.model_dump(mode="json"),
        **found,
    }
    return Result(summary, tuple(estimate_rows(found)), as_path(out))


def study(
    name: Annotated[
        Place,
        Flag(
            "lab, lab-phase, lab-preflight, lab-cure, a recipe (`epistill plan`) or a TOML file.",
            known=study_names,
        ),
    ],
    *,
    preset: Annotated[str | None, Flag("A smaller version, e.g. quick.")] = None,
    out: Annotated[Place | None, Flag("Folder; default runs/NAME.")] = None,
    workers: Annotated[int | None, Flag("Arms at a time; default what the cores allow.")] = None,
    processes: Annotated[
        int | None, Flag("That train each arm together; default the file's [resources].")
    ] = None,
    ray: Annotated[str | None, Flag("A Ray cluster's HOST:PORT, or auto.")] = None,
    track: Annotated[
        str | None, Flag("Tell trackio, wandb or tensorboard of each run when it is finished.")
    ] = None,
    tiny: Annotated[bool, Flag("The same at toy size, offline: does the recipe run?")] = False,
    console: Any = None,
) -> Result:
    """Train, compare and report: arms x coverage x seeds; the same call resumes.

    Rows: one per arm, kind of evaluation and measure. `path` is the page. Where `console` (of rich)
    is given, it shows the progress.
    """
    from epistill.integrations.tracking import check_tracker, mirrored
    from epistill.studies.load_study import load_study

    spec = load_study(str(name))
    if preset is not None:
        spec = spec.with_preset(preset)
    at_least_one("--workers", workers)
    at_least_one("--processes", processes)
    check_tracker(track)
    folder = Path(out or Path("runs") / (f"{spec.name}-tiny" if tiny else spec.name))
    if tiny:
        from epistill.studies.tiny import tiny_study

        spec = tiny_study(spec, folder)
    if processes is not None:
        asked = spec.resources.model_copy(update={"processes": processes})
        spec = spec.model_copy(update={"resources": asked})
    from epistill.store import read_json
    from epistill.studies.runner import run_study

    failures: list[str] = []

    def tell(job: str, where: Path) -> None:
        if track is not None and not failures:
            with mirrored(track, where, spec.name, job, failures.append):
                pass

    page = run_study(spec, folder, workers=workers, ray=ray, console=console, on_finished=tell)
    summary = read_json(folder / "report.json")
    rows = (
        row
        for arm in summary["arms"]
        for kind, found in arm["evaluations"].items()
        for row in estimate_rows(found, arm=arm["id"], on=kind)
    )
    return Result(summary, tuple(rows), page, tuple(failures))


def preflight(
    model: Model,
    data: Data,
    *,
    out: Annotated[Place, Flag("Folder of results and cache.")] = "runs/preflight",
    contexts: Annotated[
        str | Sequence[str] | None,
        Flag("Comma-separated names; default all that the data allow."),
    ] = None,
    export: Export = None,
    say: Callable[[str], None] = lambda line: None,
    **settings: Any,
) -> Result:
    """Say before training what self-distillation would do; the same call resumes.

    Rows: one per context and number. `path` is the page.

    Args:
        model: Directory, hub name, or "lab".
        data: File, dataset, or "star-search[:5x3]".
        out: Folder of results and cache.
        contexts: Names, or one text of names with commas; None is all that the data allow.
        export: Folder for every table and plot as files; None writes none.
        say: Told what is being done.
        **settings: Others of `PreflightConfig` or `SamplingConfig`, such as `problems`.
    """
    from epistill.inputs import preflight_settings

    names = contexts.split(",") if isinstance(contexts, str) else contexts
    config = preflight_settings(model=model, data=data, contexts=names, **settings)
    from epistill.preflights.preflight_run import run_preflight
    from epistill.report.preflight_page import write_preflight
    from epistill.rollouts.load_engine import load_engine
    from epistill.store import RunStore, write_json

    folder, cache = Path(out), Path(out) / "cache"
    with RunStore(folder).locked():
        summary = run_preflight(config, load_engine(config, cache), cache, say=say)
        write_json(folder / "preflight.json", summary)
        page = write_preflight(summary, folder / "preflight.html")
    rows = [
        row
        for name, found in summary["contexts"].items()
        for row in estimate_rows(found, context=name, control=found["control"])
    ]
    warnings: list[str] = []
    if export is not None:
        from epistill.report.exports import export_preflight

        warnings = export_preflight(summary, rows, Path(export))
    return Result(summary, tuple(rows), page, tuple(warnings))
