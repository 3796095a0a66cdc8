"""What a study costs, before anything runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.console import Console
from rich.table import Column, Table

from epistill.cli.common import Json, command, say, terminal
from epistill.errors import EpistillError
from epistill.library.results import Flag, at_least_one

if TYPE_CHECKING:
    from epistill.studies.spec import StudySpec

GIB = 2**30
PARTS = (
    "weights", "gradients", "optimizer", "teacher", "student", "gathered", "activations", "logits",
)  # fmt: skip


def _recipes() -> list[str]:
    from epistill.studies.load_study import RECIPES, shipped_studies

    return [name for name in shipped_studies() if name.startswith(RECIPES)]


@command("plan", "plan recipes/math-ds-7b --gpus 8", "docs/recipes.md")
def _plan(
    name: Annotated[
        str | None, Flag("recipes/... or a TOML file; without, a list.", known=_recipes)
    ] = None,
    *,
    tokens_per_second: Annotated[
        float | None, Flag("Sampled by one GPU; default: the recipe's.")
    ] = None,
    utilisation: Annotated[
        float | None, Flag("Share of peak FLOPs in training; default: the recipe's.")
    ] = None,
    gpus: Annotated[
        int | None, Flag("That one arm is sharded over; default: the recipe's.")
    ] = None,
    calibrate: Annotated[
        bool, Flag("Time the model on this machine in place of the stated throughputs.")
    ] = False,
    configs: Annotated[
        Path | None, Flag("Folder: each arm's configuration for `epistill train`.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Reckon a study's memory per GPU, tokens and GPU hours from its own numbers."""
    from epistill.studies.load_study import load_study
    from epistill.studies.plan import plan_study

    at_least_one("--gpus", gpus)
    names = _recipes() if name is None else [name]
    specs = {n: load_study(n) for n in names}
    if calibrate:
        if name is None:
            raise EpistillError("--calibrate times one study's model; expected its name or file")
        from epistill.studies.calibrate import calibrated

        specs[name] = calibrated(specs[name])
    plans = {
        n: plan_study(
            spec,
            sampling_tokens_per_second=tokens_per_second,
            utilisation=utilisation,
            gpus=gpus,
        )
        for n, spec in specs.items()
    }
    if configs is not None:
        _write_configs(specs.values(), configs)
    console = terminal(wide=True)
    if as_json:
        say(plans if name is None else plans[name])
    elif name is None:
        _print_recipes(specs, plans, console)
    else:
        _print_plan(plans[name], console)


def _write_configs(specs: Iterable[StudySpec], folder: Path) -> None:
    """STUDY/ARM-seed-S.json; the study takes a run of it that lies in its folder as its own."""
    from epistill.store import write_json

    for spec in specs:
        for arm, seed in ((arm, seed) for arm in spec.arms for seed in spec.seeds):
            config = spec.config_of(arm, seed).model_dump(mode="json")
            write_json(folder / spec.name / f"{arm.id}-seed-{seed}.json", config)


def _print_recipes(
    specs: Mapping[str, StudySpec], plans: Mapping[str, Mapping[str, Any]], console: Console
) -> None:
    from importlib import resources

    table = Table(
        Column("recipe", no_wrap=True), "models", "arms", "machine", "GiB on a GPU", "GPU hours"
    )
    for name, found in plans.items():
        machine, arms = found["hardware"], found["arms"]
        most = max(row["peak_bytes"] for row in arms.values())
        table.add_row(
            name,
            ", ".join(specs[name].architectures),
            str(len(arms)),
            f"{machine['gpus']} x {machine['gpu']}",
            f"{most / GIB:.0f} of {machine['memory_gib']:g}",
            _figure(found["total_gpu_hours"]),
        )
    console.print(table)
    console.print(
        "epistill plan NAME says what is behind the numbers; epistill study NAME --tiny runs a "
        "recipe at toy size.\nThe files, to copy and change: "
        f"{resources.files('epistill.studies') / 'recipes'}",
        soft_wrap=True,
    )


