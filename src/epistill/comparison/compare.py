"""`compare`: two sets of traces, paired by problem.

Enters: two paths. Leaves: one dictionary, ready for JSON: differences B - A in avg@k, pass@k,
maj@k, length and density with their intervals, p-values corrected over the family (Holm) and the
difference that so many problems could have shown; scores under budgets; accuracy by length and
density. Formulas and limits are in `docs/compare.md`. A number that cannot be known is absent or
None, and `reasons` says why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from epistill.comparison.budgets import default_budgets, references_of_run, regrade
from epistill.comparison.comparable import Agreement, agree
from epistill.comparison.contrasts import budget_contrasts, contrasts_of, judged
from epistill.comparison.paired_problems import PairedProblems, pair_problems
from epistill.comparison.responses import Response, Side, read_side
from epistill.comparison.sources import Source, find_sources
from epistill.comparison.strata import Outcomes, accuracy_strata
from epistill.evaluation.paired import holm
from epistill.evaluation.stats import RESAMPLES
from epistill.metrics.epistemic import density
from epistill.metrics.lexicon import load_lexicon
from epistill.tasks.grading import Grader
from epistill.traces.fields import BY_QUESTION
from epistill.traces.measure import settle
from epistill.traces.measure_summary import describe_reading
from epistill.traces.options import Options
from epistill.traces.references import Lookup

FEW_PROBLEMS = 20


@dataclass(frozen=True, slots=True)
class CompareOptions:
    """What to compare, and what is allowed to differ.

    Attributes:
        reading: How responses are read and measured.
        k: Samples for pass@k and maj@k; None takes the fewest that any problem has.
        budgets: Where responses are cut; None chooses by the longest response.
        references: Answers and graders by problem, for records that hold none.
        regrade: The grader's scores count although the records hold some.
        pool: Treat all files of a folder or run as one set.
        allow_different_settings, common_problems: See `comparable.agree`.
    """

    reading: Options
    k: int | None = None
    budgets: tuple[int, ...] | None = None
    references: Lookup | None = None
    regrade: bool = False
    pool: bool = False
    allow_different_settings: bool = False
    common_problems: bool = False


@dataclass(frozen=True, slots=True)
class Comparison:
    """What `compare` found.

    Attributes:
        summary: Every number, ready for JSON.
        sides: A, B.
        paired: The arrays behind each set.
    """

    summary: dict[str, Any]
    sides: tuple[Side, Side]
    paired: Mapping[str, PairedProblems]


def compare_sides(a: Path, b: Path, options: CompareOptions, grader: Grader) -> Comparison:
    """Compare the traces at two paths.

    Args:
        a, b: Files, folders or run directories; differences are B - A.
        options: What to compare.
        grader: For budgets, and where records hold no score.

    Raises:
        EpistillError: Nothing to compare, or the sides differ in what was not allowed.
    """
    sources = find_sources(a, b, pool=options.pool)
    settled = _settled(sources, options.reading)
    one, other = (read_side(source, settled, options.reading) for source in sources)
    sides = (one, other)
    agreement = agree(
        one,
        other,
        allow_different_settings=options.allow_different_settings,
        common_problems=options.common_problems,
    )
    paired: dict[str, PairedProblems] = {}
    sets: list[dict[str, Any]] = []
    for name, problems in agreement.problems.items():
        budgets = options.budgets or _budgets(sides, name, options)
        timeouts = [
            regrade(
                side,
                name,
                options.reading,
                budgets,
                options.references or references_of_run(side.source, name),
                grader,
            )
            for side in sides
        ]
        responses = [side.sets[name] for side in sides]
        paired[name] = pair_problems(problems, responses, timeouts, regrade=options.regrade)
        sets.append({"set": name} | _summary(paired[name], budgets, options))
    for family in ("measures", "budgets"):
        _correct([row for found in sets for row in found[family]])
    return Comparison(_described(sides, agreement, options, sets), sides, paired)


def _settled(sources: Sequence[Source], reading: Options) -> dict[Path, Options]:
    """How each file is read: by the question's text if any has no problem field to believe."""
    files = (file for source in sources for paths in source.sets.values() for file in paths)
    found = {file: settle(file, reading) for file in files}
    if any(one.problem_field == BY_QUESTION for one in found.values()):
        return {file: replace(one, problem_field=BY_QUESTION) for file, one in found.items()}
    return found


def _budgets(sides: Sequence[Side], name: str, options: CompareOptions) -> tuple[int, ...]:
    responses = [response for side in sides for response in side.sets[name]]
    if options.reading.tokenizer is None:
        return default_budgets(max(response.words for response in responses))
    return default_budgets(max(response.tokens or 0 for response in responses))


