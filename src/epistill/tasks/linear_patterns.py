"""Regular expressions in time linear in the text, whatever a model writes: Google's RE2."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from functools import cache
from importlib import resources
from typing import Any, cast

import re2

SOURCE: dict[str, Any] = tomllib.loads(
    (resources.files("epistill.tasks") / "answer_patterns.toml").read_text(encoding="utf-8")
)


def linear_pattern(pattern: str) -> re.Pattern[str]:
    """A pattern of RE2, which has the standard interface, but no look-around.

    RE2 reads UTF-8: give it texts that went through `utf8`.

    Example:
        >>> linear_pattern(r"(a+)+$").search("a" * 50 + "b") is None
        True
    """
    return cast("re.Pattern[str]", re2.compile(pattern))


class Patterns(dict[str, re.Pattern[str]]):
    """Patterns by name, compiled when first used: most commands that import them grade nothing."""

    def __init__(self, written: Mapping[str, str | list[str]]) -> None:
        super().__init__()
        self._written = written

    def __missing__(self, name: str) -> re.Pattern[str]:
        self[name] = compiled = linear_pattern("".join(self._written[name]))
        return compiled


def patterns(*modules: str) -> Patterns:
    """The named patterns of `answer_patterns.toml` that modules use."""
    return Patterns({name: p for module in modules for name, p in SOURCE[module].items()})


def rewriter(module: str) -> Callable[[str], str]:
    """The rewrites of `answer_patterns.toml` for a module, one after the other.

    One that names literals is tried only on texts with one of them. Which of the others apply, one
    pass over the text says, as fast as a single one that does not.
    """
    written = SOURCE[module]["rewrites"]
    others = [number for number, (_, _, *literals) in enumerate(written) if not literals]

    @cache
    def compiled() -> tuple[list[tuple[re.Pattern[str], str, list[str]]], Any]:
        found = re2.Set.SearchSet()
        for number in others:
            found.Add(written[number][0])
        found.Compile()
        return [(linear_pattern(old), new, some) for old, new, *some in written], found

    def rewrite(text: str) -> str:
        rules, found = compiled()
        given, done = f"\n{text}", -1
        named = [i for i, (*_, some) in enumerate(rules) if any(map(given.__contains__, some))]
        while later := [  # in no order
            i for i in (*named, *(others[n] for n in found.Match(text) or ())) if i > done
        ]:
            done = min(later)
            pattern, new, _ = rules[done]
            text = pattern.sub(new, text)
        return text

    return rewrite


def utf8(text: str) -> str:
    """A text without lone surrogates."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()
