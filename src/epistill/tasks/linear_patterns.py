"""Regular expressions in time linear in the text, whatever a model writes: Google's RE2."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
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


@cache
def patterns(module: str) -> dict[str, re.Pattern[str]]:
    """The named patterns of `answer_patterns.toml` that a module uses."""
    named = {name: p for name, p in SOURCE[module].items() if name != "rewrites"}
    return {name: linear_pattern("".join(parts)) for name, parts in named.items()}


def rewriter(module: str) -> Callable[[str], str]:
    """The rewrites of `answer_patterns.toml` for a module, one after the other.

    One that names literals is tried only on texts with one of them. Which of the others apply, one
    pass over the text says, as fast as a single one that does not.
    """
    rules = [(linear_pattern(old), new, some) for old, new, *some in SOURCE[module]["rewrites"]]
    others = [number for number, (*_, literals) in enumerate(rules) if not literals]
    found = re2.Set.SearchSet()
    for number in others:
        found.Add(rules[number][0].pattern)
    found.Compile()

    def rewrite(text: str) -> str:
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