def _figure(value: float, places: int = 0) -> str:
    """With so many decimals, or as many as two digits need: what is small is not nothing."""
    return f"{value:,.{places}f}" if not value or value >= 10 ** (1 - places) else f"{value:.2g}"


def _print_plan(found: Mapping[str, Any], console: Console) -> None:
    for table in (_memory_table(found), _cost_table(found)):
        console.print(table)
    machine, assumed = found["hardware"], found["assumed"]
    console.print(
        f"{_figure(found['total_gpu_hours'])} GPU hours for {found['seeds']} seed(s), "
        f"{_figure(found['total_wall_hours'])} hours if arms run one after another, on "
        f"{machine['gpus']} x {machine['gpu']}, "
        f"{'measured here' if machine['measured'] else 'stated, not measured'}: "
        f"{_figure(assumed['sampling_tokens_per_second'])} sampled tokens/s per GPU and "
        f"{_figure(100 * assumed['utilisation'])}% of "
        f"{machine['peak_tflops']:.4g} TFLOP/s in training",
    )
    for source in (machine["source"], found["lengths"]["source"]):
        console.print(source)
    if any(row["sequences_at_once"] is None for row in found["arms"].values()):
        console.print(
            "Where servers write the responses, the hours are those with as many GPUs again for "
            "them; GPU hours count work, whoever does it"
        )
    if host := max(row["memory"]["host"] for row in found["arms"].values()):
        console.print(
            f"Where the weights are sharded and servers write, {host / GIB:.1f} GiB of the host's "
            f"memory for each GPU's process ({machine['gpus'] * host / GIB:,.0f} for all "
            f"{machine['gpus']}) until they are; no column counts it"
        )


def _memory_table(found: Mapping[str, Any]) -> Table:
    room = found["hardware"]["memory_gib"]
    table = Table(
        Column("arm", no_wrap=True), *PARTS, "sum", "start", "cache/sequence", "at once",
        "without checkpointing", "dense logits",
        title=f"{found['study']}: GiB on each GPU (of {room:g})",
    )  # fmt: skip
    for name, row in found["arms"].items():
        memory = row["memory"]
        cells = [*(memory[part] for part in PARTS), row["training_bytes"], memory["start"]]
        fits = "" if row["fits"] else " (does not fit)"
        table.add_row(
            name,
            *(f"{cell / GIB:.1f}" for cell in cells),
            f"{memory['cache_per_sequence'] / GIB:.2f}" if memory["cache_per_sequence"] else "",
            f"{'on servers' if (n := row['sequences_at_once']) is None else n}{fits}",
            f"{memory['activations_whole'] / GIB:.1f}",
            f"{memory['logits_dense'] / GIB:.1f}",
        )
    return table


def _cost_table(found: Mapping[str, Any]) -> Table:
    parts = ("sampled", "trained", "scored", "evaluated")
    table = Table(
        Column("arm", no_wrap=True), *(f"{part}, M tokens" for part in parts),
        "GPU h sampling", "training", "evaluation", "sum", "hours", "bound by",
        "one step ahead, hours without evaluation", title="one seed",
    )  # fmt: skip
    for name, row in found["arms"].items():
        hours = row["gpu_hours"]
        table.add_row(
            name,
            *(_figure(row["tokens"][part] / 1e6, 1) for part in parts),
            *(_figure(hours[part], 1) for part in ("sampling", "training", "evaluation", "total")),
            _figure((clock := row["wall_hours"])["total"], 1),
            ", ".join(clock[f"{part}_bound"] for part in ("sampling", "training") if hours[part]),
            _figure(ahead["hours_ahead"], 1) if (ahead := row["ahead"]) else "",
        )
    for name, row in found["probes"].items():
        table.add_row(
            f"probe {name}", _figure(row["tokens"] / 1e6, 1), "", "", "",
            _figure(row["gpu_hours"], 1), "", "", _figure(row["gpu_hours"], 1), "", "",
        )  # fmt: skip
    return table
