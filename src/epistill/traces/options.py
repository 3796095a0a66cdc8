"""What `measure` and its siblings are asked: which words, fields and groups of any traces."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from epistill.metrics.lexicon import Lexicon, load_lexicon

DEFAULT_LEXICONS = ("paper-en", "epistemic-zh")


@dataclass(frozen=True, slots=True)
class Options:
    """What to measure and where to find it.

    Attributes:
        lexicons: Names, paths or lists (`metrics.lexicon`); read here, once, so that a file that
            changes while others are read is not counted in two versions.
        controls: The lists that `lexicons` name as their controls; read with them.
        by: Field whose values make groups; None makes one group.
        response_field, problem_field: None looks through the usual names (`traces.fields`).
        tokenizer: Folder with a `tokenizer.json`.
        opened: The prompts ended inside `<think>`, whatever the records say.
        keep: Traces to keep for the page, drawn by `seed`.
        filter: Of lm-evaluation-harness, whose rows count; `settle` finds it.
        note: What a reader must know of the problems' key; `settle` finds it.
    """

    lexicons: tuple[str | Lexicon, ...] = DEFAULT_LEXICONS
    controls: tuple[Lexicon, ...] = ()
    by: str | None = None
    response_field: str | None = None
    problem_field: str | None = None
    tokenizer: Path | None = None
    opened: bool = False
    keep: int = 0
    seed: int = 0
    filter: str | None = None
    note: str | None = None

    def __post_init__(self) -> None:
        if self.controls and not any(isinstance(one, str) for one in self.lexicons):
            return  # `replace` of options that were read
        lexicons, controls = list(map(load_lexicon, self.lexicons)), list[Lexicon]()
        for i, one in enumerate(lexicons):
            if one.control is not None:
                controls.append(load_lexicon(one.control))
                # By its own name, where it was named by its path.
                lexicons[i] = replace(one, control=controls[-1].name)
        object.__setattr__(self, "lexicons", tuple(lexicons))
        object.__setattr__(self, "controls", tuple(controls))

    @property
    def lists(self) -> tuple[Lexicon, ...]:
        """All lists that are counted, each once, controls last."""
        return tuple(dict.fromkeys(map(load_lexicon, (*self.lexicons, *self.controls))))
