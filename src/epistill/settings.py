"""The base of every configuration record. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from epistill.errors import did_you_mean

# What other trainers call it; nothing that these names resemble would be found by their letters.
_ELSEWHERE = {
    "dataset": "task",
    "batch_size": "problems_per_step",
    "num_generations": "samples_per_problem",
    "max_steps": "steps",
    "lr": "learning_rate",
}


class Settings(BaseModel):
    """Base of every configuration record: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _keys_are_known(cls, settings: Any) -> Any:
        known = [*cls.model_fields]
        for key in settings if isinstance(settings, dict) else ():
            if key not in known:
                near = did_you_mean(str(key), known)
                if (here := _ELSEWHERE.get(key)) in known:
                    near = f"; did you mean {here!r}?"
                expected = near or f"; expected some of {', '.join(known)}"
                raise ValueError(f"{key!r}: Extra inputs are not permitted{expected}")
        return settings


def first_fault(error: ValidationError) -> str:
    """The first thing that does not fit, on one line: where, what was expected, what was found."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] in ("literal_error", "union_tag_invalid"):
        facts = first.get("ctx", {})
        choices = str(facts.get("expected") or facts.get("expected_tags"))
        value = facts.get("tag", first.get("input"))
        message += did_you_mean(str(value), re.findall(r"'([^']*)'", choices))
    scalar = isinstance(first.get("input"), str | int | float | bool)
    found = f" (found {first['input']!r})"[:120] if where and scalar else ""
    return " ".join(f"{where}{': ' if where else ''}{message}{found}".split())


def merged(old: Any, new: Any) -> Any:
    """Change the fields that `new` names; a record of another `type` replaces the old one whole."""
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
        return new
    if "type" in new and new["type"] != old.get("type"):
        return new
    return {**old, **{key: merged(old.get(key), value) for key, value in new.items()}}
