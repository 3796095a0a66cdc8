r"""Reading the answer out of a response: the frames in which a response states its answer.

A frame is `\boxed{..}`, `<answer>..</answer>`, `#### ..`, a label at the start of a line (`Answer:`
or 答案：) or, after these, in a sentence (*the answer is ..*, *.. is the answer*). Among equals the
last one counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from epistill.tasks.linear_patterns import patterns, rewriter, utf8
from epistill.tasks.meant import (
    MAX_FRAMES,
    MAX_LINE,
    Framed,
    Place,
    clause_before,
    line_end,
    meant,
)

_READ, _rewrite = patterns("meant", "answers"), rewriter("answers")

MAX_PLAIN = 64
# An answer stands at the end; this many characters are looked at, so a 1 MB response costs nothing.
MAX_SEARCHED = 50_000
_DISPLAYS = {"\\[": "\\]", "$$": "$$", "```": "```"}  # what opens a block, and what closes it


def frames(text: str) -> Iterator[Framed]:
    r"""The frames of a response after its thinking, the one that counts first.

    Example:
        >>> [f.text for f in frames(r"#### 3" "\n" r"No: \boxed{5} and \boxed{8}")]
        ['5, 8', '3']
    """
    return frames_in(readable(text))


def frames_in(text: str, *, cut: bool = False) -> Iterator[Framed]:
    """`frames` of a text that went through `readable`.

    Of a response that was `cut` at a limit, only a frame that was completed counts.

    Example:
        >>> list(frames_in("The answer is 8", cut=True))
        []
    """
    for found in _found(text, cut):
        yield from (framed for *_, framed in found)


def _found(text: str, cut: bool) -> tuple[list[Place], list[Place]]:
    """Frames that stand on their own, and sentences, which count after them."""
    whole = complete(text) if cut else text
    strong = [
        *_boxes(text),
        *((*m.span(), Framed(m[1], "boxed")) for m in _READ["unbraced"].finditer(whole)),
        *((*m.span(), Framed(m[1], "tag")) for m in _READ["tagged"].finditer(text)),
        *(
            (*m.span(), Framed(_member(m), "tag"))
            for m in _READ["member"].finditer(text)
            if _own_object(text, *m.span())
        ),
        *(
            (*m.span(), Framed(m[1], "hashes"))
            for m in _READ["hashes"].finditer(whole)
            if not _READ["head"].match(m[1])  # a heading
        ),
        *_labels(whole),
    ]
    weak = [*_sentences(whole), *_elsewhere(whole)]
    return meant(text, strong, weak)


def readable(text: str) -> str:
    """The end of a text, without what follows its answer as a next turn, and styles of labels."""
    text = utf8(text[-MAX_SEARCHED:])
    for turn in islice(_READ["next_turn"].finditer(text), MAX_FRAMES):
        own = _rewrite(text[: turn.start()])
        if any(_found(own, cut=False)) and not _READ["parts"].search(own):
            return own
    return _rewrite(text)


def choice_said(text: str) -> list[Framed]:
    """*Option B is correct* or *I choose B* in a readable text, where no frame holds a letter."""
    text = text[-MAX_LINE:]
    said = [(m.end(), text[m.end() : m.end() + MAX_PLAIN]) for m in _READ["chosen"].finditer(text)]
    said += [
        (m.end(), m[1])
        for m in _READ["judged"].finditer(text)
        if not _READ["doubted"].search(_READ["sentence_end"].split(text[: m.start()])[-1])
    ]
    return [Framed(letter, "label") for _, letter in sorted(said)[-1:]]


def extract_answer(text: str) -> str | None:
    r"""The answer a response gives after its thinking; None without a frame or a short line.

    Example:
        >>> extract_answer(r"so $x=2$, hence \boxed{\frac{1}{2}}.")
        '\\frac{1}{2}'
        >>> extract_answer("She has 3 left.\n#### 3"), extract_answer("answer 18")
        ('3', '18')
        >>> extract_answer("I do not know what to say about this question, or about any other.")
    """
    text = readable(text)
    return _framed(text) or short_line(text)


def framed_answer(text: str) -> str | None:
    """`extract_answer` of frames alone."""
    return _framed(readable(text))


def _framed(text: str) -> str | None:
    return next((c for framed in frames_in(text) if (c := clean(framed.text))), None)


def short_line(text: str) -> str | None:
    """A readable text, or its reply (`A: 64`), of one short line; no box that never closes."""
    line = text.strip().strip("`").strip()
    if reply := _READ["reply"].search(line):
        line = reply[1]
    if "\n" in line or len(line) > MAX_PLAIN or "boxed" in line:
        return None
    return clean(line)


def extract_code(text: str) -> str | None:
    r"""The program a response gives: its last closed block, of Python where one is marked so.

    Example:
        >>> extract_code("So:\n```python\nprint(1)\n```\nIt prints\n```\n1\n```")
        'print(1)\n'
    """
    text = utf8(text)
    blocks = [(m[1].lower(), m[2]) for m in _READ["fenced"].finditer(text) if m[2].strip()]
    marked = [code for name, code in blocks if name in ("python", "python3", "py")]
    codes = marked or [code for _, code in blocks]
    return codes[-1] if codes else None


def clean(answer: str) -> str | None:
    """Drop markup around the answer; None if nothing is left."""
    cleaned = answer.strip(" \t\r\n*")
    if cleaned.endswith(".") and not cleaned.endswith(".."):
        cleaned = cleaned[:-1].rstrip(" \t\r\n*")
    return cleaned or None


def complete(text: str) -> str:
    """A cut text up to the end of its last sentence or line; 3. may have become 3.5.

    A question there goes too: what was to follow may have answered it.
    """
    found = _READ["completed"].match(text)
    if found and (asked := found[0].rstrip()).endswith(("?", "？")):
        found = _READ["completed"].match(asked.rstrip("?？"))
    return found[0] if found else ""


def _boxes(text: str) -> list[Place]:
    """Complete boxes, inner ones unwrapped; those that *and* or nothing parts are one."""
    opened: list[tuple[int, int] | None] = []  # start and content of each open brace that is a box
    closed: list[tuple[int, int, str]] = []
    first = text.find("box")
    begin = text.rfind("\n", 0, first) + 1 if first >= 0 else len(text)  # no token passes a line
    for token in _READ["box"].finditer(text, begin):
        said = token[0]
        if said[-1] == "{" and said != "\\{":
            opened.append((token.start(), token.end()) if len(said) > 1 else None)
        elif said == "}" and opened and (box := opened.pop()) is not None:
            content = text[box[1] : token.start()]
            while closed and closed[-1][0] > box[0]:  # inside this one
                start, end, inner = closed.pop()
                content = text[box[1] : start] + inner + text[end : token.start()]
            closed.append((box[0], token.end(), content))
    closed = [box for box in closed if not _is_operand(text, *box[:2])]
    joined: list[Place] = []
    for i, (start, end, content) in enumerate(closed):
        before = text[closed[i - 1][1] : start] if i else ""
        if i and content.strip() and content != closed[i - 1][2] and len(before) < MAX_PLAIN:
            listed = _READ["listed"].match(before)
            if listed or ("\n\n" not in before and _READ["between"].match(before)):
                link = " or " if listed or _READ["either"].search(before) else ", "
                start, _, last = joined.pop()
                content = f"{last.text}{link}{content}"
        sign = "-" if _READ["minus"].search(text[max(0, start - MAX_PLAIN) : start]) else ""
        joined.append((start, end, Framed(sign + content, "boxed")))
    return joined


def _is_operand(text: str, start: int, end: int) -> bool:
    r"""Whether a box is part of a value, as in `\sqrt{\boxed{7}}` and `1 - \boxed{7}`."""
    before, behind = text[max(0, start - MAX_PLAIN) : start], text[end : line_end(text, end)]
    return bool(
        _READ["operator"].search(before)
        or _READ["raised"].match(behind)
        or (
            "=" not in behind and (_READ["added_to"].search(before) or _READ["added"].match(behind))
        )
    )


def _member(found: Any) -> str:
    """The value of `"answer": ..`; nothing for null."""
    if found[1] is not None:
        return found[1].replace('\\"', '"').replace("\\\\", "\\")
    value = found[2] or found[3] or found[4] or ""
    return "" if value in ("null", "None") else value


def _own_object(text: str, start: int, end: int) -> bool:
    """Whether an object states the response's own answer: by what holds it, and by its members."""
    before = text[max(0, start - MAX_LINE) : start]
    holder = _READ["holder"].search(before)
    if holder and not _READ["own_object"].match(holder[1]):
        return False
    beside = before.rpartition("{")[2], text[end - 1 : end + MAX_LINE].partition("}")[0]
    return all(
        bool(m[2]) != bool(_READ["negative"].search(m[1]))
        for members in beside
        for m in _READ["judgement"].finditer(members)
    )


