"""Write examples/data: invented problems and traces, so that every command of the README runs.

Nothing here was said by a model. `base` doubts and repairs most of its slips; `tuned` mostly states
what it has. Both slip alike.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[1] / "examples" / "data"
DOUBTS = (
    "Wait, let me check that again.",
    "Hmm, that may be off.",
    "Maybe I should add the tens first.",
    "Actually, is that right?",
)


def write(folder: Path = FOLDER) -> None:
    draw = random.Random("epistill examples/data")
    problems = [_problem(draw, i) for i in range(24)]
    _lines(folder / "problems.jsonl", problems)
    for side, step in (("base", 1), ("tuned", 40)):
        rows = [_trace(draw, problem, side, n) for problem in problems for n in range(3)]
        _lines(folder / f"{side}.jsonl", rows)
        # As verl's trainer writes a step's rollouts into its rollout_data_dir.
        dumped = [
            {
                "input": row["question"],
                "output": row["response"],
                "gts": row["answer"],
                "score": float(str(row["response"]).endswith(f"{{{row['answer']}}}")),
                "step": step,
            }
            for row in rows[:24]
        ]
        _lines(folder / "verl" / f"{step}.jsonl", dumped)


def _problem(draw: random.Random, i: int) -> dict[str, Any]:
    a, b, c = (draw.randrange(12, 90) for _ in range(3))
    if i % 2 == 0:
        question, answer, steps = f"What is {a} + {b}?", a + b, f"{a} + {b} = {a + b}"
    else:
        question, answer = f"What is {a} * {b} - {c}?", a * b - c
        steps = f"{a} * {b} = {a * b}, and {a * b} - {c} = {answer}"
    solution = f"{steps}. \\boxed{{{answer}}}"
    return {"id": f"p{i:02}", "question": question, "answer": str(answer), "solution": solution}


def _trace(draw: random.Random, problem: dict[str, Any], side: str, sample: int) -> dict[str, Any]:
    steps, right = problem["solution"].partition(". ")[0], int(problem["answer"])
    slips = draw.random() < (0.45 if "*" in problem["question"] else 0.1)
    said = ["So I have to work this out step by step."]
    if side == "base" or draw.random() < 0.2:
        said.append(draw.choice(DOUBTS))
        if slips and draw.random() < 0.7:
            said.append(f"I get {right + 10}. {draw.choice(DOUBTS)}")
            slips = False
    answer = right + 10 if slips else right
    said.append("That gives the answer." if slips else f"{steps}.")
    return {
        "problem_id": problem["id"],
        "question": problem["question"],
        "answer": problem["answer"],
        "sample": sample,
        "response": " ".join([*said[side == "tuned" and not sample :], f"\\boxed{{{answer}}}"]),
    }


def _lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    write()
