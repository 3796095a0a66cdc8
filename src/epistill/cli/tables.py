"""What the commands about traces print for people: tables of numbers with their intervals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from epistill.report.format import format_estimate

MAX_GROUPS = 6


def print_measured(summary: Mapping[str, Any]) -> None:
    """Print what `measure` found, a file at a time."""
    console = Console()
    for file in summary["files"]:
        console.print(_reading_line(file), highlight=False, soft_wrap=True)
        groups = dict(list(file["groups"].items())[:MAX_GROUPS])
        if len(file["groups"]) > MAX_GROUPS:
            console.print(f"the first {MAX_GROUPS} of {len(file['groups'])} groups; all in --json")
        console.print(_overview(groups))
        if len(file["groups"]) == 1:
            (group,) = file["groups"].values()
            for name in group["markers"]:
                console.print(_words(name, group["markers"][name]))
            console.print(_deciles(group["markers"]))


def _reading_line(file: Mapping[str, Any]) -> str:
    reading = file["reading"]
    said = "; ".join(
        f"{role} from {', '.join(f'{name} ({count:,})' for name, count in names.items())}"
        for role, names in reading["fields"].items()
    )
    skipped = sum(entry["count"] for entry in reading["skipped"].values())
    return (
        f"{file['file']} ({file['format']}): {reading['responses_read']:,} responses read, "
        f"{reading['responses_used']:,} used, {skipped:,} skipped; {said}"
    )


def _overview(groups: Mapping[str, Mapping[str, Any]]) -> Table:
    table = Table("value [95 % interval]", *groups)

    def add(label: str, values: Iterable[str]) -> None:
        values = list(values)
        if any(value != "–" for value in values):
            table.add_row(label, *values)

    each = list(groups.values())
    add("responses", (f"{g['responses']:,}" for g in each))
    add("empty responses", (f"{g['empty_responses']:,}" for g in each))
    add("problems", (f"{g['problems'] or g['clusters']:,}{_folded(g)}" for g in each))
    for name in ("words", "thinking_words", "answer_words", "tokens"):
        label = f"length ({name.replace('_', ' ')})"
        add(label, (format_estimate(g["length"][name], 1) for g in each))
    add("share with thinking", (format_estimate(g["thinking"]["share"]) for g in each))
    add("share truncated", (format_estimate(g["truncated"]["share"]) for g in each))
    add("... as said by", (g["truncated"]["basis"] for g in each))
    for lexicon in dict.fromkeys(name for g in each for name in g["markers"]):
        found = [g["markers"].get(lexicon) for g in each]
        for label, path, digits in (
            ("count", ("count",), 0),
            ("per 1,000 words", ("density_per_1k_words",), 2),
            ("per 1,000 tokens", ("density_per_1k_tokens",), 2),
            ("per 1,000 words of thinking", ("thinking", "density_per_1k_words"), 2),
            ("per 1,000 words of answer", ("answer", "density_per_1k_words"), 2),
            ("share of responses with any", ("share_of_responses_with_any",), 3),
            ("self-corrections per response", ("self_correction", "per_response"), 3),
            ("official substring count", ("official_substring_count",), 0),
        ):
            add(f"{lexicon}: {label}", (_cell(f, path, digits) for f in found))
    return table


def _folded(group: Mapping[str, Any]) -> str:
    return "" if group["problems"] else " sets of problems (there are more)"


def _cell(found: Any, path: tuple[str, ...], digits: int) -> str:
    for name in path:
        found = None if found is None else found[name]
    return f"{found:,}" if isinstance(found, int) else format_estimate(found, digits)


def _words(name: str, markers: Mapping[str, Any]) -> Table:
    table = Table(name, "count", "per 1,000 words [95 % interval]", "official substring count")
    for word, row in markers["words"].items():
        density = format_estimate(row["density_per_1k_words"], 2)
        table.add_row(word, f"{row['count']:,}", density, f"{row['official_substring_count']:,}")
    return table


def _deciles(markers: Mapping[str, Mapping[str, Any]]) -> Table:
    table = Table("tenth of the response", *(f"{name} per 1,000 words" for name in markers))
    for rows in zip(*(found["deciles"] for found in markers.values()), strict=True):
        cells = [format_estimate(row["density_per_1k_words"], 2) for row in rows]
        table.add_row(f"{rows[0]['from']:.1f} to {rows[0]['from'] + 0.1:.1f}", *cells)
    return table