def _labels(text: str) -> Iterator[Place]:
    """Labels that begin a line; the value is on that line or in the next block."""
    for found in _READ["head"].finditer(text):
        ended = line_end(text, found.end())
        rest = text[found.end() : ended]
        link = _READ["link"].match(rest)
        value = rest[link.end() :] if link else rest
        # "The answer is .." is a sentence, also where it begins a line.
        headed = found[0][-1] in ":：】]" or not rest.strip(" *_#\t")
        headed = headed or bool(link and _READ["colon"].search(link[0]))
        # After a bare label: `answer 18`, `**Answer** $x$`.
        if not headed and (link or rest[0] not in " *_】]–-" or not _READ["bare"].match(rest)):
            continue
        if not value.strip(" *_#\t:：`|"):
            value = _block(text, ended)
        elif value.strip() in _DISPLAYS:
            value = _block(text, ended - len(value.lstrip()))
        elif link and "|" in link[0]:  # the cell of a table
            value = value.rstrip(" \t|")
        *_, word = _READ["word"].finditer(found[0])
        yield found.start() + word.start(), found.end(), Framed(value, "label")


def _block(text: str, start: int, *, introduced: bool = False) -> str:
    """The first paragraph after a label, or after its line with a colon; mathematics whole."""
    rest = text[start : start + MAX_LINE].lstrip()
    for opening, closing in _DISPLAYS.items():
        if rest.startswith(opening):
            end = rest.find(closing, 2)
            return rest[2:end] if end > 0 else ""
    line = _READ["bullet"].sub("", rest, 1).split("\n", 1)[0]
    if introduced or not line.rstrip().endswith(":"):
        return line
    return _block(text, text.index(line, start) + len(line), introduced=True)


