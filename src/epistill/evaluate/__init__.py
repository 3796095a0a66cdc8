"""From graded responses to numbers with intervals. Importing this package imports no torch."""

from epistill.evaluate.stats import (
    Estimate,
    bootstrap_mean,
    maj_at_k,
    paired_bootstrap,
    pass_at_k,
)

__all__ = ["Estimate", "bootstrap_mean", "maj_at_k", "paired_bootstrap", "pass_at_k"]
