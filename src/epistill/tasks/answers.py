r"""Reading the answer out of a response. One extractor for every grader.

Enters: the answer part of a response (thinking already split off). Leaves: the answer's text, or
None. Forms, in this order, the last occurrence of each: `<answer>..</answer>`, `\boxed{..}`,
`#### ..`, `Answer: ..` / `answer is ..` / `answer ..`, and a text that is nothing but one short
line.
"""

from __future__ import annotations

import re

_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
_HASHES = re.compile(r"####[ \t]*(\S[^\n]*)")
_LABELLED = re.compile(
    r"\banswer\b[ \t]*(?:\*\*)?[ \t]*(?:is[ \t]*:?|[:=])?[ \t]*(?:\*\*)?[ \t]*(\S[^\n]*)",
    re.IGNORECASE,
)
_BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{")
_FENCED = re.compile(r"^```[ \t]*(\w*)[ \t]*\n(.*?)^```[ \t]*$", re.DOTALL | re.MULTILINE)
MAX_PLAIN = 64
# An answer stands at the end; this many characters are looked at, so a 1 MB response costs nothing.
MAX_SEARCHED = 20_000


def extract_answer(text: str) -> str | None:
    r"""The answer a response gives, as text.

    Args:
        text: The response after its thinking.

    Returns:
        The answer without its frame, or None where no form above is found.

    Example:
        >>> extract_answer(r"so $x=2$, hence \boxed{\frac{1}{2}}.")
        '\\frac{1}{2}'
        >>> extract_answer("She has 3 left.\n#### 3")
        '3'
        >>> extract_answer("answer 18")
        '18'
        >>> extract_answer("I do not know what to say about this question, or about any other.")
    """
    tail = text[-MAX_SEARCHED:]
    if tagged := _TAGGED.findall(tail):
        return _clean(tagged[-1])
    boxed = last_boxed(tail)
    if boxed is not None:
        return _clean(boxed)
    for pattern in (_HASHES, _LABELLED):
        if found := pattern.findall(tail):
            return _clean(found[-1])
    stripped = tail.strip()
    short = bool(stripped) and "\n" not in stripped and len(stripped) <= MAX_PLAIN
    if short and not _BOXED.search(stripped):  # a box that never closes gives no answer
        return _clean(stripped)
    return None


def extract_code(text: str) -> str | None:
    r"""The program a response gives: its last fenced block, of Python where one is marked so.

    Args:
        text: The response after its thinking.

    Returns:
        The source, or None where no block is closed and not empty.

    Example:
        >>> extract_code("So:\n```python\nprint(1)\n```\nIt prints\n```\n1\n```")
        'print(1)\n'
    """
    blocks = [(name.lower(), code) for name, code in _FENCED.findall(text) if code.strip()]
    marked = [code for name, code in blocks if name in ("python", "python3", "py")]
    codes = marked or [code for _, code in blocks]
    return codes[-1] if codes else None


def last_boxed(text: str) -> str | None:
    r"""Content of the last complete `\boxed{..}`, braces balanced; None where there is none."""
    for match in reversed(list(_BOXED.finditer(text))):
        depth = 1
        for position in range(match.end(), len(text)):
            character = text[position]
            if character == "{" and text[position - 1] != "\\":
                depth += 1
            elif character == "}" and text[position - 1] != "\\":
                depth -= 1
            if depth == 0:
                return text[match.end() : position]
    return None


def _clean(answer: str) -> str | None:
    """Drop markup around the answer; None if nothing is left."""
    cleaned = answer.strip().strip("*").strip()
    if cleaned.endswith(".") and not cleaned.endswith(".."):
        cleaned = cleaned[:-1].rstrip()
    return cleaned or None
