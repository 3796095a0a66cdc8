"""Commands that run models: study, train, eval, preflight, lab; and report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from rich.table import Table

from epistill.cli.common import Json, command, lab, print_evaluations, say, show, terminal, warn
from epistill.library.model_functions import evaluate, method_names, preflight, study, train
from epistill.library.results import Export, Flag, Result, Seed, as_path, at_least_one

Call = partial[Result]
# What a model needs to be told, alike in every command that runs one; None leaves the default.
_DRAWING: dict[str, Any] = {
    "temperature": Annotated[float | None, Flag("Of sampling; default 1.")],
    "top_p": Annotated[float | None, Flag("Of sampling; default 1.")],
    "thinking": Annotated[bool | None, Flag("The template's thinking mode.")],
    "prompt": Annotated[str | None, Flag("What a file asks: text with {question} in it.")],
    "chat_template": Annotated[Path | None, Flag("A Jinja file, for a base model.")],
    "stop": Annotated[list[str] | None, Flag("Text that ends a response; may be repeated.")],
    "batch_rows": Annotated[int | None, Flag("Responses written together; default 256.")],
    "dtype": Annotated[str | None, Flag("float32 or bfloat16; default float32.")],
    "device": Annotated[str | None, Flag("cpu, cuda, cuda:1...; default cpu.")],
    "attention": Annotated[
        str | None, Flag("sdpa, eager, flash_attention_2...; default: transformers' choice.")
    ],
}
_ENGINE = Annotated[str | None, Flag("inprocess (default), or URLs of vLLM servers.")]
_LENGTH = Annotated[int | None, Flag("Of a response; default 1024.")]
_TEACHER_THINKING = Annotated[bool | None, Flag("Default: the student's.")]
_TRAINING: dict[str, Any] = {
    "model": Annotated[str | None, Flag("Directory, hub name, or lab.")],
    "data": Annotated[str | None, Flag("File, dataset, or star-search[:5x3].")],
    "method": Annotated[
        str | None, Flag("A name, or FILE.py:NAME of your own.", known=method_names)
    ],
    "teacher_thinking": _TEACHER_THINKING,
    "steps": Annotated[int | None, Flag("Rollout batches.")],
    "coverage": Annotated[int | None, Flag("Distinct training problems.")],
    "learning_rate": Annotated[float | None, Flag("Default: the method's.")],
    "max_new_tokens": _LENGTH,
    "problems_per_step": Annotated[int | None, Flag("Default 32.")],
    "samples_per_problem": Annotated[
        int | None, Flag("Responses per problem; default 8.", ("-k", "--samples"))
    ],
    "lora_rank": Annotated[int | None, Flag("Train an adapter of this rank; default all weights.")],
    "microbatch_tokens": Annotated[
        int | None, Flag("Tokens per forward pass; default: what fits.")
    ],
    **_DRAWING,
    "seed": Annotated[int | None, Flag("Names every random draw.")],
}
_PREFLIGHT: dict[str, Any] = {
    "engine": _ENGINE,
    "problems": Annotated[int | None, Flag("First so many problems; default 32.")],
    "samples": Annotated[
        int | None, Flag("Responses per problem; default 8.", ("-k", "--samples"))
    ],
    "max_new_tokens": _LENGTH,
    "teacher_thinking": _TEACHER_THINKING,
    "allow_mode_mismatch": Annotated[bool, Flag("Measure all the same.")],
    "top_k": Annotated[int | None, Flag("Tokens a server lists per position; default 20.")],
    **_DRAWING,
    "seed": Annotated[int | None, Flag("Names every random draw; default 0.")],
}


@command("study", "study lab --preset quick", "docs/lab.md", of=study)
def _study(call: Call, *, as_json: Json = False) -> None:
    """Train, compare and report: arms x coverage x seeds. The same command resumes."""
    found = call(console=terminal(stderr=True))
    told = {"report": str(found.path), "claims": found.summary["claims"]}
    show(replace(found, summary=told), as_json, lambda summary: print(summary["report"]))


@command(
    "train",
    "train --model lab --data star-search --method sdpo --steps 20",
    "docs/methods.md; --print-config explains every key",
    settings=_TRAINING,
)
def _train(
    config: Annotated[Path | None, Flag("A TOML file; flags change it.")] = None,
    *,
    out: Annotated[Path, Flag("Run directory.")] = Path("runs/train"),
    track: Annotated[str | None, Flag("Also tell trackio, wandb or tensorboard.")] = None,
    print_config: Annotated[bool, Flag("Every key, its meaning and value, as TOML.")] = False,
    as_json: Json = False,
    **settings: Any,
) -> None:
    """Train one model with one method. The same command resumes."""
    from epistill.inputs import load_run_config

    if print_config and config is None:  # complete: what is missing can be filled in
        settings = {"model": "lab", "data": "star-search", "method": "sdpo", **settings}
    if "data" in settings:
        settings["task"] = settings.pop("data")
    chosen = load_run_config(config, settings)
    if print_config:
        from epistill.studies.config_toml import config_toml

        print(config_toml(dict(chosen)), end="")
        return
    from epistill.store import RunStore
    from epistill.studies.step_lines import step_line, why_no_signal
    from epistill.world import joined

    with joined() as world:
        console = terminal(stderr=True, quiet=not world.first)
        with console.status("loading") as status:
            new = RunStore(out).new_metrics()

            def show_step(done: int) -> None:
                for row in new()[-1:] if done else []:
                    line = step_line(row, chosen.steps, chosen.method)
                    status.update(line)
                    if not console.is_terminal or why_no_signal(row, chosen.method) is not None:
                        console.print(line, soft_wrap=True)

            found = train(chosen, out=out, on_step=show_step, track=track)
    if not world.first:
        return

    def table(summary: Mapping[str, Any]) -> None:
        print_evaluations(summary["evaluations"])
        print(found.path)

    show(found, as_json, table)


@command(
    "eval",
    "eval lab --data star-search:6x3 -k 4",
    "docs/metrics.md",
    of=evaluate,
    settings={
        "engine": _ENGINE,
        "top_k": Annotated[int | None, Flag("Of sampling; default all.")],
        "force": Annotated[
            list[str] | None,
            Flag("[N*]WORDS@start, @line, @after:PATTERN or @before:TOKEN; repeatable."),
        ],
        "block": Annotated[
            list[str] | None,
            Flag("TEXT, or TEXT@start, @line, @after:... or @until:...; repeatable."),
        ],
        **_DRAWING,
    },
)
def _evaluate(call: Call, *, as_json: Json = False) -> None:
    show(call(), as_json, lambda found: print_evaluations({call.keywords["data"]: found}))


@command(
    "preflight",
    "preflight lab --data star-search --problems 16 -k 4",
    "docs/preflight.md",
    of=preflight,
    settings=_PREFLIGHT,
)
def _preflight(call: Call, *, as_json: Json = False) -> None:
    """Say before training what self-distillation would do. The same command resumes."""
    with terminal(stderr=True).status("loading") as status:
        found = call(say=status.update)

    def table(summary: Mapping[str, Any]) -> None:
        _print_preflight(summary)
        print(found.path)

    show(found, as_json, table)


def _print_preflight(report: Mapping[str, Any]) -> None:
    """Prompts, table and verdicts for a terminal."""
    from epistill.report.format import format_signed

    console = terminal(wide=True)
    shown: set[str] = set()
    for name, context in report["contexts"].items():
        prompt = context["prompt"]
        if prompt is None:
            continue
        for side in ("student", "teacher"):
            sha = prompt[f"{side}_sha256"]
            if sha not in shown:
                shown.add(sha)
                mode = prompt[f"{side}_mode"]
                print(f"--- {side}, context {name}, thinking {mode}, sha256 {sha}")
                print(prompt[side])
    table = Table("context", "nats per response", "trace nats", "accuracy gap", "markers / 1,000",
                  "of their mass", "KL", "reweighted score")  # fmt: skip
    for name, context in report["contexts"].items():
        r, p = context["richness"], context["pressure"]
        table.add_row(
            f"{'× ' if context['control'] else ''}{name}",
            format_signed(r["own_nats_per_response"], 2),
            format_signed(r["trace_nats_per_response"], 2),
            format_signed(r["accuracy_gap"], 2),
            format_signed(p["change_per_1k_tokens"], 1),
            format_signed(p["mass_change_share"], 2),
            format_signed(p["kl_nats_per_token"], 3),
            format_signed(context["reweighted"]["gain_score"], 2),
        )
    console.print(table)
    for name, context in report["contexts"].items():
        if not context["control"]:
            print(f"c={name}: {context['headline']}")
            for verdict in context["verdict"]:
                print(f"  {verdict['outcome']}: {verdict['expectation']} ({verdict['reason']})")
    for outcome, found in report["thresholds"]["correlations"].items():
        told = ", ".join(f"{n} {c['rho']['value']:+.2f}" for n, c in found.items())
        print(f"in the validation study, rho with {outcome}: {told} (docs/preflight.md)")
    control = report["control"]
    held = "holds" if control["holds"] else "FAILED: do not trust the numbers above"
    print(f"control, no context: largest |u| {control['largest_u_nats']:.2g} nats, {held}")
    print(report["advice"])


@command("report", "report docs/results/lab --out page.html", "docs/lab.md")
def _report(
    folder: Annotated[Path, Flag("A study's folder (with report.json).")],
    *,
    out: Annotated[Path | None, Flag("Default: report.html in the folder.")] = None,
    export: Export = None,
) -> None:
    """Draw a study's page again from its report.json."""
    from epistill.studies.draw_report import draw_again

    page, missing = draw_again(folder, out, as_path(export))
    for line in missing:
        warn(line)
    print(page)


