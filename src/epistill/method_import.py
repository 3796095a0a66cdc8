"""Methods of one's own: a Python file that the user names, and what of it is a `Method`. No torch.

Enters: "mine.py:name" from a command line, a TOML file or a call. Leaves: the `Method`, with the
file's hash. Only such a name is ever imported, never one that stands in a record, a model folder, a
data file, a checkpoint or a report: there, `Method.file` is compared and nothing else.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Callable
from importlib.abc import InspectLoader
from importlib.resources.abc import Traversable
from pathlib import Path
from types import CodeType
from typing import Any

from pydantic import ValidationError

from epistill.axes import Method, MethodFile
from epistill.errors import EpistillError, first_line
from epistill.json_files import open_file


def is_method_file(name: Any) -> bool:
    """Whether a method's name is that of a file and what it defines, "mine.py:name"."""
    return isinstance(name, str) and (
        name.endswith(".py") or name.rpartition(":")[0].endswith(".py")
    )


def with_methods_of(settings: Any, path: Path | Traversable) -> Any:
    """The settings of a file, the paths of its methods made absolute: they are from its folder.

    A method is named by a value under "method" (or its "name"), or is a key (of learning rates).

    Args:
        settings: At any depth.
        path: Of the file. TOML is written by its user; a record (JSON) may be anybody's, and names
            no code to import.

    Raises:
        EpistillError: A record's method is of a Python file.
    """
    record = path.name.endswith(".json")

    def own(name: Any) -> Any:
        if not is_method_file(name):
            return name
        if not record:
            return str(Path(str(path)).resolve().parent / name)
        raise EpistillError(
            f"{path} is a record and its method is of a Python file, {name}; nothing is imported "
            f"because a record says so: name the file, --method PATH/{Path(name).name}"
        )

    return _renamed(settings, own)


def without_folders(settings: Any) -> Any:
    """Settings for a record: where the file of a method lies is no part of what it is."""
    return _renamed(settings, lambda name: Path(name).name if is_method_file(name) else name)


def _renamed(value: Any, change: Callable[[Any], Any], key: str = "") -> Any:
    """The settings with every name of a method changed."""
    if isinstance(value, dict):
        named = key in ("method", "file")
        return {
            change(k): change(v) if named and k == "name" else _renamed(v, change, k)
            for k, v in value.items()
        }
    if isinstance(value, list):
        return [_renamed(item, change) for item in value]
    return change(value) if key == "method" else value


def method_from_file(name: str) -> Method:
    """The method that a file defines; the file is imported, once for the same contents.

    Raises:
        EpistillError: No such file, it does not run, or it defines no such method.
    """
    path, _, wanted = name.rpartition(":") if not name.endswith(".py") else (name, "", "")
    try:
        with open_file(Path(path)) as content:
            code = content.read()
    except OSError as error:
        raise EpistillError(f"no file {path}; expected a Python file with a Method") from error
    file = MethodFile(
        name=f"{Path(path).name}:{wanted}",
        sha256=hashlib.sha256(code).hexdigest(),
        path=str(Path(path).resolve()),
    )
    if not file.is_loaded:
        _import(file, code)
    there = vars(sys.modules[file.module])
    found = there.get(wanted)
    if isinstance(found, Method):
        return found.model_copy(update={"file": file})
    kind = "nothing" if found is None else f"a {type(found).__name__}"
    methods = [n for n, value in there.items() if isinstance(value, Method)]
    raise EpistillError(
        f"{path} defines {kind} of the name {wanted!r}; expected FILE.py:NAME of an "
        f"epistill.axes.Method: {', '.join(methods) or 'it defines none'}"
    )


def _import(file: MethodFile, code: bytes) -> None:
    spec = importlib.util.spec_from_loader(file.module, _Loader(file.path, code))
    assert spec is not None and spec.loader is not None
    module = sys.modules[file.module] = importlib.util.module_from_spec(spec)
    module.__file__ = file.path
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[file.module]
        said = error.errors()[0]["msg"] if isinstance(error, ValidationError) else first_line(error)
        raise EpistillError(f"{file.path} does not run: {type(error).__name__}: {said}") from error


class _Loader(InspectLoader):
    """Runs the bytes that were hashed; a cached .pyc may be of other ones."""

    def __init__(self, path: str, code: bytes) -> None:
        self._path, self._code = path, code

    def get_source(self, fullname: str) -> str:
        return importlib.util.decode_source(self._code)

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self._code, self._path)
