"""Commands about traces that exist already, and what they print: tables of numbers with intervals.

None of them needs a model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any

from rich.table import Table

from epistill.cli.common import Json, command, show, terminal
from epistill.library.results import Flag, Result, at_least_one
from epistill.library.trace_functions import compare, edit, grade, measure, shift
from epistill.report.format import (
    bounds_text,
    decomposition_lines,
    format_estimate,
    format_signed,
    loops_line,
)

MAX_GROUPS = 6


def _lines(*texts: str) -> None:
    console = terminal()
    for text in texts:
        console.print(text, soft_wrap=True)


@command(
    "measure", "measure traces.jsonl --by step --report page.html", "docs/metrics.md", of=measure
)
def _print_measured(summary: Mapping[str, Any]) -> None:
    console = terminal()
    for file in summary["files"]:
        _lines(_read(file))
        groups = dict(list(file["groups"].items())[:MAX_GROUPS])
        if len(file["groups"]) > MAX_GROUPS:
            _lines(f"the first {MAX_GROUPS} of {len(file['groups'])} groups; all in --json")
        console.print(_overview(groups))
        if len(file["groups"]) == 1:
            (group,) = file["groups"].values()
            for name, markers in group["markers"].items():
                console.print(_words(name, markers["words"]))
            console.print(_deciles(group["markers"]))


def _read(file: Mapping[str, Any]) -> str:
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
    """A row for each number that some group has."""
    table = Table("value [95 % interval]", *groups)
    each = list(groups.values())

    def add(label: str, path: str, digits: int = 3, places: Sequence[Any] = each) -> None:
        cells = [_cell(place, path, digits) for place in places]
        if set(cells) != {"–"}:
            table.add_row(label, *cells)

    add("responses", "responses")
    add("empty responses", "empty_responses")
    counts = [_problems(group, " sets of problems (there are more)", "") for group in each]
    table.add_row("problems", *counts)
    for name in ("words", "thinking_words", "answer_words", "tokens"):
        add(f"length ({name.replace('_', ' ')})", f"length.{name}", 1)
    add("share with thinking", "thinking.share")
    add("share truncated", "truncated.share")
    add("... as said by", "truncated.basis")
    add("share that ends in a loop", "looping.share")
    add("answers verified before given", "answers.verified_share")
    add("answers given unverified", "answers.committed_share")
    add("candidates per response", "answers.candidates", 2)
    add("first commitment, share of reasoning", "answers.first_commitment", 2)
    for lexicon in dict.fromkeys(name for group in each for name in group["markers"]):
        found = [group["markers"].get(lexicon) for group in each]
        for label, path, digits in (
            ("count", "count", 0),
            ("per 1,000 words", "density_per_1k_words", 2),
            ("per 1,000 tokens", "density_per_1k_tokens", 2),
            ("per 1,000 words without loops", "without_looping.density_per_1k_words", 2),
            ("per 1,000 words of thinking", "thinking.density_per_1k_words", 2),
            ("per 1,000 words of answer", "answer.density_per_1k_words", 2),
            ("share of responses with any", "share_of_responses_with_any", 3),
            ("self-corrections per response", "self_correction.per_response", 3),
            ("official substring count", "official_substring_count", 0),
        ):
            add(f"{lexicon}: {label}", path, digits, found)
    return table


def _cell(found: Any, path: str, digits: int) -> str:
    for name in path.split("."):
        found = None if found is None else found[name]
    if isinstance(found, str | int):
        return found if isinstance(found, str) else f"{found:,}"
    return format_estimate(found, digits)


def _problems(side: Mapping[str, Any], sets: str, problems: str) -> str:
    return (
        f"{side['clusters']:,}{sets}"
        if side["problems"] is None
        else f"{side['problems']:,}{problems}"
    )


def _words(name: str, words: Mapping[str, Any]) -> Table:
    table = Table(name, "count", "per 1,000 words [95 % interval]", "official substring count")
    for word, row in words.items():
        density = format_estimate(row["density_per_1k_words"], 2)
        table.add_row(word, f"{row['count']:,}", density, f"{row['official_substring_count']:,}")
    return table


def _deciles(markers: Mapping[str, Mapping[str, Any]]) -> Table:
    table = Table("tenth of the response", *(f"{name} per 1,000 words" for name in markers))
    for rows in zip(*(found["deciles"] for found in markers.values()), strict=True):
        cells = [format_estimate(row["density_per_1k_words"], 2) for row in rows]
        table.add_row(f"{rows[0]['from']:.1f} to {rows[0]['from'] + 0.1:.1f}", *cells)
    return table


@command("shift", "shift base.jsonl tuned.jsonl --top 10", "docs/metrics.md", of=shift)
def _shift(
    call: partial[Result],
    *,
    top: Annotated[int, Flag("Words to print; all are in --out and --json.")] = 20,
    as_json: Json = False,
) -> None:
    at_least_one("--top", top)
    show(call(), as_json, partial(_print_shift, top=top))


def _print_shift(found: Mapping[str, Any], top: int) -> None:
    """The words that moved most, then where each list's words stand."""
    console = terminal()
    for name in "ab":
        side = found[name]
        problems = _problems(side, " sets of problems (there are more)", " problems")
        files = ", ".join(side["files"])
        _lines(f"{name.upper()}: {files}: {_reading(side['reading'])}; {problems}")
    _lines(
        f"{found['tested_words']:,} of {found['vocabulary']:,} words tested; "
        f"{found['shared_problems']:,} shared problems; {found['test']}"
    )
    console.print(_moved("moved most", found["words"][:top]))
    if below := [row for row in found["words"][top:] if row["lexicon"] is not None]:
        console.print(_moved("the other words of the lists", below))
    table = Table("", "words", "tested", "q < .05", "mean |B - A| per response", "median rank")
    for name, group in (("ordinary words", found["ordinary"]), *found["lexicons"].items()):
        if group["words"]:
            counts = (f"{group[count]:,}" for count in ("words", "tested", "q_below_05"))
            mean, rank = group["mean_abs_delta_per_response"], group["median_rank"]
            table.add_row(name, *counts, f"{mean:.3f}", f"{rank:,.0f}")
    console.print(table)


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


