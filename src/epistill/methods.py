"""The published methods as points on the five axes (`methods.toml`), and methods of one's own.

A test pins every default. Change a setting with `method("sdpo", divergence={"alpha": 1.0})` or in a
TOML file under `[method]`. "mine.py:name" is a method of one's own. Torch-free.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from epistill.axes import Method
from epistill.errors import EpistillError, did_you_mean
from epistill.method_import import is_method_file, method_from_file
from epistill.settings import checked, merged

_TABLES = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
METHODS: Mapping[str, Method] = {
    name: Method.model_validate({"name": name, **table}) for name, table in _TABLES.items()
}


def method(name: str, **changes: Any) -> Method:
    """A named method, with settings changed.

    Args:
        name: One of METHODS, or "path/to/mine.py:name" for a `Method` that this file defines. The
            file is imported: it runs as any script of yours would.
        **changes: Top-level fields; a mapping changes only the fields it names.

    Raises:
        EpistillError: No such method, or settings that contradict each other.

    Example:
        >>> method("sdpo", divergence={"alpha": 1.0}).divergence.support.k
        100
    """
    if is_method_file(name):
        point = method_from_file(name)
    elif name in METHODS:
        point = METHODS[name]
    else:
        raise EpistillError(
            f"no method {name!r}; expected one of {', '.join(METHODS)} (`epistill methods` shows "
            f"them), or FILE.py:NAME of your own{did_you_mean(name, METHODS)}"
        )
    settings = point.model_dump()
    for key, value in changes.items():
        settings[key] = merged(settings.get(key), value)
    return checked(Method, settings, f"method {name!r}: ") if changes else point
