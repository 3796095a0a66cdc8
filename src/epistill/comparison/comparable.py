"""Whether two sides may be compared: the same problems, asked alike, sampled alike.

Enters: two `Side`s. Leaves: what differs and what could not be checked, in lines for people; an
error where a difference was not allowed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from epistill.comparison.responses import Response, Side
from epistill.errors import EpistillError

MAX_NAMED = 3


@dataclass(frozen=True, slots=True)
class Agreement:
    """What two sides have in common.

    Attributes:
        problems: By evaluation set, those of both sides, in A's order.
        differs: What differs although it was allowed.
        unknown: What could not be checked.
    """

    problems: Mapping[str, tuple[str, ...]]
    differs: tuple[str, ...]
    unknown: tuple[str, ...]


def agree(
    a: Side, b: Side, *, allow_different_settings: bool = False, common_problems: bool = False
) -> Agreement:
    """Compare sampling settings, problems and questions.

    Raises:
        EpistillError: They differ and that was not allowed, or nothing is in common.
    """
    settings, unknown = _settings(a, b)
    for label, side in (("A", a), ("B", b)):
        unknown += [
            f"{label}: {len(files)} files are taken as one set"
            for files in side.source.sets.values()
            if len(files) > 1
        ]
    problems, missing = _problems(a, b)
    if missing and not common_problems:
        raise EpistillError(
            f"A and B do not answer the same problems: {'; '.join(missing)}; pass "
            "--common-problems to compare those that both answer"
        )
    settings += _questions(a, b, problems)
    if settings and not allow_different_settings:
        raise EpistillError(
            f"A and B were not sampled alike: {'; '.join(settings)}; a difference between them "
            "could come from that; pass --allow-different-settings to compare all the same"
        )
    return Agreement(problems, (*settings, *missing), tuple(unknown))


def _settings(a: Side, b: Side) -> tuple[list[str], list[str]]:
    differs = [
        f"{name} is {_values(a.settings[name])} in A and {_values(b.settings[name])} in B"
        for name in sorted(set(a.settings) & set(b.settings))
        if a.settings[name] != b.settings[name]
    ]
    unknown: list[str] = []
    for label, mine, others in (("A", a.settings, b.settings), ("B", b.settings, a.settings)):
        if only := sorted(set(mine) - set(others)):
            unknown.append(
                f"only {label} says its {', '.join(only)}; that it is equal in both is "
                "taken on trust"
            )
    if not a.settings and not b.settings:
        unknown.append("neither A nor B says how it was sampled; equal settings are taken on trust")
    return differs, unknown


def _values(values: set[str]) -> str:
    shown = sorted(values)[:MAX_NAMED]
    return " and ".join(shown) + (" and others" if len(values) > MAX_NAMED else "")


def _problems(a: Side, b: Side) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    problems: dict[str, tuple[str, ...]] = {}
    missing = [
        f"set {', '.join(only)} is only in {label}"
        for label, mine, others in (("A", a, b), ("B", b, a))
        if (only := [name for name in mine.sets if name not in others.sets])
    ]
    for name in (name for name in a.sets if name in b.sets):
        ours = dict.fromkeys(response.problem for response in a.sets[name])
        theirs = dict.fromkeys(response.problem for response in b.sets[name])
        both = tuple(problem for problem in ours if problem in theirs)
        where = "" if len(a.sets) == 1 else f" of set {name}"
        if not both:
            raise EpistillError(
                f"A and B have no problem{where} in common (A: {_named(a, ours)}; B: "
                f"{_named(b, theirs)}); name the field that tells problems apart with "
                "--problem-field"
            )
        problems[name] = both
        for label, mine, others in (("A", ours, theirs), ("B", theirs, ours)):
            if only := [problem for problem in mine if problem not in others]:
                missing.append(
                    f"{len(only)} of {len(mine)} problems{where} are only in {label} "
                    f"(such as {_short(only[0])})"
                )
    return problems, missing


def _named(side: Side, problems: Mapping[str, object]) -> str:
    names = {n for reading in side.readings.values() for n in reading.fields["problem"]}
    first = next(iter(problems))
    return f"{len(problems)} such as {_short(first)} from {', '.join(sorted(names))}"


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")


def _questions(a: Side, b: Side, problems: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Problems of one id that ask, or expect, different things."""
    lines: list[str] = []
    for name, both in problems.items():
        where = "" if len(problems) == 1 else f" of set {name}"
        for attribute, what in (("question", "questions"), ("reference", "reference answers")):
            ours, theirs = (_by_problem(side.sets[name], attribute) for side in (a, b))
            for label, mine in (("A", ours), ("B", theirs)):
                if several := [problem for problem in mine if len(mine[problem]) > 1]:
                    lines.append(
                        f"{len(several)} of {len(mine)} problems{where} have several {what} under "
                        f"one id in {label} (such as {_short(several[0])})"
                    )
            different = [p for p in both if p in ours and p in theirs and not ours[p] & theirs[p]]
            if different:
                lines.append(
                    f"{len(different)} of {len(both)} problems{where} have different {what} under "
                    f"one id (such as {_short(different[0])})"
                )
    return lines


def _by_problem(responses: Sequence[Response], attribute: str) -> dict[str, set[object]]:
    found: dict[str, set[object]] = {}
    for response in responses:
        value = getattr(response, attribute)
        if value is not None:
            found.setdefault(response.problem, set()).add(value)
    return found
