"""What the live monitor costs, as a share of the step it watches, in one run.

    python benchmarks/monitor.py [--steps 20] [--threads 1] [--out FILE.json]

The lab study's own settings, 16 problems x 8 responses. Every function that exists for the monitor
is timed where the loop calls it: finding the tokens of markers, the sums of the teacher's pull,
pass@k, and the rules with their files. (Marker counts, entropies and rewards are there without it.)
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from statistics import median

import torch
from common import report

import epistill.training.batches
import epistill.training.loop
import epistill.training.run_monitor
import epistill.training.step
from epistill.config import RunConfig
from epistill.methods import method
from epistill.studies.run_arm import run

# module, name: every call that would not be there without the monitor
PARTS = (
    (epistill.training.batches, "tokens_in_spans", "marker tokens"),
    (epistill.training.step, "_pull", "pull"),
    (epistill.training.loop, "pass_at_group_size", "pass@k"),
    (epistill.training.run_monitor.RunMonitor, "observe", "rules"),
)


def measured(name, steps):
    seconds = defaultdict(float)
    originals = [(owner, attribute, getattr(owner, attribute)) for owner, attribute, _ in PARTS]

    def timed(inner, part):
        def call(*args, **kwargs):
            start = time.perf_counter()
            try:
                return inner(*args, **kwargs)
            finally:
                seconds[part] += time.perf_counter() - start

        return call

    for (owner, attribute, part), (*_, inner) in zip(PARTS, originals, strict=True):
        setattr(owner, attribute, timed(inner, part))
    shares, totals, marks = defaultdict(list), [], [time.perf_counter()]

    def after(done):
        now = time.perf_counter()
        if done:
            for *_, part in PARTS:
                shares[part].append(seconds.get(part, 0.0) / (now - marks[-1]))
            totals.append(sum(seconds.values()) / (now - marks[-1]))
        seconds.clear()
        marks.append(time.perf_counter())

    config = RunConfig.model_validate(
        {
            "model": "lab", "task": {"type": "star_search"}, "method": method(name).model_dump(),
            "sampling": {"max_new_tokens": 96}, "steps": steps, "problems_per_step": 16,
            "learning_rate": 1e-3, "microbatch_tokens": 4096, "checkpoint_every": steps + 1,
        }
    )  # fmt: skip
    try:
        with tempfile.TemporaryDirectory() as folder:
            run(config, Path(folder), save_model=False, on_step=after)
    finally:
        for owner, attribute, original in originals:
            setattr(owner, attribute, original)
    # The first step pays for warming up everything; the median does not mind.
    return {
        "method": name,
        **{f"{part} %": 100 * median(shares[part]) for *_, part in PARTS},
        "together %": 100 * median(totals),
        "worst step %": 100 * max(totals[1:]),
        "bar %": 5.0,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = [measured(name, options.steps) for name in ("sdpo", "rlsd", "grpo")]
    report("share of a step's time that the monitor takes, lab model", rows, options.out)


if __name__ == "__main__":
    main()
