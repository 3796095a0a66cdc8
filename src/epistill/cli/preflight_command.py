"""`epistill preflight`: what self-distillation would do, measured before training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

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
    say,
    terminal,
)


@app.command(
    "preflight", epilog="Example: epistill preflight lab --data star-search --problems 16 -k 4"
)
def preflight_command(
    model: Annotated[str, typer.Argument(help="Directory, hub name, or lab.")],
    data: Annotated[str, typer.Option(help="File, dataset, or star-search[:5x3].")],
    contexts: Annotated[
        str | None, typer.Option(help="Comma-separated names; default all that the data allow.")
    ] = None,
    engine: Annotated[str, typer.Option(help="inprocess, or URLs of vLLM servers.")] = "inprocess",
    problems: Annotated[int, typer.Option(help="First so many problems.")] = 32,
    k: Annotated[int, typer.Option("-k", "--samples", help="Responses per problem.")] = 8,
    temperature: Annotated[float, typer.Option(help="Of sampling; scores are at 1.")] = 1.0,
    top_p: Annotated[float, typer.Option()] = 1.0,
    max_new_tokens: Annotated[int, typer.Option()] = 1024,
    thinking: Thinking = None,
    teacher_thinking: Annotated[bool | None, typer.Option(help="Default: the student's.")] = None,
    allow_mode_mismatch: Annotated[bool, typer.Option(help="Measure all the same.")] = False,
    top_k: Annotated[int, typer.Option(help="Tokens a server lists per position.")] = 20,
    prompt: Prompt = None,
    chat_template: ChatTemplate = None,
    stop: Stop = None,
    batch_rows: BatchRows = None,
    device: Device = None,
    dtype: DType = None,
    seed: Annotated[int, typer.Option(help="Names every random draw.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder of results and cache.")] = Path(
        "runs/preflight"
    ),
    as_json: Json = False,
) -> None:
    """Say before training what self-distillation would do. The same command resumes."""
    from epistill.library.model_functions import preflight

    with terminal(stderr=True).status("loading") as status:
        found = preflight(
            model,
            data,
            out=out,
            contexts=contexts and contexts.split(","),
            say=status.update,
            engine=engine,
            problems=problems,
            samples=k,
            sampling={
                "temperature": temperature,
                "top_p": top_p,
                "max_new_tokens": max_new_tokens,
                "thinking": thinking,
                "stop": stop or (),
                **({} if batch_rows is None else {"batch_rows": batch_rows}),
            },
            teacher_thinking="same" if teacher_thinking is None else teacher_thinking,
            allow_mode_mismatch=allow_mode_mismatch,
            top_k=top_k,
            prompt=prompt,
            chat_template=chat_template and str(chat_template.resolve()),
            device=device or "cpu",
            dtype=dtype or "float32",
            seed=seed,
        )
    if as_json:
        say(found.summary)
        return
    _print(found.summary)
    print(found.path)


def _print(report: Mapping[str, Any]) -> None:
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
