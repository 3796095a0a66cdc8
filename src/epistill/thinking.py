"""Thinking and answer of a response, in whatever notation a model writes them.

Enters: text. Leaves: a `SplitResponse`. The notations are data (`thinking_notations.toml`, with
their models); prompts, traces, graders and markers all cut here. Every function is linear.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

OPEN, CLOSE = "<think>", "</think>"  # what this package writes


@dataclass(frozen=True, slots=True)
class Notation:
    """How some models write thinking; the fields are those of the data file."""

    name: str
    open: Sequence[str]
    close: Sequence[str]
    models: str
    drop: Sequence[str] = ()
    prose: bool = False


@cache
def notations() -> tuple[Notation, ...]:
    """All notations that are known."""
    text = Path(__file__).with_name("thinking_notations.toml").read_text(encoding="utf-8")
    return tuple(Notation(**entry) for entry in tomllib.loads(text)["notation"])


_TAGS = {
    tag: (notation, opens)
    for notation in notations()
    if not notation.prose
    for tags, opens in ((notation.open, True), (notation.close, False))
    for tag in tags
}
# One pattern for each first character: each skips to it at the speed of memchr.
_BY_FIRST = {
    first: re.compile(
        re.escape(first)
        + f"(?=[{''.join(re.escape(c) for c in sorted({tag[1] for tag in tags}))}])(?:"
        + "|".join(re.escape(tag[1:]) for tag in sorted(tags, key=len, reverse=True))
        + ")"
    )
    for first in sorted({tag[0] for tag in _TAGS})
    for tags in [[tag for tag in _TAGS if tag[0] == first]]
}
_SECOND = frozenset(tag[1] for tag in _TAGS)
_PROSE = [
    (n, re.compile("|".join(n.open)), re.compile("|".join(n.close))) for n in notations() if n.prose
]
CLOSES = tuple(tag for tag, (_, opens) in _TAGS.items() if not opens)
_OPENING = tuple(tag for tag, (_, opens) in _TAGS.items() if opens)
_STEM = "think|thought|reason|reflect|ponder|monolog|deliberat|scratch|mind|rationale"
_LIKE_A_TAG = {
    first: re.compile(
        # Nearly every bracket of prose and mathematics is left at the look ahead.
        rf"\{first}(?=(?i:[|/a-z])[/\w:]{{3}})\|?/?"
        rf"[\w:]{{0,20}}?(?i:{_STEM})[\w:]{{0,20}}\|?\{last}"
    )
    for first, last in ("<>", "[]")
}
_FIRST_TAG = re.compile(r"(<\|?([A-Za-z][\w:-]{1,30})\|?>|\[([A-Z][A-Z_]{2,30})\])")
_OF_ANSWERS = re.compile(
    "(?:final_?)?(?:answer|response|solution|result|output|code|text|content|html|p|b|i|div|ol|ul|"
    "table|step|summary|conclusion|im_start|begin_of_text|bos|s)[0-9_]*",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class SplitResponse:
    """A response cut at its thinking tags.

    Attributes:
        thinking: Text between the tags, without them; "" where there was none; all of a text whose
            thinking was never closed.
        answer: Text before the first and after the last tag; "" where thinking was never closed.
        form: "paired" (both tags), "opened" (the prompt opened it), "unclosed" (cut inside
            thinking), "absent" (no thinking at all).
    """

    thinking: str
    answer: str
    form: Literal["paired", "opened", "unclosed", "absent"]


def split_thinking(text: str, *, opened_in_prompt: bool = False) -> SplitResponse:
    r"""Split a response into thinking and answer, in all four cases.

    A closing tag without an opening one means the prompt opened it, whether or not the caller
    knew; so the s\think context never silently becomes c=s (the paired-regex bug of TRL and of
    the paper's code). Where a text has several notations, each is cut out in turn.

    Args:
        text: The response, tags kept.
        opened_in_prompt: The prompt opened thinking; only then does a text without any tag count
            as unclosed thinking.

    Example:
        >>> split_thinking("so 18 </think> answer 18").form
        'opened'
        >>> split_thinking("[THINK]so 18[/THINK]18")
        SplitResponse(thinking='so 18', answer='18', form='paired')
        >>> split_thinking("answer 18").thinking
        ''
    """
    found = _cut(text)
    if found is None:
        if opened_in_prompt:
            return SplitResponse(text, "", "unclosed")
        return SplitResponse("", text.strip(), "absent")
    for _ in notations():  # each that is left in the answer, however often a text repeats one
        more = _cut(found.answer)
        if more is None or not more.thinking:
            break
        form = "unclosed" if more.form == "unclosed" else found.form
        found = SplitResponse(f"{found.thinking}\n{more.thinking}", more.answer, form)
    return found


def _cut(text: str) -> SplitResponse | None:
    """Cut at the tags of the notation that comes first; None where there is none."""
    begin = len(text) - len(text.lstrip())
    for notation, opening, closing in _PROSE:
        if start := opening.match(text, begin):
            end = closing.search(text, start.end())
            if end is None:
                return SplitResponse(text[start.end() :], "", "unclosed")
            thinking, answer = text[start.end() : end.start()], text[end.end() :].strip()
            return SplitResponse(_without(thinking, notation), _without(answer, notation), "paired")
    tags = _tags(text)
    if not tags:
        return None
    notation = _TAGS[tags[0][0]][0]
    tags = [tag for tag in tags if _TAGS[tag[0]][0] is notation]
    opened = [tag.span() for tag in tags if _TAGS[tag[0]][1]]
    closed = [tag.span() for tag in tags if not _TAGS[tag[0]][1]]
    if not closed or (opened and opened[-1] > closed[-1]):  # opened, and never closed after that
        edges = [0, *(edge for tag in tags for edge in tag.span()), len(text)]
        kept = "".join(text[a:b] for a, b in zip(edges[::2], edges[1::2], strict=True))
        return SplitResponse(_without(kept, notation), "", "unclosed")
    answer = text[closed[-1][1] :].strip()
    if opened and opened[0] < closed[-1]:
        before = _without(text[: opened[0][0]], notation).strip()
        answer = f"{before}\n{answer}" if before and answer else before or answer
        thinking, form = text[opened[0][1] : closed[-1][0]], "paired"
    else:
        thinking, form = text[: closed[-1][0]], "opened"
    thinking, answer = _without(thinking, notation), _without(answer, notation)
    if notation.name == "harmony" and not thinking.strip():  # the final channel alone
        form = "absent"
    return SplitResponse(thinking, answer, form)


def _tags(text: str) -> list[re.Match[str]]:
    found: list[re.Match[str]] = []
    for first, pattern in _BY_FIRST.items():
        at, tried = text.find(first), 0
        while at >= 0:
            if text[at + 1 : at + 2] in _SECOND and (tag := pattern.match(text, at)):
                found.append(tag)
            tried += 1
            if tried > 5:  # the pattern's own search is faster where there are many
                found += pattern.finditer(text, at + 1)
                break
            at = text.find(first, at + 1)
    return sorted(found, key=re.Match.start)


def _without(text: str, notation: Notation) -> str:
    for token in notation.drop:
        text = text.replace(token, "")
    return text.strip() if notation.drop else text


def with_thinking(thinking: str, answer: str, *, closed: bool = True) -> str:
    """A response whose thinking came apart, as text that `split_thinking` cuts again."""
    return f"{OPEN}{thinking}{CLOSE}{answer}" if closed or answer else f"{OPEN}{thinking}"


def blank_tags(text: str) -> str:
    """The text with spaces where tags of thinking stand; no place in it moves."""
    for pattern in _BY_FIRST.values():
        text = pattern.sub(lambda tag: " " * len(tag[0]), text)
    return text


def begins_inside(text: str, *, opened_in_prompt: bool = False) -> bool:
    """Whether a response's first character is thinking that an earlier tag opened."""
    tags = _tags(text)
    return not _TAGS[tags[0][0]][1] if tags else opened_in_prompt


def opens_thinking(prompt_text: str) -> bool:
    """Whether a rendered prompt ends inside an open block of thinking."""
    return prompt_text.rstrip().endswith(_OPENING)


def thinking_mode(prompt_text: str) -> Literal["open", "closed", "absent"]:
    """How a rendered prompt leaves thinking: inside the tag, after an emptied pair, or untouched.

    Two prompts of different modes ask for different kinds of response: comparing them compares the
    modes, not the contexts.
    """
    if opens_thinking(prompt_text):
        return "open"
    return "closed" if prompt_text.rstrip().endswith(CLOSES) else "absent"


def unknown_notation(text: str) -> str | None:
    """A tag that looks like thinking in a notation that is not known; None without one.

    Args:
        text: In which `split_thinking` found no thinking.

    Example:
        >>> unknown_notation("<ponder>so 18</ponder> 18"), unknown_notation("<answer>18</answer>")
        ('<ponder>', None)
    """
    for bracket, pattern in _LIKE_A_TAG.items():
        if bracket in text and (like := pattern.search(text)):
            return like[0]
    first = _FIRST_TAG.match(text.lstrip())
    if first is None or _OF_ANSWERS.fullmatch(name := first[2] or first[3]):
        return None
    ends = (f"</{name}>", f"<|/{name}|>", f"<|end_{name}|>", f"[/{name}]")
    end = max(text.find(tag) + len(tag) if tag in text else 0 for tag in ends)
    return first[1] if end and text[end:].strip() else None
