"""What `compare` prints for people; differences are B - A."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from epistill.cli.common import terminal
from epistill.cli.trace_tables import reading_line
from epistill.report.format import bounds_text, decomposition_lines, format_signed, loops_line


def print_compared(summary: Mapping[str, Any]) -> None:
    """Print what `compare` found, a set at a time; differences are B - A."""
    console = terminal()
    for label in ("a", "b"):
        console.print(f"{label.upper()}: {summary[label]['path']}", highlight=False, soft_wrap=True)
        for file in summary[label]["files"]:
            console.print("  " + reading_line(file), highlight=False, soft_wrap=True)
    for found in summary["sets"]:
        console.print(_differences(found, "measures", found["set"], "measure"))
        console.print(loops_line(found["looping"]), highlight=False, soft_wrap=True)
        if found["budgets"]:
            title = f"score had responses been cut ({found['budget_unit']})"
            console.print(_differences(found, "budgets", title, "budget"))
        if found["strata"] is not None:
            console.print(_strata(found["strata"]))
            for line in decomposition_lines(found["strata"]):
                console.print(line, highlight=False, soft_wrap=True)
        for name, reason in found["reasons"].items():
            console.print(f"no {name}: {reason}", highlight=False, soft_wrap=True)
    sizes = summary["settings"]["family_sizes"]
    console.print(
        f"p: Holm over {sizes['measures']} measures and over {sizes['budgets']} budgets; "
        "detectable: the true difference that so many problems show with 80 % power (p < .05)",
        highlight=False,
        soft_wrap=True,
    )


def _differences(found: Mapping[str, Any], family: str, title: str, head: str) -> Table:
    responses = found["responses"]
    table = Table(
        head, "A", "B", "B - A [95 % interval]", "p (Holm)", "detectable",
        title=f"{title}: {found['problems']:,} problems, {responses['a']:,} and "
        f"{responses['b']:,} responses",
    )  # fmt: skip
    for row in found[family]:
        name, digits = row["measure"], 3 if "@" in row["measure"] else 2
        if family == "budgets":
            cut = row["cut_share"]
            name = f"{row['budget']:,} (cut: {cut['a']:.0%} and {cut['b']:.0%})"
        shown = (row[side] and f"{row[side]['value']:.{digits}f}" for side in "ab")
        p = "control" if row["control"] else row["p_holm"]
        table.add_row(
            name,
            *(value or "–" for value in shown),
            format_signed(row["difference"], digits),
            p if isinstance(p, str) else "–" if p is None else f"{p:.4f}",
            "–" if row["smallest_detectable"] is None
            else f"{row['smallest_detectable']:.{digits}f}",
        )  # fmt: skip
    return table


def _strata(strata: Mapping[str, Any]) -> Table:
    table = Table("responses", "A: n", "accuracy", "B: n", "accuracy", "B - A [95 % interval]")
    for kind, name in (("length", strata["unit"]), ("density", f"{strata['lexicon']} density")):
        for row in strata[kind]:
            table.add_row(f"{row['label']}: {bounds_text(row, name)}", *_stratum(row))
    for row in strata["both"]:
        table.add_row(f"{row['length']} length, {row['density']} markers", *_stratum(row))
    return table


def _stratum(row: Mapping[str, Any]) -> list[str]:
    cells = []
    for side in "ab":
        accuracy = "–" if row[side] is None else f"{row[side]['value']:.3f}"
        cells += [f"{row['responses'][side]:,}", accuracy]
    return [*cells, format_signed(row["difference"])]