@command("pretrain", "lab pretrain --out models/mine", "docs/lab.md", group=lab)
def _pretrain(
    *,
    out: Annotated[Path, Flag("Folder for the model.")],
    seed: Seed = 0,
    steps: Annotated[int | None, Flag("Default: the shipped model's.")] = None,
    threads: Annotated[int | None, Flag("Default: all cores.")] = None,
) -> None:
    """Train the lab's base model from nothing (under 30 minutes on two cores)."""
    at_least_one("--steps", steps)
    from epistill.lab.pretrain import pretrain_to

    pretrain_to(out, seed=seed, steps=steps, threads=threads, say=terminal(stderr=True).print)
    print(out)


@command(
    "warm-start",
    "lab warm-start models/smollm2 --out models/smollm2-search",
    "docs/smollm2.md",
    group=lab,
)
def _warm_start(
    model: Annotated[str, Flag("SmolLM2-135M-Instruct, as a directory.")],
    *,
    out: Annotated[Path, Flag("Folder for corpus, run and merged model.")],
    seed: Annotated[int, Flag()] = 0,
    shipped: Annotated[bool, Flag("Merge the shipped adapter instead of training one.")] = False,
) -> None:
    """Teach SmolLM2 to search in words, for `epistill study smollm2` (docs/smollm2.md)."""
    from epistill.smollm2.warm_start import merge_shipped, warm_start

    print(merge_shipped(model, out) if shipped else warm_start(model, out, seed=seed))


@command("card", "lab card", "docs/lab.md", group=lab)
def _card(*, as_json: Json = False) -> None:
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
