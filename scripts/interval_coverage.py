"""How often the 95 % intervals hold the truth, in simulated worlds (docs/metrics.md, "Coverage").

One seed: scores of problems whose difficulty is drawn from a Beta distribution. Pairs: two equal
models on the same problems. Seeds: a difference with seed, problem, interaction and sampling noise
around a true 0; beside our interval the one that draws seeds and problems again.
Usage: python scripts/interval_coverage.py [worlds, default 2000].
"""

from __future__ import annotations

import sys

import numpy as np

from epistill.evaluation.paired import paired_test
from epistill.evaluation.stats import bootstrap_mean, resampled_sums

DRAWS = 2000
ONE_SEED = (
    (200, 4, 1, 1), (30, 16, 1, 1), (30, 16, 0.5, 0.5), (30, 4, 2, 2), (12, 4, 1, 1), (5, 4, 1, 1),
    (30, 16, 19, 1), (30, 16, 50, 0.5), (128, 4, 50, 0.5),
)  # fmt: skip
PAIRS = ((200, 4), (30, 16), (12, 4), (5, 4))
SEEDS = (
    (3, 200, 4, 0.0), (3, 200, 4, 0.01), (3, 200, 4, 0.02), (3, 200, 4, 0.03), (3, 200, 4, 0.05),
    (3, 200, 4, 0.1), (3, 30, 16, 0.03), (3, 30, 16, 0.1), (5, 200, 4, 0.05), (10, 200, 4, 0.05),
    (2, 200, 4, 0.05),
)  # fmt: skip


def percentile(table: np.ndarray) -> tuple[float, float]:
    """What the crossed bootstrap says: seeds and problems drawn again, quantiles of the means."""
    by_seed = resampled_sums(table.T, resamples=DRAWS) / table.shape[1]
    if len(table) == 1:
        means = by_seed[:, 0]
    else:
        weights = np.random.default_rng(0).multinomial(
            len(table), [1 / len(table)] * len(table), size=DRAWS
        )
        means = (by_seed * weights / len(table)).sum(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def say(name: str, hits: int, before: int, worlds: int) -> None:
    """One line: how often ours and the percentile interval hold the truth."""
    print(f"{name}: {hits / worlds:.3f} (percentiles {before / worlds:.3f})", flush=True)


def main(worlds: int) -> None:
    rng = np.random.default_rng(20261126)
    for problems, samples, a, b in ONE_SEED:
        hits = before = flat = 0
        for _ in range(worlds):
            scores = rng.binomial(samples, rng.beta(a, b, problems)) / samples
            found = bootstrap_mean(scores, resamples=DRAWS)
            low, high = percentile(scores[None])
            hits += found.low <= a / (a + b) <= found.high
            before += low <= a / (a + b) <= high
            flat += found.low == found.high
        say(f"one seed: {problems} problems x {samples}, Beta({a}, {b})", hits, before, worlds)
        print(f"    without width {flat / worlds:.3f}")
    for problems, samples in PAIRS:
        hits = before = below = 0
        for _ in range(worlds):
            chance = rng.beta(1, 1, problems)
            ours, theirs = rng.binomial(samples, chance, (2, problems)) / samples
            test = paired_test(ours, theirs, resamples=DRAWS)
            low, high = percentile((ours - theirs)[None])
            hits += test.difference.low <= 0 <= test.difference.high
            before += low <= 0 <= high
            below += test.p_value < 0.05
        say(f"pair: {problems} problems x {samples}", hits, before, worlds)
        print(f"    p < .05 in {below / worlds:.3f}")
    for seeds, problems, samples, deviation in SEEDS:
        hits = before = 0
        for _ in range(worlds):
            base = rng.beta(1, 1, problems)
            chance = (
                base
                + rng.normal(0, deviation, (seeds, 1))
                + rng.normal(0, 0.05, (seeds, problems))
                + rng.normal(0, 0.1, problems)
            )
            inside = np.clip(chance, 0, 1)
            ours = rng.binomial(samples, inside) / samples + chance - inside
            gaps = ours - rng.binomial(samples, base, (seeds, problems)) / samples
            found = bootstrap_mean(gaps)
            low, high = percentile(gaps)
            hits += found.low <= 0 <= found.high
            before += low <= 0 <= high
        name = f"{seeds} seeds: {problems} problems x {samples}, seed deviation {deviation}"
        say(name, hits, before, worlds)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2000)
