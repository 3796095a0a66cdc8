"""Commands that run models: study, train, eval, lab, and drawing a study's page again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from epistill.cli.common import (
    BatchRows,
    ChatTemplate,
    Device,
    DType,
    Json,
    Prompt,
    Stop,
    Thinking,
    app,
    lab,
    print_evaluations,
    say,
    terminal,
    warn,
)
from epistill.library.results import at_least


@app.command("study", epilog="Example: epistill study lab --preset quick")
def study_command(
    name: Annotated[
        str,
        typer.Argument(
            help="lab, lab-phase, lab-preflight, a recipe (see `epistill plan`), or a TOML file."
        ),
    ],
    preset: Annotated[str | None, typer.Option(help="A smaller version, e.g. quick.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder; default runs/NAME.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes; default all cores.")] = None,
    ray: Annotated[str | None, typer.Option(help="A Ray cluster's HOST:PORT, or auto.")] = None,
    tiny: Annotated[
        bool, typer.Option("--tiny", help="The same at toy size, offline: does the recipe run?")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train, compare and report: arms x coverage x seeds. The same command resumes."""
    from epistill.library.model_functions import study

    console = terminal(stderr=True)
    found = study(
        name, preset=preset, out=out, workers=workers, ray=ray, tiny=tiny, console=console
    )
    if as_json:
        say({"report": str(found.path), "claims": found.summary["claims"]})
    else:
        print(found.path)


