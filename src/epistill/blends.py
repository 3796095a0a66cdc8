"""The fifth axis: how the teacher's signal and the verifier's are put together. Imports no torch.

A blend decides which rows are distilled, which are reinforced, and with what advantage; the shapes
are the ways in which a teacher's log-probs may change an advantage token by token.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from epistill.settings import Settings


class PolicyGradient(Settings):
    """The verifier's side of the blend.

    Attributes:
        normalize_std: Divide advantages by the group's standard deviation (original GRPO).
        clip_low: Lower clip of the ratio.
        clip_high: Upper clip of the ratio (DAPO's clip-higher).
        drop_uniform_groups: Groups whose rewards are all equal do not count in the mean (DAPO draws
            new ones in their place).
    """

    normalize_std: bool = False
    clip_low: float = Field(default=0.2, gt=0.0, lt=1.0)
    clip_high: float = Field(default=0.28, gt=0.0)
    drop_uniform_groups: bool = False


class RatioShape(Settings):
    """A [(1 - s) + s clip(exp(sign(A) u), low, high)], s falling linearly to 0 over decay_steps.

    Source: RLSD 2604.03128. decay_steps None keeps s.
    """

    type: Literal["ratio"] = "ratio"
    strength: float = Field(default=0.5, ge=0.0, le=1.0)
    decay_steps: int | None = Field(default=50, ge=1)
    low: float = 0.8
    high: float = 1.2


class AscentShape(Settings):
    """A - g strength phi(u), phi(u) = (softplus(u) - log 2) / 2: away from the teacher.

    The gate g is 0 for warmup_steps; the mean over them of the batch median of the teacher's
    entropy is H_warm. Then g turns 1 when the median reaches H_warm and 0 when it falls below
    gate_off H_warm. Source: AntiSD 2605.11609, Alg. 1; g right after the warm-up is inferred (on).
    """

    type: Literal["ascent"] = "ascent"
    strength: float = Field(default=0.5, ge=0.0)
    gate_off: float = Field(default=0.93, gt=0.0)
    warmup_steps: int = Field(default=5, ge=1)


class ContrastShape(Settings):
    """Sign-preserving clamp of A + r, r = clip(beta strength tanh(e / tau), -bound, bound).

    e = log p_T(y | c+) - log mean_k p_T(y | c-_k) over up to `negatives` wrong siblings (others
    fill up). Tokens with |r| > gate take this path, the rest keep A; each path is a mean of its
    own, the first weighted by eta. Rows without both contexts leave the update.
    Source: RLCSD 2606.11709.
    """

    type: Literal["contrast"] = "contrast"
    tau: float = Field(default=0.02, gt=0.0)
    beta: float = 1.0
    strength: float = 0.5
    bound: float = Field(default=2.0, gt=0.0)
    gate: float = Field(default=0.02, ge=0.0)
    eta: float = Field(default=1.0, ge=0.0)
    negatives: int = Field(default=4, ge=1)


class EntropyDirectedShape(Settings):
    """A + beta tanh((tau - H) / sigma_H) sigmoid(|d| - 1) d, d = u / mean |u| of the response.

    H is the student's entropy, tau its `quantile` within the response, sigma_H the mean absolute
    deviation. Source: DASD 2605.22263 (quantile .20); beta, the normaliser of u and the side of the
    quantile are not published where we could read them: inferred.
    """

    type: Literal["entropy_directed"] = "entropy_directed"
    beta: float = 1.0
    quantile: float = Field(default=0.8, gt=0.0, lt=1.0)


class InputContrastShape(Settings):
    """verifier A + u - strength mean_k u_k: the part of the teacher's signal that is about x.

    u_k is the log-ratio of a teacher that sees the same context under another problem's question.
    Source: CREDIT 2605.11613, whose abstract gives the decomposition but no constants: strength,
    the number of negatives and the verifier's share are inferred.
    """

    type: Literal["input_contrast"] = "input_contrast"
    strength: float = 1.0
    negatives: int = Field(default=1, ge=1)
    verifier: float = Field(default=0.0, ge=0.0)


Shape = Annotated[
    RatioShape | AscentShape | ContrastShape | EntropyDirectedShape | InputContrastShape,
    Field(discriminator="type"),
]


class Convex(Settings):
    """loss = distillation L_D + (1 - distillation) L_PG."""

    type: Literal["convex"] = "convex"
    distillation: float = Field(default=1.0, ge=0.0, le=1.0)


class Routed(Settings):
    """Wrong responses with a context are distilled, all others reinforced; one mean over both.

    Source: SRPO 2604.02288; how its two losses are summed is inferred.
    """

    type: Literal["routed"] = "routed"


class Regularised(Settings):
    """loss = L_PG + distillation(k) L_D + reference (log p - log p_start)^2 / 2.

    distillation(k) rises over warmup_steps and falls over the last decay_steps (0: no ramp).
    Source: SDPG 2606.04036 (1e-3, 1e-3).

    Attributes:
        only_positive: Distil only rows with a positive advantage (in the paper's loss, off in its
            code).
    """

    type: Literal["regularised"] = "regularised"
    distillation: float = Field(default=1e-3, gt=0.0)
    reference: float = Field(default=1e-3, ge=0.0)
    warmup_steps: int = Field(default=0, ge=0)
    decay_steps: int = Field(default=0, ge=0)
    only_positive: bool = False


class Shaped(Settings):
    """loss = L_PG with advantages that the teacher's log-probs shape token by token."""

    type: Literal["shaped"] = "shaped"
    shape: Shape


Blend = Annotated[Convex | Routed | Regularised | Shaped, Field(discriminator="type")]
