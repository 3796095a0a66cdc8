"""Scores from the most likely tokens that a server lists, with bounds on what it does not list."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from epistill.errors import EpistillError
from epistill.rollouts.engine import Ids, TokenScores


def top_k_scores(
    tokens: Ids,
    log_probs: NDArray[np.float64],
    top_ids: NDArray[np.int64],
    top_log_probs: NDArray[np.float64],
    *,
    mass_of: Ids | None,
    vocabulary: int,
) -> TokenScores:
    """Scores (float64) from the k most likely tokens of each position, with bounds.

    With m the probability outside the top k and p_k the smallest inside, a token outside has at
    most p_k: n asked-for tokens outside add between 0 and min(m, n p_k) to the mass, and the tail
    adds between -m log min(p_k, m) and m log((V - k) / m) to the entropy.

    Args:
        tokens: [T] the completion.
        log_probs: [T] of its tokens, exact also outside the top k.
        top_ids, top_log_probs: [T, k], in any order, without repeats.
        mass_of: Asked-for ids; None for none.
        vocabulary: V, to bound the entropy.

    Raises:
        EpistillError: Arrays that do not fit the completion.
    """
    if not len(tokens) == len(log_probs) == len(top_ids) == len(top_log_probs):
        raise EpistillError(
            f"{len(tokens)} completion tokens but scores of {len(log_probs)} and top tokens of "
            f"{len(top_ids)}; expected one of each per token; ask the server again"
        )
    p = np.exp(top_log_probs)
    wanted = np.array(sorted(set(mass_of or ())), dtype=np.int64)
    inside = np.isin(top_ids, wanted)
    ids = np.asarray(tokens, dtype=np.int64)
    # The completion's own token is known even where it is not among the top k.
    own = np.isin(ids, wanted) & ~(top_ids == ids[:, None]).any(1)
    own_mass = np.where(own, np.exp(log_probs), 0.0)
    tail = np.clip(1.0 - p.sum(1), 0.0, 1.0)
    smallest = p.min(1, initial=1.0)
    outside = len(wanted) - inside.sum(1) - own
    rest = np.clip(tail - own_mass, 0.0, None)
    mass = (p * inside).sum(1) + own_mass
    few = max(vocabulary - top_ids.shape[1], 1)
    inner = -(p * np.where(p > 0, top_log_probs, 0.0)).sum(1)
    safe = np.where(tail > 0, tail, 1.0)
    least = -tail * np.log(np.minimum(smallest, safe))
    most = np.maximum(tail * np.log(few / safe), least)
    columns = [np.asarray(log_probs, dtype=np.float64), inner + least]
    if mass_of is not None:
        columns += [mass, most - least, np.minimum(rest, outside * smallest)]
    return TokenScores(*map(torch.from_numpy, columns))
