"""`epistill measure` beside the official script's counts, and grading beside plain math-verify.

    python benchmarks/measure.py [--megabytes 200] [--responses 3000] [--repeats 5]
        [--out FILE.json]

Makes its own files of invented traces in a temporary folder. The peer of `measure` is the loop of
the paper's official script, ten times `text.lower().count(word)` for each response. "counting" is
like for like: the same ten words in the same texts in memory, ours with boundaries, positions and
the number of words. "measure" is the command beside a script that reads the file and runs that
loop, both as processes: four lexicons with their control list, Chinese, self-corrections and
intervals included. "measuring" is `traces.measure.measure` without the start of an interpreter, by
one process and by two.
Texts of models hold characters beyond ASCII; the same traces without them are timed too, since
Python's str.lower and str.count are several times faster there.
The peer of `grade` is a script that calls math-verify on one response after another, without a time
limit; both are timed as processes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import medians_in_turn, report

from epistill.metrics import load_lexicon
from epistill.metrics.scan import Scanner
from epistill.metrics.words import make_buffer
from epistill.traces.measure import measure_files
from epistill.traces.options import Options

BATCH = 36  # responses, half a megabyte: what `measure` takes at a time
PEAK = """
import runpy, sys
sys.argv = ["epistill", *sys.argv[1:]]
try:
    runpy.run_module("epistill", run_name="__main__")
finally:  # of this process alone; getrusage would begin with its parent's
    with open("/proc/self/status", encoding="utf-8") as status:
        peak = next(line for line in status if line.startswith("VmHWM"))
    print(peak.split()[1], file=sys.stderr)
"""
SCRIPT = """
import json, sys
totals = dict.fromkeys(sys.argv[2:], 0)
with open(sys.argv[1], encoding="utf-8") as lines:
    for line in lines:
        text = json.loads(line)["response"].lower()
        for word in totals:
            totals[word] += text.count(word)
print(totals)
"""
SEQUENTIAL = """
import json, sys
from math_verify import parse, verify
for line in open(sys.argv[1], encoding="utf-8"):
    row = json.loads(line)
    verify(parse("$" + row["answer"] + "$", parsing_timeout=None),
           parse(row["response"], parsing_timeout=None), timeout_seconds=None)
"""

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


def our_counts(texts: list[str], scanner: Scanner) -> None:
    """Markers on boundaries, their positions, substrings, words."""
    for start in range(0, len(texts), BATCH):
        scanner.scan(make_buffer(texts[start : start + BATCH]))


def run(*arguments: str) -> None:
    """One process, its output dropped."""
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)


def run_measure(path: Path, workers: int) -> None:
    """The command as a process."""
    run("-m", "epistill", "measure", str(path), "--json", "--workers", str(workers))


def peak_mb(path: Path) -> float:
    """Peak resident memory of the command with one process."""
    command = [sys.executable, "-c", PEAK, "measure", str(path), "--json", "--workers", "1"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stderr.splitlines()[-1]) / 1024


def write_answers(path: Path, rows: int) -> None:
    """Boxed answers, half of them right, in forms that need algebra to be compared."""
    rng = random.Random(0)
    with path.open("w", encoding="utf-8") as out:
        for number in range(rows):
            a, b = rng.randint(1, 60), rng.randint(2, 60)
            gold, same = rng.choice(
                (
                    (f"\\frac{{{a}}}{{{b}}}", f"\\frac{{{2 * a}}}{{{2 * b}}}"),
                    (f"{a * b}", f"{a} \\cdot {b}"),
                    (f"[{a}, {a + b}]", f"[{a}, {a + b}]"),
                    (f"{a}\\sqrt{{{b}}}", f"\\sqrt{{{a * a * b}}}"),
                    (f"x^2 + {a}x", f"x(x + {a})"),
                )
            )
            said = same if rng.random() < 0.5 else f"{a + b + 1}"
            record = {
                "problem_id": f"p{number}",
                "answer": gold,
                "response": f"So \\boxed{{{said}}}.",
            }
            out.write(json.dumps(record) + "\n")


def grade_rows(folder: Path, count: int, repeats: int) -> list[dict[str, Any]]:
    """`grade` with one and two processes beside a sequential script."""
    path, graded = folder / "answers.jsonl", str(folder / "graded.jsonl")
    write_answers(path, count)
    command = ("-m", "epistill", "grade", str(path), "--out", graded, "--workers")
    seconds = medians_in_turn(
        {
            "plain": lambda: run("-c", SEQUENTIAL, str(path)),
            "one": lambda: run(*command, "1"),
            "two": lambda: run(*command, "2"),
        },
        repeats,
    )
    return [
        {
            "responses": count,
            "math-verify s": seconds["plain"],
            "grade s": seconds["one"],
            "two processes s": seconds["two"],
            "math-verify / grade": seconds["plain"] / seconds["one"],
            "math-verify / two": seconds["plain"] / seconds["two"],
        }
    ]


def measure_rows(folder: Path, megabytes: float, repeats: int) -> list[dict[str, Any]]:
    words, scanner = load_lexicon().words, Scanner((load_lexicon(),))
    rows = []
    for kind, ascii_only in (("with ° ≤ — é", False), ("ASCII only", True)):
        path = folder / f"{'ascii' if ascii_only else 'mixed'}.jsonl"
        write_traces(path, megabytes, ascii_only=ascii_only)
        peak = peak_mb(path)
        texts = read_texts(path)
        seconds = medians_in_turn(
            {
                "counts": lambda texts=texts: official_counts(texts, words),
                "ours": lambda texts=texts: our_counts(texts, scanner),
                "script": lambda p=path: run("-c", SCRIPT, str(p), *words),
                "one": lambda p=path: run_measure(p, 1),
                "two": lambda p=path: run_measure(p, 2),
                "call one": lambda p=path: measure_files([p], Options(), workers=1),
                "call two": lambda p=path: measure_files([p], Options(), workers=2),
            },
            repeats,
        )
        rows.append(
            {
                "text": kind,
                "MB": path.stat().st_size / 1e6,
                "ten str.count s": seconds["counts"],
                "counting s": seconds["ours"],
                "str.count / counting": seconds["counts"] / seconds["ours"],
                "script s": seconds["script"],
                "measure s": seconds["one"],
                "script / measure": seconds["script"] / seconds["one"],
                "script / measure, processor": seconds["script, processor"]
                / seconds["one, processor"],
                "measure, two processes s": seconds["two"],
                "two / one": seconds["two"] / seconds["one"],
                "measuring s": seconds["call one"],
                "measuring, two processes s": seconds["call two"],
                "measuring: two / one": seconds["call two"] / seconds["call one"],
                "peak MB": peak,
            }
        )
        path.unlink()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--megabytes", type=float, default=200)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--responses", type=int, default=3000, help="to grade")
    given = parser.parse_args()
    # As where it is installed: modules are compiled once (in the warm-up), as the peers' are.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    with tempfile.TemporaryDirectory() as folder:
        measured = measure_rows(Path(folder), given.megabytes, given.repeats)
        graded = grade_rows(Path(folder), given.responses, given.repeats)
    report("epistill measure", measured, given.out)
    report("epistill grade", graded, given.out and given.out.with_suffix(".grade.json"))


if __name__ == "__main__":
    main()
