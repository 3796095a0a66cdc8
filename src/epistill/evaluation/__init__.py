"""From graded responses to numbers with intervals. Importing this package imports no torch."""

from epistill.evaluation.paired import (
    PairedTest,
    holm,
    minimum_detectable_difference,
    paired_ratio_test,
    paired_ratio_tests,
    paired_test,
)
from epistill.evaluation.stats import (
    Estimate,
    avg_at_k,
    bootstrap_mean,
    bootstrap_ratio,
    maj_at_k,
    paired_bootstrap,
    pass_at_k,
)

__all__ = [
    "Estimate",
    "PairedTest",
    "avg_at_k",
    "bootstrap_mean",
    "bootstrap_ratio",
    "holm",
    "maj_at_k",
    "minimum_detectable_difference",
    "paired_bootstrap",
    "paired_ratio_test",
    "paired_ratio_tests",
    "paired_test",
    "pass_at_k",
]
