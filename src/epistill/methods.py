"""The published methods as points on the five axes. Torch-free.

A name *is* the published setting; a test pins every default. Change a setting with
`method("sdpo", divergence={"alpha": 1.0})` or in a TOML file under `[method]`. Where a source
leaves something open, `source` says what is inferred. "mine.py:name" is a method of one's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from epistill.axes import (
    Context,
    EmaWeights,
    FrozenWeights,
    LiveWeights,
    Method,
    SnapshotWeights,
    TraceSource,
)
from epistill.blends import Convex, PolicyGradient, Regularised, Routed, Shaped
from epistill.errors import EpistillError, did_you_mean
from epistill.method_import import is_method_file, method_from_file
from epistill.settings import first_fault, merged
from epistill.shapes import (
    AscentShape,
    ContrastShape,
    EntropyDirectedShape,
    InputContrastShape,
    RatioShape,
    ReversedRatioShape,
)
from epistill.targets import Divergence, FullVocabulary, PurifiedTarget, TopK
from epistill.token_weights import ImportanceClip, PositionRise, TeacherConfidence, TokenRange

PAPER = "arXiv 2603.24472"
_NONE, _SIBLING, _SOLUTION = (Context(source=s) for s in ("none", "sibling", "solution"))
_PPO = PolicyGradient(normalize_std=True, clip_low=0.2, clip_high=0.2)
_OPSD_DIVERGENCE = Divergence(alpha=0.0, support=FullVocabulary(), entry_clip=0.05)
_FIRST_1024 = TokenRange(up_to=1024)


def _verifier(name: str, source: str, **settings: Any) -> Method:
    return Method(
        name=name,
        context=_NONE,
        blend=Convex(distillation=0.0),
        learning_rate=1e-6,
        source=source,
        **settings,
    )


def _sft(name: str, context: Context, what: str) -> Method:
    return Method(
        name=name,
        context=_NONE,
        blend=Convex(distillation=0.0),
        traces=TraceSource(context=context, count=800),
        learning_rate=1e-5,
        source=f"{PAPER} section 4, 800 correct {what} traces (learning rate not published)",
    )


_SDPO = Method(
    name="sdpo",
    context=_SIBLING,
    teacher=FrozenWeights(),
    divergence=Divergence(alpha=0.5, support=TopK(k=100, add_tail=True, chosen_by="student")),
    token_weights=(ImportanceClip(clip=2.0),),
    learning_rate=1e-5,
    source=f"SDPO arXiv 2601.20802 with the settings of {PAPER} section 5 (fixed teacher)",
)

_POINTS = (
    _verifier(
        "grpo",
        f"GRPO arXiv 2402.03300 with the settings of {PAPER} section 5 (clip .2/.28, dual clip 3 "
        "as in its code, no division by std, no KL term)",
        policy_gradient=PolicyGradient(clip_low=0.2, clip_high=0.28, dual_clip=3.0),
    ),
    _verifier(
        "dapo",
        "DAPO arXiv 2503.14476: clip-higher, token mean, no KL; groups without signal leave the "
        "mean (its resampling of such groups is not done)",
        policy_gradient=PolicyGradient(normalize_std=True, drop_uniform_groups=True),
    ),
    _verifier(
        "dr-grpo",
        "Dr.GRPO arXiv 2503.20783: no division by std, sum over a constant length",
        policy_gradient=PolicyGradient(normalize_std=False, clip_high=0.2),
        reduction="constant_length",
    ),
    _SDPO,
    _SDPO.model_copy(
        update={
            "name": "sdpo-no-think",
            "context": Context(source="sibling", thinking="remove"),
            "source": f"{PAPER} section 5, c = s without thinking",
        }
    ),
    Method(
        name="opsd",
        context=_SOLUTION,
        divergence=_OPSD_DIVERGENCE,
        token_weights=(_FIRST_1024,),
        learning_rate=5e-6,
        source="OPSD arXiv 2601.18734 v2: forward KL, each vocabulary entry clipped at .05 before "
        "the sum, first 1,024 tokens; sample at temperature 1.1",
    ),
    Method(
        name="sdft",
        context=_SOLUTION,
        teacher=EmaWeights(rate=0.01),
        divergence=Divergence(alpha=0.0, support=FullVocabulary()),
        token_weights=(TokenRange(skip_first=3),),
        learning_rate=2e-5,
        source="SDFT arXiv 2601.19897: forward KL as in all its results (text says reverse), EMA "
        ".01; first 3 tokens skipped as in a fork of its launch script",
    ),
    Method(
        name="rlsd",
        context=_SOLUTION,
        teacher=LiveWeights(),
        blend=Shaped(shape=RatioShape()),
        policy_gradient=_PPO,
        reduction="sequence_mean",
        learning_rate=1e-6,
        source="RLSD arXiv 2604.03128: strength .5 falling to 0 over 50 steps; learning rate from "
        "re-implementations; THU-BPM/RLCSD's RLSD is another variant: a snapshot every 10, token "
        "mean, u against the current log-probs",
    ),
    Method(
        name="rlrt",
        context=_SOLUTION,
        teacher=LiveWeights(),
        blend=Shaped(shape=ReversedRatioShape()),
        policy_gradient=_PPO,
        learning_rate=1e-6,
        source="RLRT arXiv 2605.10781: RLSD's ratio reversed, on right responses only; strength 1 "
        "and clip 1 are the defaults of a re-implementation (coldsakrua/OPSD_Analysis); teacher "
        "weights, reduction, clip of the surrogate and rate are inferred (as RLSD)",
    ),
    Method(
        name="rlcsd",
        context=Context(source="sibling", pick="random"),
        teacher=SnapshotWeights(every=10),
        blend=Shaped(shape=ContrastShape()),
        policy_gradient=_PPO,
        learning_rate=1e-6,
        source="RLCSD arXiv 2606.11709: tau .02, strength .5, K 4, snapshot every 10; division by "
        "std is inferred",
    ),
    Method(
        name="dasd",
        context=_SOLUTION,
        teacher=LiveWeights(),
        blend=Shaped(shape=EntropyDirectedShape()),
        policy_gradient=_PPO,
        learning_rate=1e-6,
        source="DASD arXiv 2605.22263: the top 20 % of the student's entropies are pushed away; "
        "beta, the normaliser of u, teacher weights and rate are inferred",
    ),
    Method(
        name="antisd",
        context=Context(source="sibling", fallback="solution", assessment=True),
        teacher=LiveWeights(),
        blend=Shaped(shape=AscentShape()),
        policy_gradient=_PPO,
        learning_rate=1e-6,
        source="AntiSD arXiv 2605.11609, Alg. 1 and Table 5; division by std is inferred",
    ),
    Method(
        name="srpo",
        context=_SIBLING,
        teacher=EmaWeights(rate=0.05),
        divergence=Divergence(alpha=0.5, support=TopK(chosen_by="teacher")),
        token_weights=(ImportanceClip(clip=2.0), TeacherConfidence(beta=1.0)),
        blend=Routed(),
        policy_gradient=_PPO.model_copy(update={"dual_clip": 3.0}),
        learning_rate=5e-6,
        source="SRPO arXiv 2604.02288: beta 1, teacher's top 100, EMA .05; dual clip 3 as in "
        "THU-BPM/RLCSD; how its losses are summed and over what the weight's mean goes are "
        "inferred",
    ),
    Method(
        name="sdpg",
        context=Context(source="answer"),
        teacher=LiveWeights(),
        divergence=Divergence(alpha=1.0, support=FullVocabulary(), cap_nats=20.0, tempered=False),
        blend=Regularised(distillation=1e-3, reference=1e-3),
        policy_gradient=PolicyGradient(
            normalize_std=True, clip_high=0.28, dual_clip=10.0, drop_uniform_groups=True
        ),
        learning_rate=1e-6,
        source="SDPG arXiv 2606.04036: 1e-3 and 1e-3 as in its launch script, reverse KL over the "
        "full vocabulary, at most 20 nats, the teacher's logits untempered, clip .2/.28, dual clip "
        "10, ramps and A > 0 gate off as in its code; filtered groups leave the verifier's mean "
        "(its resampling of them is not done)",
    ),
    Method(
        name="pw-opsd",
        context=_SOLUTION,
        divergence=_OPSD_DIVERGENCE,
        token_weights=(_FIRST_1024, PositionRise()),
        reduction="sequence_mean",
        learning_rate=5e-6,
        source="PW-OPSD arXiv 2605.21606: (.25, .30, .10), clip .05; sample at temperature 1.1",
    ),
    Method(
        name="purified-opsd",
        context=_SOLUTION,
        divergence=Divergence(alpha=0.5, support=FullVocabulary(), target=PurifiedTarget()),
        token_weights=(_FIRST_1024,),
        learning_rate=5e-6,
        source="Purified OPSD arXiv 2607.02234: beta 1, bound 10; generalised JSD, its alpha is "
        "not published: .5",
    ),
    Method(
        name="credit",
        context=Context(source="feedback"),
        teacher=LiveWeights(),
        blend=Shaped(shape=InputContrastShape()),
        learning_rate=1e-6,
        source="after CREDIT arXiv 2605.11613: its abstract gives the decomposition; every "
        "constant is inferred",
    ),
    _sft("sft-unguided", _NONE, "unguided"),
    _sft("sft-guided", _SIBLING, "solution-guided"),
)
METHODS: Mapping[str, Method] = {point.name: point for point in _POINTS}


def method(name: str, **changes: Any) -> Method:
    """A named method, with settings changed.

    Args:
        name: One of METHODS, or "path/to/mine.py:name" for a `Method` that this file defines. The
            file is imported: it runs as any script of yours would.
        **changes: Top-level fields; a mapping changes only the fields it names.

    Raises:
        EpistillError: No such method, or settings that contradict each other.

    Example:
        >>> method("sdpo", divergence={"alpha": 1.0}).divergence.support.k
        100
    """
    if is_method_file(name):
        point = method_from_file(name)
    elif name in METHODS:
        point = METHODS[name]
    else:
        raise EpistillError(
            f"no method {name!r}; expected one of {', '.join(METHODS)} (`epistill methods` shows "
            f"them), or FILE.py:NAME of your own{did_you_mean(name, METHODS)}"
        )
    settings = point.model_dump()
    for key, value in changes.items():
        settings[key] = merged(settings.get(key), value)
    try:
        return Method.model_validate(settings) if changes else point
    except ValidationError as error:
        raise EpistillError(f"method {name!r}: {first_fault(error)}") from error
