"""`epistill measure` beside the official script's counts, and grading beside plain math-verify.

    python benchmarks/measure.py [--megabytes 200] [--repeats 3] [--out FILE.json]

Makes its own files of invented traces in a temporary folder. The peer of `measure` is the loop of
the paper's official script, ten times `text.lower().count(word)` for each response; it is timed on
texts that lie in memory already, while `measure` is timed as a process: start, reading, decoding,
markers on boundaries with positions, words, control list, self-corrections and intervals included.
Texts of models hold characters beyond ASCII; the same traces without them are timed too, since
Python's str.lower and str.count are several times faster there.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

PLAIN = (
    "So the total is {a} + {b} = {c}.",
    "The first number is {a} and the second one is {b}, so we need the rest.",
    "We divide both sides by {a} and move the other term to the right.",
    "Then x = {c}, and the sum of the digits gives a value of {b}.",
    "Let n be the number of ways in which the {a} people can sit at the table.",
    "By the triangle inequality the third side is between {a} and {b}.",
    "That means the remaining part is \\\\frac{{{a}}}{{{b}}} of the whole.",
    "Now consider the case where the last digit is even.",
    "This is the same as the previous case with the roles of the two exchanged.",
    "I also need the area of the smaller square, which has a side of {a} cm.",
    "Since the function is increasing on that interval, the maximum is at the right end.",
    "Next, 3 * {a} = {c} by the formula that was given in the problem.",
)
DOUBT = (
    "Wait, let me check that again.",
    "Hmm, that seems off by {a}.",
    "Maybe I should try {b} instead.",
    "Actually, that might be wrong. I made a mistake: {a} + {b} = {c}.",
    "Alternatively, perhaps use the ratio of {a} to {b}.",
    "That is unlikely; I checked it while waiting.",
)
BEYOND_ASCII = (
    "The angle is {a}°, so the cosine is ≈ 0.{b}.",
    "We need x ≤ {a} — that’s the condition on the domain.",
    "The product {a} × {b} is {c}, hence √{c} is not an integer.",
)


def write_traces(path: Path, megabytes: float, *, ascii_only: bool) -> None:
    """Traces of 2 to 30 KB, four to a problem; one sentence in six doubts."""
    rng = random.Random(0)
    written, number = 0, 0
    with path.open("w", encoding="utf-8") as out:
        while written < megabytes * 1e6:
            sentences = []
            for _ in range(rng.randint(30, 450)):
                draw = rng.random()
                kind = DOUBT if draw < 0.16 else BEYOND_ASCII if draw > 0.9 else PLAIN
                if ascii_only and kind is BEYOND_ASCII:
                    kind = PLAIN
                numbers = {name: rng.randint(2, 999) for name in "abc"}
                sentences.append(rng.choice(kind).format(**numbers))
            thinking = " ".join(sentences)
            record = {
                "problem_id": f"p{number // 4}",
                "sample": number % 4,
                "response": f"<think>\n{thinking}\n</think>\n\nThe answer is \\boxed{{{number}}}.",
                "finish_reason": "stop" if rng.random() < 0.9 else "length",
            }
            line = json.dumps(record, ensure_ascii=False) + "\n"
            out.write(line)
            written += len(line.encode())
            number += 1