def _elsewhere(text: str) -> Iterator[Place]:
    """Labels and sentences in other languages than English and Chinese."""
    for found in _READ["elsewhere"].finditer(text):
        line = text[found.end() : line_end(text, found.end())]
        value = line if line.strip(" *_") else _block(text, found.end() + len(line))
        before = clause_before(text[max(0, found.start() - 40) : found.start()])
        said = f"{before} {found[0]} {value.split('.')[0]}"
        linked = found[1] or found[2] or _READ["elsewhere_value"].match(value)
        if not linked or _READ["elsewhere_denied"].search(said):
            continue
        end = _READ["elsewhere_end"].search(value)
        yield *found.span(), Framed(value[: end.start()] if end else value, "label")


def _sentences(text: str) -> Iterator[Place]:
    """*The answer is ..* within a line, and *.. is the answer*."""
    for found in _READ["said"].finditer(text):
        end = line_end(text, found.end())
        if found[0][0] in "故应选":
            yield *found.span(), Framed(found[0][-1], "label")
        elif link := _READ["link"].match(text[found.end() : end]):
            value = text[found.end() + link.end() : end]
            ended = _READ["sentence_end"].search(f"{value}\n")
            sentence = value[: ended.start()] if ended else value
            asked = ended and ended[0][0] in "?？"
            if (asked and text[found.end() + link.end() + len(sentence) + 1 :].strip()) or (
                _READ["would_be"].search(link[0]) and _READ["conditional"].search(sentence)
            ):
                continue
            if _READ["denies"].search(link[0]):
                value = f"not {value}"
            if value.strip(" *_") in ("", *_DISPLAYS):
                value = _block(text, end - len(value.strip()))
            yield *found.span(), Framed(value, "label")
    for found in _READ["given"].finditer(text):
        yield found.start(), found.start(1), Framed(found[1], "label")
    for found in _READ["after"].finditer(text):
        before = text[max(0, found.start() - 2 * MAX_PLAIN) : found.start()].rsplit("\n", 1)[-1]
        if not _READ["doubted"].search(before) and not text[found.end() :].startswith("?"):
            sentence = _READ["sentence_end"].split(before.rstrip(" ,;.!*_"))[-1]
            yield *found.span(), Framed(sentence, "label")
