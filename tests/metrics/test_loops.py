"""What ends in a loop, in any language, and what only repeats a little."""

from __future__ import annotations

import random

import pytest

from epistill.metrics.loops import is_looping

WORDS = [
    "the",
    "sum",
    "of",
    "both",
    "numbers",
    "is",
    "then",
    "taken",
    "from",
    "what",
    "remains",
    "so",
    "that",
    "we",
    "get",
    "another",
    "value",
    "which",
    "is",
    "divided",
    "by",
    "three",
    "and",
    "compared",
    "with",
    "every",
    "case",
    "before",
    "we",
    "say",
    "that",
    "none",
    "of",
    "them",
    "can",
    "hold",
]


def prose(words: int, seed: int = 0) -> str:
    draw = random.Random(seed)
    return " ".join(draw.choice(WORDS) + str(draw.randrange(99)) for _ in range(words))


LOOPS = {
    "a sentence": "Wait, let me check that again. " * 80,
    "an equation": r"= 43 \\times \\frac{10}{86} " * 80,
    "a paragraph": (prose(40, seed=3) + "\n\n") * 12,
    "Chinese": "\u7b49\u7b49\uff0c\u8ba9\u6211\u518d\u68c0\u67e5\u4e00\u4e0b\u3002" * 120,
    "one character": "0" * 3000,
    "counting": "".join(f"2.4 * {i} + 1 (not divisible by 3)\n" for i in range(60)),
}


@pytest.mark.parametrize("loop", LOOPS.values(), ids=LOOPS)
def test_a_loop_is_found_wherever_it_is_cut(loop):
    for cut in (0, 1, 7, 23):
        assert is_looping(prose(200) + "\n" + loop[: len(loop) - cut])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Wait. " * 3,
        prose(600),
        "Wait, is that right? ".join(prose(50, seed=i) for i in range(8)),
        "\n".join(f"Step {i}: {prose(12, seed=i)}" for i in range(40)),
        LOOPS["a sentence"] + prose(400),  # it left the loop
        "".join(f'    case {n}:\n        return "value{n}";\n' for n in range(50)),
        "".join(f"<tr><td>{n}</td><td>{n * n}</td></tr>\n" for n in range(60)),
        "".join(f"| {n} | {n**2} | {n**3} |\n" for n in range(100)),
        "".join(f"{n} divided by 7 is {n // 7} with remainder {n % 7}.\n" for n in range(100, 200)),
    ],
    ids=[
        "nothing",
        "short",
        "prose",
        "a refrain",
        "steps",
        "a loop that was left",
        "code",
        "HTML",
        "a table",
        "a list",
    ],
)
def test_what_goes_on_is_no_loop(text):
    assert not is_looping(text)


def test_only_the_end_is_looked_at():
    """So the cost does not grow with the text: what stands before makes no difference."""
    for text in (*LOOPS.values(), prose(600)):
        end = text[-4_000:]
        assert is_looping(prose(5_000, seed=9) + text) == is_looping("x" * 250 + end)
