"""Checks annotations, shapes included, at every call into the package.

The modules that speak of shapes are few. Binding the sizes of tensors at every call of the others
would take a third of the test run.
"""

from __future__ import annotations

import ast
import sys
from dataclasses import is_dataclass
from functools import partial, update_wrapper
from importlib.abc import MetaPathFinder
from inspect import isclass
from pathlib import Path
from types import CellType, FunctionType

import jaxtyping
from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeDecorHintNonpepException

SOURCE = Path(__file__).resolve().parents[2] / "src"
UNCHECKED = {
    "epistill.tasks.linear_patterns",  # gives out RE2's patterns as `re`'s
    "epistill.studies.check_names",  # its types are of a module that imports it
}
# As for every static checker, an int will do where a float is expected.
check = partial(beartype, conf=BeartypeConf(is_pep484_tower=True))


class _TypesToo(MetaPathFinder):
    """Modules that are checked begin with what they import for annotations alone.

    Their code is compiled here: while jaxtyping's own loader carries out a module, whatever that
    one imports, torch and transformers too, does not find its compiled code either.
    """

    def __init__(self, checked):
        self._checked = checked

    def find_spec(self, fullname, path=None, target=None):
        spec = self._checked.find_spec(fullname, path, target)
        if spec is not None:
            loader = spec.loader

            def exec_module(module):
                source = loader.get_data(module.__file__)
                if b"TYPE_CHECKING" in source:
                    for node in ast.parse(source).body:
                        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
                            code = compile(ast.Module(node.body, []), module.__file__, "exec")
                            exec(code, vars(module))
                exec(loader.source_to_code(source, module.__file__), vars(module))

            loader.exec_module = exec_module
        return spec


def inner_checks(typechecker):
    """Checks of functions within functions, which are made anew at each call of the outer one.

    Their checks are compiled at the first and put around the others: a millisecond each, a third of
    the tests of servers. The function that is compiled for holds no variable of the outer one.
    """
    made = {}

    def checked(one):
        key = one.__module__, one.__code__
        if key not in made:
            empty = one.__closure__ and tuple(CellType() for _ in one.__closure__)
            blank = FunctionType(one.__code__, one.__globals__, one.__name__, None, empty)
            blank = update_wrapper(blank, one, updated=())
            del blank.__wrapped__
            blank.__annotations__ = dict(one.__annotations__)
            found = typechecker(blank)
            made[key] = None if found is blank else found
            assert found is blank or found.__kwdefaults__["__beartype_func"] is blank
        if (wrapper := made[key]) is None:
            return one
        again = FunctionType(wrapper.__code__, wrapper.__globals__, wrapper.__name__)
        again.__kwdefaults__ = {**wrapper.__kwdefaults__, "__beartype_func": one}
        return update_wrapper(again, one)

    return checked


def check_annotations():
    """Before the package is imported."""
    paths = [path for path in (SOURCE / "epistill").rglob("*.py") if path.stem != "__init__"]
    names = {".".join(path.relative_to(SOURCE).with_suffix("").parts): path for path in paths}
    shaped = {name for name, path in names.items() if "jaxtyping" in path.read_text("utf-8")}
    assert shaped
    by_shape, inner = jaxtyping.jaxtyped, inner_checks(check)

    def jaxtyped(*, typechecker):
        """What the hook puts before every function and class."""

        def checked(one):
            if one.__module__ in shaped:
                return by_shape(one, typechecker=typechecker)
            if isinstance(one, FunctionType) and "<locals>" in one.__qualname__:
                return inner(one)
            if not isclass(one):
                hints = dict(one.__annotations__)
                try:
                    return typechecker(one)
                except BeartypeDecorHintNonpepException:  # pydantic's, within its own classes,
                    one.__annotations__ = hints  # which are left alone as texts
                    return by_shape(one, typechecker=typechecker)
            if is_dataclass(one):
                one.__init__ = typechecker(one.__init__)
            return one

        return checked

    jaxtyping.jaxtyped = jaxtyped
    jaxtyping.install_import_hook(sorted({*names, "epistill.cli"} - UNCHECKED), f"{__name__}.check")
    sys.meta_path[0] = _TypesToo(sys.meta_path[0])