def _summary(
    paired: PairedProblems, budgets: Sequence[int], options: CompareOptions
) -> dict[str, Any]:
    lexicons, seed = options.reading.lists, options.reading.seed
    contrasts = list(contrasts_of(paired, lexicons, options.k))
    cut = list(budget_contrasts(paired, budgets))
    rows = judged([*contrasts, *cut], seed=seed)
    samples = [np.bincount(h.problems, minlength=paired.problems) for h in paired.halves]
    if paired.problems < FEW_PROBLEMS:
        paired.warnings.append(
            f"{paired.problems} problems: with fewer than {FEW_PROBLEMS} the intervals are too "
            "narrow"
        )
    return {
        "problems": paired.problems,
        "responses": _pair(len(half.responses) for half in paired.halves),
        "graded": _pair(int(np.count_nonzero(~np.isnan(h.scores))) for h in paired.halves),
        "samples_per_problem": _pair(
            {"fewest": int(counts.min()), "most": int(counts.max())} for counts in samples
        ),
        "looping": _pair(_looping(h.responses) for h in paired.halves),
        "unit": paired.unit,
        "measures": rows[: len(contrasts)],
        "budget_unit": "words" if options.reading.tokenizer is None else "tokens",
        "budgets": rows[len(contrasts) :],
        "strata": _strata(paired, lexicons[0].name, seed),
        "warnings": paired.warnings,
        "reasons": paired.reasons,
    }


def _looping(responses: Sequence[Response]) -> dict[str, Any] | None:
    """Responses whose end only repeats itself; None where no text was kept."""
    told = [one.looping for one in responses if one.looping is not None]
    return {"count": sum(told), "share": sum(told) / len(told)} if told else None


def _pair(values: Any) -> dict[str, Any]:
    return dict(zip("ab", values, strict=True))


def _strata(paired: PairedProblems, lexicon: str, seed: int) -> dict[str, Any] | None:
    """Accuracy by length and density, over the problems that are graded on both sides."""
    if "avg@k" in paired.reasons:
        paired.reasons["strata"] = "nothing is graded on both sides"
        return None
    if any(np.isnan(half.markers[:, 0]).any() for half in paired.halves):
        paired.reasons["strata"] = "some records hold no text, and no count of markers"
        return None
    graded = [~np.isnan(half.scores) for half in paired.halves]
    ours, theirs = (h.problems[g] for h, g in zip(paired.halves, graded, strict=True))
    both = np.intersect1d(ours, theirs)
    sides: list[Outcomes] = []
    for half, there in zip(paired.halves, graded, strict=True):
        kept = there & np.isin(half.problems, both)
        lengths = half.lengths[kept]
        sides.append(
            Outcomes(
                np.searchsorted(both, half.problems[kept]),
                half.scores[kept],
                lengths,
                1000 * half.markers[kept, 0] / np.maximum(lengths, 1),
            )
        )
    found = accuracy_strata(sides[0], sides[1], len(both), seed=seed)
    return {"unit": paired.unit, "lexicon": lexicon} | found


def _correct(rows: Sequence[dict[str, Any]]) -> None:
    """Holm over all comparisons of a family, in all sets; control lists are no hypotheses."""
    tested = [row for row in rows if row["p_value"] is not None and not row["control"]]
    for row in rows:
        row["p_holm"] = None
    for row, adjusted in zip(tested, holm([row["p_value"] for row in tested]), strict=True):
        row["p_holm"] = adjusted


def _described(
    sides: Sequence[Side],
    agreement: Agreement,
    options: CompareOptions,
    sets: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    sizes = {
        family: sum(row["p_holm"] is not None for found in sets for row in found[family])
        for family in ("measures", "budgets")
    }
    tokenizer = options.reading.tokenizer
    return {
        **_pair(map(_describe_side, sides)),
        "differs": list(agreement.differs),
        "unknown": list(agreement.unknown),
        "settings": {
            "direction": "B - A",
            "tokenizer": None if tokenizer is None else str(tokenizer),
            "lexicons": [load_lexicon(one).name for one in options.reading.lexicons],
            "interval": "95 %, paired bootstrap of problems",
            "bootstrap_resamples": RESAMPLES,
            "seed": options.reading.seed,
            "correction": "Holm",
            "family_sizes": sizes,
            "smallest_detectable": "two-sided 5 %, power 80 %, normal approximation",
        },
        "sets": list(sets),
    }


def _describe_side(side: Side) -> dict[str, Any]:
    return {
        "path": str(side.source.path),
        "files": [
            {
                "file": str(path),
                "format": next((piece.format for piece in side.pieces[path]), "parquet"),
                "reading": describe_reading(reading),
            }
            for path, reading in side.readings.items()
        ],
        "sampling": {name: sorted(values) for name, values in sorted(side.settings.items())},
    }


def compared_traces(found: Comparison) -> tuple[list[dict[str, Any]], int]:
    """Traces of both sides to shared problems.

    Returns:
        Records (side, set, problem, row, score, length, density, thinking, answer), and the number
        of responses compared, of which they are all or a sample.
    """
    records: list[dict[str, Any]] = []
    for i, (label, side) in enumerate(zip("AB", found.sides, strict=True)):
        place_of = {
            id(response): (name, j)
            for name, paired in found.paired.items()
            for j, response in enumerate(paired.halves[i].responses)
        }
        for _, response in side.sample:
            if response.shown is None or id(response) not in place_of:
                continue
            name, j = place_of[id(response)]
            half = found.paired[name].halves[i]
            score, length = half.scores[j], int(half.lengths[j])
            row, thinking, answer = response.shown
            records.append(
                {
                    "side": label,
                    "set": name,
                    "problem": response.problem[:200],
                    "row": row,
                    "score": None if np.isnan(score) else int(score),
                    "length": length,
                    "density": density(response.markers[0] or 0, length),
                    "thinking": thinking,
                    "answer": answer,
                }
            )
    return records, sum(len(h.responses) for paired in found.paired.values() for h in paired.halves)
