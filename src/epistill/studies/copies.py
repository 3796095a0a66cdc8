"""Arms once more under other conditions: another coverage, another world.

Enters: a study's settings as its file says them. Leaves: the same with every copy written out as
an arm, so that nothing after this knows copies from arms written by hand. Torch-free.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field, ValidationError

from epistill.settings import Settings, first_fault

WORLD = "world:"  # an arm's model "world:ID" is one of the study's own worlds


class Copies(Settings):
    """Some arms at another coverage, in another world, or both.

    The copy of `grpo` at 8 problems in the world `corner` is `grpo-c8-corner`; its baseline is
    that of `grpo` in that world, `base-corner`.

    Attributes:
        arms: Ids, of arms written before.
        coverage: Distinct training problems of the copies.
        world: A world of the study that they start from.
        claims: Claims that compare only `arms`, copied with them.
    """

    arms: tuple[str, ...] = Field(min_length=1)
    coverage: int | None = Field(default=None, ge=1)
    world: str | None = None
    claims: tuple[str, ...] = ()


def written_out(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings with `copies` among their arms and claims, and no `copies`.

    Raises:
        ValueError: A copy of something that is not there, or that changes nothing.
    """
    arms, claims = list(settings.get("arms", ())), list(settings.get("claims", ()))
    for index, raw in enumerate(settings.get("copies", ())):
        try:
            copies = Copies.model_validate(raw)
        except ValidationError as error:
            raise ValueError(f"copies.{index}: {first_fault(error)}") from error
        if copies.coverage is None and copies.world is None:
            raise ValueError(f"copies.{index} changes nothing; set `coverage`, `world`, or both")
        arms += [_arm(one, copies) for one in _named(copies.arms, arms, f"copies.{index}.arms")]
        some = _named(copies.claims, claims, f"copies.{index}.claims")
        claims += [_claim(one, copies) for one in some]
    rest = {key: value for key, value in settings.items() if key != "copies"}
    return {**rest, "arms": arms} | ({"claims": claims} if claims else {})


def _named(ids: tuple[str, ...], items: list[Any], where: str) -> list[dict[str, Any]]:
    there = {item.get("id"): item for item in items if isinstance(item, dict)}
    if missing := [name for name in ids if name not in there]:
        raise ValueError(f"{where} names {missing[0]!r}; expected an id that is written before it")
    return [there[name] for name in ids]


def _arm(arm: dict[str, Any], copies: Copies) -> dict[str, Any]:
    copy = {**arm, "id": _id(arm["id"], copies), "label": _text(arm.get("label"), copies)}
    if copies.coverage is not None:
        copy["coverage"] = copies.coverage
    if copies.world is not None:
        copy["changes"] = {**arm.get("changes", {}), "model": f"{WORLD}{copies.world}"}
        copy["baseline"] = f"{arm.get('baseline', 'base')}-{copies.world}"
        if arm.get("series"):  # a line of the coverage plot for each world
            copy["series"] = f"{arm['series']}, {copies.world} world"
    return copy


def _claim(claim: dict[str, Any], copies: Copies) -> dict[str, Any]:
    tests = [
        {**test, **{side: _id(test.get(side), copies) for side in ("arm", "versus")}}
        for test in claim.get("tests", ())
    ]
    text = _text(claim.get("text"), copies)
    return {**claim, "id": _id(claim["id"], copies), "text": text, "tests": tests}


def _id(name: str | None, copies: Copies) -> str:
    coverage = None if copies.coverage is None else f"c{copies.coverage}"
    return "-".join(part for part in (name, coverage, copies.world) if part)


def _text(text: Any, copies: Copies) -> str:
    problems = None if copies.coverage is None else f"{copies.coverage} problems"
    world = None if copies.world is None else f"{copies.world} world"
    return ", ".join(part for part in (str(text).removesuffix("."), problems, world) if part)
