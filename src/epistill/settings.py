"""The base of every configuration record, and of records that anybody may add a kind to. No torch.

Enters: settings by name. Leaves: frozen records. A `Choice` is one of several kinds of thing, told
apart by `type`: a subclass anywhere, also in a user's own file, is one more kind.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from inspect import isabstract
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, ValidationError, model_validator
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from epistill.errors import EpistillError, did_you_mean

_Record = TypeVar("_Record", bound="Settings")

# What other trainers call it; nothing that these names resemble would be found by their letters.
_ELSEWHERE = {
    "dataset": "task",
    "batch_size": "problems_per_step",
    "num_generations": "samples_per_problem",
    "max_steps": "steps",
    "lr": "learning_rate",
}


MOST = 2**63 - 1  # of any whole number: what a tensor, a table and most readers of JSON can hold


class Settings(BaseModel):
    """Base of every configuration record: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _keys_are_known(cls, settings: Any) -> Any:
        known = [*cls.model_fields]
        for key, value in settings.items() if isinstance(settings, dict) else ():
            several = value if isinstance(value, list | tuple) else (value,)
            if any(isinstance(one, int) and abs(one) > MOST for one in several):
                raise ValueError(f"{key!r}: a number of more than 64 bits; expected a smaller one")
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


def checked(kind: type[_Record], settings: Mapping[str, Any], what: str = "") -> _Record:
    """A record of settings that anybody wrote.

    Raises:
        EpistillError: The first that does not fit, after `what`.
    """
    try:
        return kind.model_validate(settings)
    except ValidationError as error:
        raise EpistillError(f"{what}{first_fault(error)}") from error


def merged(old: Any, new: Any) -> Any:
    """Change the fields that `new` names; a record of another `type` replaces the old one whole."""
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
        return new
    if "type" in new and new["type"] != old.get("type"):
        return new
    return {**old, **{key: merged(old.get(key), value) for key, value in new.items()}}


# Whose kinds come before others of the same type name: the module of the file that is being read.
_module_first: ContextVar[str] = ContextVar("module_first", default="")


@contextmanager
def kinds_of(module: str) -> Iterator[None]:
    """Prefer the kinds that this module defines, where two modules use the same type name."""
    token = _module_first.set(module)
    try:
        yield
    finally:
        _module_first.reset(token)


class Choice(Settings):
    """One of several kinds; a class that sets `noun` is the base of them.

    A field annotated with such a base takes an instance of any subclass, or a mapping whose `type`
    names one. It is written out with the fields of what it is.

    Attributes:
        noun: What one kind is called in messages.
        type: Names the kind; a subclass sets it, as `type: Literal["mine"] = "mine"`.
    """

    noun: ClassVar[str] = "choice"
    type: Any

    @classmethod
    def kinds(cls) -> dict[str, type[Any]]:
        """The kinds that can be chosen, by type name."""
        found: dict[str, type[Any]] = {}
        for kind in _subclasses(cls):
            name = kind.model_fields["type"].default
            taken = found.get(name)
            before = taken is not None and (_own(taken) or taken.__module__ == _module_first.get())
            if not (before or isabstract(kind)) and isinstance(name, str):
                found[name] = kind
        return found

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse a kind that takes the name of one of the package's own."""
        super().__pydantic_init_subclass__(**kwargs)
        name = cls.model_fields["type"].default
        for other in _subclasses(next(c for c in cls.__mro__ if "noun" in vars(c))):
            if _own(other) and other is not cls and name == other.model_fields["type"].default:
                raise TypeError(f"{cls.noun} type {name!r} is epistill's own; use another name")

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """The base of an axis stands for all its kinds; a kind for itself."""
        if "noun" in vars(cls):
            return core_schema.no_info_plain_validator_function(cls._chosen)
        return handler(source)

    @classmethod
    def _chosen(cls, value: Any) -> Any:
        if isinstance(value, cls):
            return value
        kinds = cls.kinds()
        if isinstance(value, BaseModel) or not isinstance(value, Mapping):
            raise _refused(
                f"{type(value).__name__} is not a {cls.noun}; expected a subclass of "
                f"{cls.__module__}.{cls.__qualname__}, or a table whose type is one of "
                f"{', '.join(kinds)}"
            )
        name = value.get("type")
        if name not in kinds:
            expected = f"expected one of {', '.join(kinds)}{did_you_mean(str(name), kinds)}"
            raise _refused(f"no {cls.noun} of type {name!r}; {expected}")
        try:
            return kinds[name].model_validate(value)
        except ValidationError as error:
            raise _refused(first_fault(error)) from error

    def words(self) -> str:
        """The kind and its numbers that are not zero, for a table of methods."""
        values = [f"{k}={v:g}" for k, v in self if isinstance(v, int | float) and v]
        return " ".join([self.type.replace("_", " "), *values])


def _own(kind: type[Any]) -> bool:
    return kind.__module__.startswith("epistill.")


def _subclasses(cls: type[Any]) -> Iterator[type[Any]]:
    for kind in cls.__subclasses__():
        yield kind
        yield from _subclasses(kind)


def _refused(message: str) -> PydanticCustomError:
    return PydanticCustomError("choice", "{message}", {"message": message})


def differing_keys(old: Any, new: Any, prefix: str = "") -> list[str]:
    """Dotted names of the settings in which two configurations differ; lists by their ids."""
    if old == new:
        return []
    one, other = _by_id(old), _by_id(new)
    if not (isinstance(one, dict) and isinstance(other, dict)):
        return [prefix.rstrip(".") or "everything"]
    return [
        name
        for key in sorted({*one, *other})
        for name in (
            differing_keys(one[key], other[key], f"{prefix}{key}.")
            if key in one and key in other
            else [f"{prefix}{key}"]
        )
    ] or [f"the order of {prefix.rstrip('.')}"]


def _by_id(value: Any) -> Any:
    """A list of settings that have ids, as arms have, by these; anything else as it is."""
    if isinstance(value, list) and all(isinstance(item, dict) and "id" in item for item in value):
        return {item["id"]: item for item in value}
    return value
