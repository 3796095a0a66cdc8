"""A run's configuration as a TOML file that says of every key what it is. Torch-free.

    epistill train --print-config > run.toml

Enters: a resolved `RunConfig`. Leaves: text that `epistill train` reads back as the same
configuration; keys without a value are comments.
"""

from __future__ import annotations

import inspect
import json
import re
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from epistill.axes import Method
from epistill.config import NONE_IN_TOML, RunConfig
from epistill.methods import METHODS

WIDTH = 100
_ENTRY = re.compile(r"^(\w[\w, ]*): (.*(?:\n[ ]{4}.*|\n(?=\s*\n[ ]{4}))*)", re.M)


def config_toml(settings: Mapping[str, Any]) -> str:
    """Every key of a run with its meaning, unit, choices and default.

    Args:
        settings: What is already chosen; the rest has its default.
    """
    return "\n".join(_lines(RunConfig, settings, ())) + "\n"


def _lines(
    kind: type[BaseModel], settings: Mapping[str, Any], path: tuple[str, ...]
) -> Iterator[str]:
    docs = field_docs(kind)
    tables: list[tuple[str, type[BaseModel], Any]] = []
    for name, field in kind.model_fields.items():
        default = None if field.is_required() else field.get_default(call_default_factory=True)
        value = settings.get(name, default)
        off = NONE_IN_TOML.get(name) if kind is RunConfig and value is None else None
        record = None if off else _record(field, value)
        if record is not None and record is not Method:
            tables.append((name, record, value))
            continue
        yield from _comment(docs.get(name, ""), field)
        if isinstance(value, Method) and value == METHODS.get(value.name):
            value = value.name
        value = off or value
        yield f"# {name} =" if value is None else f"{name} = {_toml(value)}"
        yield ""
    for name, record, value in tables:
        where = (*path, name)
        yield from _comment(docs.get(name, ""), kind.model_fields[name])
        chosen = value.model_dump() if isinstance(value, BaseModel) else value
        yield f"[{'.'.join(where)}]" if chosen is not None else f"# [{'.'.join(where)}]"
        for line in _lines(record, chosen or {}, where):
            yield line if chosen is not None or not line or line.startswith("#") else f"# {line}"


def _record(field: FieldInfo, value: Any) -> type[BaseModel] | None:
    """The record that a field holds: the chosen one of a union, else the first."""
    kinds = [k for k in _flat(field.annotation) if inspect.isclass(k) and issubclass(k, BaseModel)]
    if get_origin(field.annotation) is tuple or not kinds:
        return None
    if isinstance(value, BaseModel):
        return type(value)
    wanted = value.get("type") if isinstance(value, Mapping) else None
    tags = {k.model_fields["type"].default: k for k in kinds if "type" in k.model_fields}
    return tags.get(wanted, kinds[0])


def _flat(annotation: Any) -> list[Any]:
    parts = get_args(annotation)
    if get_origin(annotation) is Literal or not parts:
        return [annotation]
    return [leaf for part in parts for leaf in _flat(part)]


def _comment(doc: str, field: FieldInfo) -> Iterator[str]:
    choices = [
        choice
        for leaf in _flat(field.annotation)
        if get_origin(leaf) is Literal
        for choice in get_args(leaf)
    ]
    said = [doc.rstrip(".")] if doc else []
    if choices:
        said.append("one of " + ", ".join(json.dumps(choice) for choice in choices))
    if field.is_required():
        said.append("required")
    for line in textwrap.wrap("; ".join(said), WIDTH - 2):
        yield f"# {line}"


def field_docs(kind: type[BaseModel]) -> dict[str, str]:
    """What the class's docstring says of each field under "Attributes:", on one line each."""
    text = inspect.getdoc(kind) or ""
    _, _, attributes = text.partition("Attributes:\n")
    docs: dict[str, str] = {}
    for names, doc in _ENTRY.findall(textwrap.dedent(attributes)):
        docs |= dict.fromkeys(names.split(", "), " ".join(doc.split()))
    return docs


def _toml(value: Any) -> str:
    if isinstance(value, BaseModel):
        value = value.model_dump()
    if isinstance(value, Mapping):
        inner = ", ".join(f"{k} = {_toml(v)}" for k, v in value.items() if v is not None)
        return f"{{ {inner} }}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value, ensure_ascii=False)
