"""What the commands about traces print for people: tables of numbers with their intervals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich.table import Table

from epistill.cli.common import terminal
from epistill.report.format import format_estimate

MAX_GROUPS = 6


def print_measured(summary: Mapping[str, Any]) -> None:
    """Print what `measure` found, a file at a time."""
    console = terminal()
    for file in summary["files"]:
        console.print(reading_line(file), highlight=False, soft_wrap=True)
        groups = dict(list(file["groups"].items())[:MAX_GROUPS])
        if len(file["groups"]) > MAX_GROUPS:
            console.print(f"the first {MAX_GROUPS} of {len(file['groups'])} groups; all in --json")
        console.print(_overview(groups))
        if len(file["groups"]) == 1:
            (group,) = file["groups"].values()
            for name in group["markers"]:
                console.print(_words(name, group["markers"][name]))
            console.print(_deciles(group["markers"]))


def reading_line(file: Mapping[str, Any]) -> str:
    """What was read of a file, and from which fields."""
    return f"{file['file']} ({file['format']}): {_reading(file['reading'])}"


def _reading(reading: Mapping[str, Any]) -> str:
    said = "; ".join(
        f"{role} from {', '.join(f'{name} ({count:,})' for name, count in names.items())}"
        for role, names in reading["fields"].items()
    )
    skipped = sum(entry["count"] for entry in reading["skipped"].values())
    return (
        f"{reading['responses_read']:,} responses read, "
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
    add("share that ends in a loop", (format_estimate(g["looping"]["share"]) for g in each))
    for lexicon in dict.fromkeys(name for g in each for name in g["markers"]):
        found = [g["markers"].get(lexicon) for g in each]
        for label, path, digits in (
            ("count", ("count",), 0),
            ("per 1,000 words", ("density_per_1k_words",), 2),
            ("per 1,000 tokens", ("density_per_1k_tokens",), 2),
            ("per 1,000 words without loops", ("without_looping", "density_per_1k_words"), 2),
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


def print_shift(found: Mapping[str, Any], top: int) -> None:
    """Print the words that moved most, then where each list's words stand."""
    console = terminal()
    for name in ("a", "b"):
        side = found[name]
        problems = _problems(side)
        console.print(
            f"{name.upper()}: {', '.join(side['files'])}: {_reading(side['reading'])}; {problems}",
            highlight=False,
            soft_wrap=True,
        )
    console.print(
        f"{found['tested_words']:,} of {found['vocabulary']:,} words tested; "
        f"{found['shared_problems']:,} shared problems; {found['test']}",
        highlight=False,
        soft_wrap=True,
    )
    rows = found["words"][:top]
    console.print(_moved("moved most", rows))
    below = [row for row in found["words"][top:] if row["lexicon"] is not None]
    if below:
        console.print(_moved("the other words of the lists", below))
    table = Table("", "words", "tested", "q < .05", "mean |B - A| per response", "median rank")
    for name, group in (("ordinary words", found["ordinary"]), *found["lexicons"].items()):
        if group["words"]:
            table.add_row(
                name,
                f"{group['words']:,}",
                f"{group['tested']:,}",
                f"{group['q_below_05']:,}",
                f"{group['mean_abs_delta_per_response']:.3f}",
                f"{group['median_rank']:,.0f}",
            )
    console.print(table)


def _problems(side: Mapping[str, Any]) -> str:
    if side["problems"] is None:
        return f"{side['clusters']:,} sets of problems (there are more)"
    return f"{side['problems']:,} problems"


def _moved(title: str, rows: Iterable[Mapping[str, Any]]) -> Table:
    table = Table(
        "rank", "word", "list", "A per 1,000 words", "B", "B - A [95 % interval]", "per response",
        "q", "like words moved less", title=title,
    )  # fmt: skip
    for row in rows:
        q, less = row["q_value"], row["moved_more_than_share_of_like_words"]
        table.add_row(
            f"{row['rank']:,}",
            row["word"],
            row["lexicon"] or "",
            f"{row['per_1k_words_a']:.2f}",
            f"{row['per_1k_words_b']:.2f}",
            format_estimate(row["delta_per_1k_words"], 2),
            f"{row['delta_per_response']:+.3f}",
            "not tested" if q is None else f"{q:.2g}",
            "" if less is None else f"{less:.0%}",
        )
    return table


def print_graded(results: Iterable[Mapping[str, Any]]) -> None:
    """Print what grading found, a file at a time, and where older labels disagree."""
    console = terminal()
    for result in results:
        console.print(
            f"{result['file']}: {_reading(result['reading'])}; written to {result['written']}",
            highlight=False,
            soft_wrap=True,
        )
        table = Table("value [95 % interval]", "")
        table.add_row("share correct", format_estimate(result["score"]))
        with_unframed = format_estimate(result["score_with_unframed"])
        table.add_row("with answers that stand in no frame", with_unframed)
        for status, count in result["statuses"].items():
            table.add_row(status, f"{count:,}")
        agreement = result["agreement"]
        if agreement is not None:
            table.add_row("with an older label", f"{agreement['labelled']:,}")
            table.add_row("agree", f"{agreement['agree']:,}")
            for name in ("correct_here_wrong_there", "wrong_here_correct_there"):
                table.add_row(name.replace("_", " "), f"{agreement[name]:,}")
        console.print(table)
        if agreement is not None and agreement["disagreements"]:
            console.print(_disagreements(agreement["disagreements"]))


def _disagreements(rows: Iterable[Mapping[str, Any]]) -> Table:
    table = Table("row", "label", "grade", "extracted", "reference", title="disagreements")
    for row in rows:
        extracted = row["extracted"] if row["extracted"] is not None else row["reason"]
        cells = (row["row"], row["label"], row["grade"], extracted, row["reference"])
        table.add_row(*(str(cell)[:60] for cell in cells))
    return table