@command("grade", "grade traces.jsonl --problems gold.jsonl", "docs/metrics.md", of=grade)
def _print_graded(summary: Mapping[str, Any]) -> None:
    console = terminal()
    for result in summary["files"]:
        _lines(f"{result['file']}: {_reading(result['reading'])}; written to {result['written']}")
        table = Table("value [95 % interval]", "")
        table.add_row("share correct", format_estimate(result["score"]))
        with_unframed = format_estimate(result["score_with_unframed"])
        table.add_row("with answers that stand in no frame", with_unframed)
        for status, count in result["statuses"].items():
            table.add_row(status, f"{count:,}")
        agreement = result["agreement"] or {"disagreements": ()}
        for name, label in (
            ("labelled", "with an older label"),
            ("agree", "agree"),
            ("correct_here_wrong_there", "correct here wrong there"),
            ("wrong_here_correct_there", "wrong here correct there"),
        ):
            if name in agreement:
                table.add_row(label, f"{agreement[name]:,}")
        console.print(table)
        if agreement["disagreements"]:
            table = Table("row", "label", "grade", "extracted", "reference", title="disagreements")
            for row in agreement["disagreements"]:
                extracted = row["extracted"] if row["extracted"] is not None else row["reason"]
                cells = (row["row"], row["label"], row["grade"], extracted, row["reference"])
                table.add_row(*(str(cell)[:60] for cell in cells))
            console.print(table)


@command(
    "compare", "compare base.jsonl tuned.jsonl --report page.html", "docs/compare.md", of=compare
)
def _print_compared(summary: Mapping[str, Any]) -> None:
    console = terminal()
    for label in "ab":
        side = summary[label]
        _lines(f"{label.upper()}: {side['path']}", *(f"  {_read(file)}" for file in side["files"]))
    for found in summary["sets"]:
        console.print(_differences(found, "measures", found["set"], "measure"))
        _lines(loops_line(found["looping"]))
        if found["budgets"]:
            title = f"score had responses been cut ({found['budget_unit']})"
            console.print(_differences(found, "budgets", title, "budget"))
        if found["strata"] is not None:
            console.print(_strata(found["strata"]))
            _lines(*decomposition_lines(found["strata"]))
        _lines(*(f"no {name}: {reason}" for name, reason in found["reasons"].items()))
    sizes = summary["settings"]["family_sizes"]
    _lines(
        f"p: Holm over {sizes['measures']} measures and over {sizes['budgets']} budgets; "
        "detectable: the true difference that so many problems show with 80 % power (p < .05)"
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
        table.add_row(
            name,
            *(_number(row[side] and row[side]["value"], digits) for side in "ab"),
            format_signed(row["difference"], digits),
            "control" if row["control"] else _number(row["p_holm"], 4),
            _number(row["smallest_detectable"], digits),
        )
    return table


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _strata(strata: Mapping[str, Any]) -> Table:
    table = Table("responses", "A: n", "accuracy", "B: n", "accuracy", "B - A [95 % interval]")
    units = {"length": strata["unit"], "density": f"{strata['lexicon']} density"}
    for kind in ("length", "density", "both"):
        for row in strata[kind]:
            if kind == "both":
                name = f"{row['length']} length, {row['density']} markers"
            else:
                name = f"{row['label']}: {bounds_text(row, units[kind])}"
            cells: list[str] = []
            for side in "ab":
                accuracy = _number(row[side] and row[side]["value"])
                cells += [f"{row['responses'][side]:,}", accuracy]
            table.add_row(name, *cells, format_signed(row["difference"]))
    return table


@command(
    "edit",
    "edit traces.jsonl --rule 'swap wait=so' --out edited.jsonl",
    "docs/counterfactuals.md",
    of=edit,
)
def _print_edited(summary: Mapping[str, Any]) -> None:
    words = summary["words"]
    table = Table("rule", "responses changed", "edits")
    for rule, counts in summary["edits"].items():
        table.add_row(rule, str(counts["responses"]), str(counts["edits"]))
    if summary["edits"]:
        terminal().print(table)
    left_out = f", {summary['left_out']} left out" if summary["left_out"] else ""
    _lines(
        f"{summary['written']}: {summary['responses']} responses{left_out}, "
        f"{words['before']:.1f} -> {words['after']:.1f} words"
    )
