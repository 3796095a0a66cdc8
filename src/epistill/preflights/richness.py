"""How much a context tells: three estimators of I(y; c | x), and what the teacher does with it.

With u_t = log p(y_t | x, c, y_<t) - log p(y_t | x, y_<t):

- over the teacher's own responses, E[sum_t u_t] = KL(p(y|x,c) || p(y|x)); averaged over contexts
  it is at least I(y; c | x), with equality where p(y|x) is the mixture of p(y|x,c) over c. So: an
  upper bound on average, not per problem. Exact for responses drawn at temperature 1 without top-p,
  top-k or a length limit; otherwise it describes the responses that were drawn;
- over a held-out correct trace y*, sum_t u_t = log p(y*|x,c) - log p(y*|x), the pointwise
  information that arXiv 2603.24472 section 2 orders contexts by;
- the accuracy gap, acc(c) - acc(no context) (2605.30070).
"""

from __future__ import annotations

import numpy as np

from epistill.evaluation.evaluate import eval_rows, per_problem, problem_outcomes
from epistill.evaluation.stats import Estimate, bootstrap_mean, paired_bootstrap
from epistill.preflights.clustered_estimates import mean_of_means, ratios
from epistill.preflights.context_scores import ContextMeasurement, Student, u_nats

_GAPS = {
    "score": "accuracy_gap",
    "length_tokens": "length_gap_tokens",
    "density_per_1k_tokens": "density_gap_per_1k_tokens",
}


def richness(guided: ContextMeasurement, student: Student) -> dict[str, Estimate | None]:
    """The three estimators and the teacher's own behaviour.

    Returns:
        own_nats_per_response, own_nats_per_token; trace_nats_per_response, trace_nats_per_token;
        accuracy_gap; teacher_score, teacher_length_tokens, teacher_density_per_1k_tokens and their
        gaps to the student on the same problems. None where there was nothing to measure.
    """
    pairs = zip(guided.own_guided, guided.own_bare, strict=True)
    scored = zip(guided.trace_rows, guided.trace_guided, strict=True)
    sources = {
        "own": (guided.own, [u_nats(scores, bare) for scores, bare in pairs]),
        "trace": (
            [student.graded[i] for i in guided.trace_rows],
            [u_nats(scores, student.bare[i]) for i, scores in scored],
        ),
    }
    found: dict[str, Estimate | None] = {}
    for name, (responses, u) in sources.items():
        problems = [item.problem.id for item in responses]
        nats = np.array([float(values.sum()) for values in u])
        lengths = np.array([float(len(values)) for values in u])
        found[f"{name}_nats_per_response"] = mean_of_means(problems, nats)
        found |= ratios(problems, {f"{name}_nats_per_token": (nats, lengths)})
    rows, bare = (
        problem_outcomes(eval_rows(graded, keep_texts=0)) for graded in (guided.own, student.graded)
    )
    for measure, gap in _GAPS.items():
        ours, theirs = per_problem(rows, measure), per_problem(bare, measure)
        shared = [name for name in theirs if name in ours]
        mine = np.array([ours[name] for name in shared])
        other = np.array([theirs[name] for name in shared])
        found[f"teacher_{measure}"] = bootstrap_mean(mine) if shared else None
        found[gap] = paired_bootstrap(mine, other) if shared else None
    return found