@app.command(
    "train",
    epilog="Example: epistill train --model lab --data star-search --method sdpo --steps 20",
)
def train_command(
    config: Annotated[Path | None, typer.Argument(help="A TOML file; flags change it.")] = None,
    out: Annotated[Path, typer.Option(help="Run directory.")] = Path("runs/train"),
    model: Annotated[str | None, typer.Option(help="Directory, hub name, or lab.")] = None,
    data: Annotated[str | None, typer.Option(help="File, dataset, or star-search[:5x3].")] = None,
    method: Annotated[str | None, typer.Option(help="A name, or FILE.py:NAME of your own.")] = None,
    teacher_thinking: Annotated[bool | None, typer.Option(help="Default: the student's.")] = None,
    steps: Annotated[int | None, typer.Option(help="Rollout batches.")] = None,
    coverage: Annotated[int | None, typer.Option(help="Distinct training problems.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Default: the method's.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Of a response.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Of sampling; default 1.")] = None,
    problems_per_step: Annotated[int | None, typer.Option(help="Default 32.")] = None,
    samples: Annotated[
        int | None, typer.Option("-k", "--samples", help="Responses per problem; default 8.")
    ] = None,
    lora_rank: Annotated[
        int | None, typer.Option(help="Train an adapter of this rank; default all weights.")
    ] = None,
    microbatch_tokens: Annotated[
        int | None, typer.Option(help="Padded tokens per forward pass; default: what fits.")
    ] = None,
    thinking: Thinking = None,
    prompt: Prompt = None,
    chat_template: ChatTemplate = None,
    stop: Stop = None,
    batch_rows: BatchRows = None,
    dtype: DType = None,
    device: Device = None,
    seed: Annotated[int | None, typer.Option(help="Names every random draw.")] = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Every key, its meaning and value, as TOML.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train one model with one method. The same command resumes."""
    from epistill.inputs import load_run_config

    if print_config and config is None:  # complete: what is missing can be filled in
        model, data, method = model or "lab", data or "star-search", method or "sdpo"
    chosen = load_run_config(
        config,
        {
            "model": model,
            "task": data,
            "method": method,
            "teacher_thinking": teacher_thinking,
            "temperature": temperature,
            "problems_per_step": problems_per_step,
            "samples_per_problem": samples,
            "lora_rank": lora_rank,
            "microbatch_tokens": microbatch_tokens,
            "thinking": thinking,
            "stop": stop or None,
            "batch_rows": batch_rows,
            "prompt": prompt,
            "chat_template": chat_template and str(chat_template.resolve()),
            "dtype": dtype,
            "device": device,
            "steps": steps,
            "coverage": coverage,
            "learning_rate": learning_rate,
            "max_new_tokens": max_new_tokens,
            "seed": seed,
        },
    )
    if print_config:
        from epistill.studies.config_toml import config_toml

        print(config_toml(dict(chosen)), end="")
        return
    from epistill.library.model_functions import train
    from epistill.store import RunStore
    from epistill.studies.step_lines import step_line, why_no_signal
    from epistill.world import joined

    with joined() as world:
        console = terminal(stderr=True, quiet=not world.first)
        with console.status("loading") as status:

            def show(done: int) -> None:
                rows = RunStore(out).metrics()[-1:] if done else []
                for row in rows:
                    line = step_line(row, chosen.steps, chosen.method)
                    status.update(line)
                    if not console.is_terminal or why_no_signal(row, chosen.method) is not None:
                        console.print(line, highlight=False, soft_wrap=True)

            found = train(chosen, out=out, on_step=show)
    if not world.first:
        return
    for line in found.warnings:
        warn(line)
    if as_json:
        say(found.summary)
    else:
        print_evaluations(found.summary["evaluations"])
        print(found.path)


@app.command("eval", epilog="Example: epistill eval lab --data star-search:6x3 -k 4")
def evaluate_command(
    model: Annotated[str, typer.Argument(help="Directory, hub name, or lab.")],
    data: Annotated[str, typer.Option(help="File, dataset, or star-search[:5x3].")],
    k: Annotated[int, typer.Option("-k", "--samples", help="Samples per problem.")] = 4,
    problems: Annotated[int, typer.Option(help="First so many problems.")] = 128,
    temperature: Annotated[float, typer.Option()] = 1.0,
    top_p: Annotated[float, typer.Option()] = 1.0,
    top_k: Annotated[int | None, typer.Option()] = None,
    max_new_tokens: Annotated[int, typer.Option()] = 256,
    thinking: Thinking = None,
    prompt: Prompt = None,
    chat_template: ChatTemplate = None,
    stop: Stop = None,
    force: Annotated[
        list[str] | None,
        typer.Option(help="[N*]WORDS@start, @line, @after:PATTERN or @before:TOKEN; repeatable."),
    ] = None,
    block: Annotated[
        list[str] | None,
        typer.Option(help="TEXT, or TEXT@start, @line, @after:... or @until:...; repeatable."),
    ] = None,
    batch_rows: BatchRows = None,
    dtype: DType = None,
    device: Device = None,
    seed: Annotated[int, typer.Option(help="Names every random draw.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Write every record here (JSONL).")] = None,
    as_json: Json = False,
) -> None:
    """Measure avg@k, pass@k, maj@k, length and marker density of a model."""
    from epistill.library.model_functions import evaluate

    found = evaluate(
        model,
        data,
        samples=k,
        problems=problems,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        max_new_tokens=max_new_tokens,
        thinking=thinking,
        prompt=prompt,
        chat_template=chat_template,
        stop=stop or (),
        force=force or (),
        block=block or (),
        batch_rows=batch_rows,
        dtype=dtype or "float32",
        device=device or "cpu",
        seed=seed,
        out=out,
    )
    if as_json:
        say(found.summary)
    else:
        print_evaluations({data: found.summary})


@app.command("report", epilog="Example: epistill report docs/results/lab --out page.html")
def report_command(
    folder: Annotated[Path, typer.Argument(help="A study's folder (with report.json).")],
    out: Annotated[Path | None, typer.Option(help="Default: report.html in the folder.")] = None,
) -> None:
    """Draw a study's page again from its report.json."""
    from epistill.studies.runner import draw_again

    print(draw_again(folder, out))


@lab.command("pretrain", epilog="Example: epistill lab pretrain --out models/mine")
def lab_pretrain_command(
    out: Annotated[Path, typer.Option(help="Folder for the model.")],
    seed: Annotated[int, typer.Option()] = 0,
    steps: Annotated[int | None, typer.Option(help="Default: the shipped model's.")] = None,
    threads: Annotated[int | None, typer.Option(help="Default: all cores.")] = None,
) -> None:
    """Train the lab's base model from nothing (under 30 minutes on two cores)."""
    at_least("--steps", steps, 1)
    from epistill.lab.pretrain import pretrain_to

    pretrain_to(out, seed=seed, steps=steps, threads=threads, say=terminal(stderr=True).print)
    print(out)


@lab.command("card", epilog="Example: epistill lab card")
def lab_card_command(as_json: Json = False) -> None:
    """Measure the shipped weights again and show what the model card claims beside it."""
    from epistill.lab.card import measure_card, read_card

    claimed, found = read_card(), measure_card()
    if as_json:
        say({"claimed": claimed, "measured": found})
        return
    table = Table("world", "score claimed", "score measured")
    for name, value in found["score"].items():
        table.add_row(name, f"{claimed['score'][name]:.3f}", f"{value:.3f}")
    terminal().print(table)
