"""Does the distance from the start order the change of the OOD score? A question of `lab-cure`.

Enters: a shipped study (or a TOML file), a preset, a seed. Leaves, in the folder: the runs, and
kl.jsonl with a line for each trained arm. Every arm is trained as the study trains it; then fresh
responses to its OOD problems are scored by the trained model and by the one it started from. Their
mean log-ratio by token estimates KL(trained || start), in nats, without bias where nothing filters
the draws. Last, Spearman's rho over arms with the change of the OOD score (see
`what_orders_ood.py`).
Usage: python scripts/kl_after_training.py lab-cure default 10 runs/kl
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from what_orders_ood import MEASURES, print_orders

from epistill.config import RunConfig
from epistill.rollouts.collect import rendered
from epistill.rollouts.in_process_engine import InProcessEngine
from epistill.rollouts.load_model import load_model
from epistill.seeds import derive_seed
from epistill.store import write_jsonl
from epistill.studies.jobs import carry_out
from epistill.studies.load_study import load_study
from epistill.studies.run_arm import run
from epistill.studies.runner import world_jobs
from epistill.tasks.coverage import load_eval_problems

PROBLEMS, SAMPLES = 50, 2


def kl_of(config: RunConfig, folder: Path) -> dict[str, float]:
    """Of a finished run that kept its model, on the OOD sets of its evaluations."""
    start, trained = (
        InProcessEngine(load_model(name, dtype=config.dtype))
        for name in (config.model, str(folder / "model"))
    )
    log_ratios: list[np.ndarray] = []
    for chosen in config.evaluations:
        if chosen.kind != "ood":
            continue
        drawn = chosen.drawn(config.eval_sampling or config.sampling)
        asked = [(one, one.messages) for one in load_eval_problems(chosen.task, PROBLEMS)]
        _, requests = rendered(trained, asked, drawn)
        seed = derive_seed("kl_after_training", chosen.name, config.seed)
        found = trained.sample(requests, samples=SAMPLES, sampling=drawn, seed=seed)
        before = start.score([r.prompt_ids for r in found], [r.completion_ids for r in found])
        log_ratios += [
            np.array(rollout.logprobs) - scores.log_probs.numpy()
            for rollout, scores in zip(found, before, strict=True)
        ]
    by_token = np.concatenate(log_ratios)
    return {
        "kl_nats_per_token": float(by_token.mean()),
        "kl_nats_per_response": float(np.mean([one.sum() for one in log_ratios])),
    }


def of_ood(result: Mapping[str, Any], measure: str) -> float:
    """Of a finished run: a measure's mean over the problems of its OOD sets."""
    sets = [one[measure] for one in result["evaluations"].values() if one["kind"] == "ood"]
    weights = [one["problems"] for one in sets]
    return float(np.average([one["value"] for one in sets], weights=weights))


def main(study: str, preset: str, seed: int, out: Path) -> None:
    """Train, measure, and print a line for each arm and each measure."""
    spec = load_study(study).with_preset(preset)
    bases: dict[str | None, float] = {}
    lines: list[dict[str, Any]] = []
    for job in world_jobs(spec, out):
        carry_out(job.payload, job.folder)
    for arm in spec.arms:
        config = spec.config_of(arm, seed, out / "worlds")
        folder = out / "runs" / arm.id / f"seed-{seed}"
        result = run(config, folder).result
        assert result is not None
        score = of_ood(result, "score")
        if not config.steps:
            bases[arm.id] = score
            continue
        measured = {name: of_ood(result, name) for name in MEASURES}
        change = score - bases[arm.baseline]
        lines.append({"arm": arm.id, "change": change, **measured, **kl_of(config, folder)})
        print(lines[-1], flush=True)
        write_jsonl(out / "kl.jsonl", lines)
    print_orders(lines, (*MEASURES, "kl_nats_per_token", "kl_nats_per_response"))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]))
