"""Sampling the next batch on a server while this one trains, beside waiting for each other.

    python benchmarks/ahead.py [--methods grpo sdpo] [--steps 8] [--repeats 5] [--out FILE.json]

Two processes of one thread: a server that speaks vLLM's HTTP with the lab's model (that of the
tests; only its transport is made up), and the trainer. Medians of the time of a step, the first
two of each run left out: a step ahead there is nothing to wait for yet. For 8 GPUs by stated rates:
docs/scale.md.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from common import report

from epistill.inputs import load_run_config
from epistill.rollouts.load_model import load_model
from epistill.studies.run_arm import run

sys.path.insert(0, str(Path(__file__).parents[1]))
LEFT_OUT = 2


def serve(connection):
    """Until the other side closes."""
    from tests.helpers.fake_vllm import FakeVllm

    torch.set_num_threads(1)
    with FakeVllm(load_model("lab")) as server:
        connection.send(server.url)
        connection.poll(None)


def seconds_per_step(url, method, steps, seed, ahead):
    """[steps - 2]: of a run that begins with the lab's own weights."""
    config = load_run_config(
        None,
        {
            "model": "lab", "task": "star-search", "method": method, "steps": steps, "seed": seed,
            "problems_per_step": 16, "samples_per_problem": 8, "monitor": "off",
            "sampling": {"max_new_tokens": 200},
            "rollouts": {"engine": "vllm", "urls": [url], "model": "m", "ahead": ahead},
        },
    )  # fmt: skip
    with TemporaryDirectory() as folder:
        store = run(config, Path(folder), save_model=False)
        taken = store.timing()[LEFT_OUT:]
    return [row["rollout_seconds"] + row["update_seconds"] for row in taken]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", nargs="+", default=["grpo", "sdpo"])
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    context.Process(target=serve, args=(theirs,), daemon=True).start()
    url, rows = ours.recv(), []
    for method in options.methods:
        found: dict[bool, list[float]] = {False: [], True: []}
        for repeat in range(options.repeats):
            for ahead in found:
                found[ahead] += seconds_per_step(url, method, options.steps, repeat, ahead)
        waiting, together = (statistics.median(found[ahead]) for ahead in (False, True))
        row = {"method": method, "in turn s": waiting, "ahead s": together}
        rows.append({**row, "in turn / ahead": waiting / together})
    title = f"a step of the lab's model, medians of {options.repeats} x {options.steps - LEFT_OUT}"
    report(title, rows, options.out)
    ours.close()


if __name__ == "__main__":
    main()
