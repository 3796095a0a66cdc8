"""Lists of words to count, as data files with a version and a source. Imports no torch.

Enters: a name of a shipped list or a path to one's own. Leaves: a `Lexicon`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

from epistill.errors import EpistillError

PAPER = "paper-en"


@dataclass(frozen=True, slots=True)
class Lexicon:
    """Words that are counted together.

    Attributes:
        name, version, source: Which list this is and where it comes from.
        language: "en" words are matched on word boundaries, ignoring case.
        words: Lower-case, without repeats.
    """

    name: str
    version: int
    source: str
    language: str
    words: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.words or len(set(self.words)) != len(self.words):
            raise EpistillError(
                f"lexicon {self.name!r} has {len(self.words)} words, "
                f"{len(set(self.words))} of them distinct; expected at least one and no repeats"
            )


def shipped_lexicons() -> list[str]:
    """Names of the lists that come with the package."""
    folder = resources.files("epistill.metrics") / "lexicons"
    return sorted(entry.name.removesuffix(".json") for entry in folder.iterdir())


@cache
def load_lexicon(name: str = PAPER) -> Lexicon:
    """Load a shipped list by name, or a JSON file with the same fields by path.

    Raises:
        EpistillError: No such list, or a file without the fields.
    """
    path = Path(name)
    if name in shipped_lexicons():
        text = (resources.files("epistill.metrics") / "lexicons" / f"{name}.json").read_text()
    elif path.is_file():
        text = path.read_text(encoding="utf-8")
    else:
        raise EpistillError(
            f"no lexicon {name!r}; expected one of {', '.join(shipped_lexicons())}, or a JSON file"
        )
    try:
        data = json.loads(text)
        return Lexicon(
            name=str(data["name"]),
            version=int(data["version"]),
            source=str(data["source"]),
            language=str(data["language"]),
            words=tuple(str(word).lower() for word in data["words"]),
        )
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise EpistillError(
            f"lexicon {name!r} could not be read ({type(error).__name__}: {error}); expected JSON "
            "with name, version, language, source and words"
        ) from error
