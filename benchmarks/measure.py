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

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import medians_in_turn, report

from epistill.metrics import load_lexicon

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


def read_texts(path: Path) -> list[str]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line)["response"] for line in lines]


def official_counts(texts: list[str], words: tuple[str, ...]) -> None:
    """Ten `str.count` calls for each response, which is lowered once."""
    for text in texts:
        lowered = text.lower()
        {word: lowered.count(word) for word in words}


def run_measure(path: Path, workers: int) -> float:
    """Peak resident memory in MB of the largest of its processes, so far among all children."""
    command = [sys.executable, "-m", "epistill", "measure", str(path), "--json"]
    subprocess.run([*command, "--workers", str(workers)], check=True, stdout=subprocess.DEVNULL)
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


def measure_rows(folder: Path, megabytes: float, repeats: int) -> list[dict[str, Any]]:
    words = load_lexicon().words
    rows = []
    for kind, ascii_only in (("with ° ≤ — é", False), ("ASCII only", True)):
        path = folder / f"{'ascii' if ascii_only else 'mixed'}.jsonl"
        write_traces(path, megabytes, ascii_only=ascii_only)
        peak = run_measure(path, 1)
        texts = read_texts(path)
        seconds = medians_in_turn(
            {
                "counts": lambda texts=texts: official_counts(texts, words),
                "read and count": lambda p=path: official_counts(read_texts(p), words),
                "one": lambda p=path: run_measure(p, 1),
                "two": lambda p=path: run_measure(p, 2),
            },
            repeats,
        )
        rows.append(
            {
                "text": kind,
                "MB": path.stat().st_size / 1e6,
                "ten str.count s": seconds["counts"],
                "json + ten str.count s": seconds["read and count"],
                "measure s": seconds["one"],
                "two processes s": seconds["two"],
                "measure / str.count": seconds["one"] / seconds["counts"],
                "measure / (json + str.count)": seconds["one"] / seconds["read and count"],
                "two / one": seconds["two"] / seconds["one"],
                "peak MB": peak,
            }
        )
        path.unlink()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--megabytes", type=float, default=200)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure_rows(Path(folder), arguments.megabytes, arguments.repeats)
    report("epistill measure", rows, arguments.out)


if __name__ == "__main__":
    main()
