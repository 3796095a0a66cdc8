"""Lists of words to count, as data files with a version and a source. Imports no torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from epistill.errors import MALFORMED, EpistillError, did_you_mean
from epistill.metrics.words import fold

PAPER = "paper-en"


@dataclass(frozen=True, slots=True)
class Lexicon:
    """Words that are counted together.

    Attributes:
        name, version, source: Which list this is and where it comes from.
        language: For people; how a word is matched follows from its own letters (see `words`).
        words: Lower-case, without repeats.
        exceptions: Longer words that contain one of `words` and are not counted.
        control: Name of the list of ordinary words of like frequency that is counted beside it;
            None where there is none.

    Example:
        >>> Lexicon("mine", 1, "my notes", "en", words=("um", "er")).words
        ('um', 'er')
    """

    name: str
    version: int
    source: str
    language: str
    words: tuple[str, ...]
    exceptions: tuple[str, ...] = ()
    control: str | None = None

    def __post_init__(self) -> None:
        phrases = (*self.words, *self.exceptions)
        if not self.words or "" in phrases or len(set(phrases)) != len(phrases):
            raise EpistillError(
                f"lexicon {self.name!r} has {len(self.words)} words and {len(self.exceptions)} "
                "exceptions; expected at least one word, none of them empty, and no repeats"
            )


def shipped_lexicons() -> list[str]:
    """Names of the lists that come with the package.

    Example:
        >>> shipped_lexicons()[2:5]
        ['control-en', 'control-zh', 'epistemic-zh']
    """
    folder = resources.files("epistill.metrics") / "lexicons"
    return sorted(entry.name.removesuffix(".json") for entry in folder.iterdir())


def load_lexicon(name: str | Lexicon = PAPER) -> Lexicon:
    """Load a shipped list by name, or a JSON file with the same fields by path.

    A list that is loaded already is returned as it is.

    Raises:
        EpistillError: No such list, or a file without the fields.

    Example:
        >>> load_lexicon("paper-en").words[:3]
        ('wait', 'hmm', 'perhaps')
    """
    if isinstance(name, Lexicon):
        return name
    if name in _shipped():
        return _shipped()[name]
    path = Path(name)
    if not path.is_file():
        raise EpistillError(
            f"no lexicon {name!r}; expected one of {', '.join(_shipped())}, or a JSON file"
            f"{did_you_mean(name, _shipped())}"
        )
    return _read(name, path)


@cache
def _shipped() -> dict[str, Lexicon]:
    folder = resources.files("epistill.metrics") / "lexicons"
    return {name: _read(name, folder / f"{name}.json") for name in shipped_lexicons()}


def _read(name: str, source: Traversable) -> Lexicon:
    try:
        data = json.loads(source.read_text(encoding="utf-8"))
        return Lexicon(
            name=str(data["name"]),
            version=int(data["version"]),
            source=str(data["source"]),
            language=str(data["language"]),
            words=_words(data["words"]),
            exceptions=_words(data.get("exceptions", [])),
            control=_control(data.get("control")),
        )
    except EpistillError:
        raise
    except (OSError, *MALFORMED) as error:
        raise EpistillError(
            f"lexicon {name!r} could not be read ({type(error).__name__}: {error}); expected JSON "
            "with name, version, language, source and words"
        ) from error


def words_named(words: str) -> tuple[str, ...]:
    """The words of "lexicon:NAME"; any other text is one.

    Example:
        >>> words_named("lexicon:paper-en")[0], words_named("so then")
        ('wait', ('so then',))
    """
    name = words.removeprefix("lexicon:")
    return (words,) if name == words else load_lexicon(name).words


def _words(words: Any) -> tuple[str, ...]:
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise TypeError(f"words are {str(words)[:40]!r}, not a list of texts")
    "".join(words).encode()  # refuses half a surrogate pair, which nothing that counts can hold
    return tuple(map(fold, words))


def _control(name: Any) -> str | None:
    if not isinstance(name, str | None):
        raise TypeError(f"control is {str(name)[:40]!r}, not the name of a list")
    return name
