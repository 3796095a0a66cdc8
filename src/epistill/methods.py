"""The published methods as points on the five axes. Torch-free.

A name *is* the paper's vetted setting; a test pins every default. Change a setting with
`method("sdpo", divergence={"alpha": 1.0})` or in a TOML file under `[method]`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from epistill.config import (
    Blend,
    Context,
    Divergence,
    FrozenWeights,
    ImportanceClip,
    Method,
    PolicyGradient,
    TopK,
    TraceSource,
)
from epistill.errors import EpistillError

PAPER = "arXiv 2603.24472"

_SDPO = Method(
    name="sdpo",
    context=Context(source="sibling"),
    teacher=FrozenWeights(),
    divergence=Divergence(alpha=0.5, support=TopK(k=100, add_tail=True, chosen_by="student")),
    token_weights=(ImportanceClip(clip=2.0),),
    blend=Blend(distillation=1.0),
    learning_rate=1e-5,
    source=f"SDPO arXiv 2601.20802 with the settings of {PAPER} section 5 (fixed teacher)",
)

METHODS: Mapping[str, Method] = {
    point.name: point
    for point in (
        Method(
            name="grpo",
            context=Context(source="none"),
            blend=Blend(distillation=0.0),
            policy_gradient=PolicyGradient(normalize_std=False, clip_low=0.2, clip_high=0.28),
            learning_rate=1e-6,
            source=f"GRPO arXiv 2402.03300 with the settings of {PAPER} section 5 (clip .2/.28, "
            "no division by std, no KL term)",
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
            name="sft-unguided",
            context=Context(source="none"),
            blend=Blend(distillation=0.0),
            traces=TraceSource(context=Context(source="none"), count=800),
            learning_rate=1e-5,
            source=f"{PAPER} section 4, 800 correct unguided traces (its learning rate is not "
            "published)",
        ),
        Method(
            name="sft-guided",
            context=Context(source="none"),
            blend=Blend(distillation=0.0),
            traces=TraceSource(context=Context(source="sibling"), count=800),
            learning_rate=1e-5,
            source=f"{PAPER} section 4, 800 correct solution-guided traces (its learning rate is "
            "not published)",
        ),
    )
}


def method(name: str, **changes: Any) -> Method:
    """A named method, with settings changed.

    Args:
        name: One of METHODS.
        **changes: Top-level fields; a mapping changes only the fields it names.

    Raises:
        EpistillError: No such method, or settings that contradict each other.

    Example:
        >>> method("sdpo", divergence={"alpha": 1.0}).divergence.support.k
        100
    """
    if name not in METHODS:
        raise EpistillError(
            f"no method {name!r}; expected one of {', '.join(METHODS)}; `epistill methods` shows "
            "them"
        )
    settings = METHODS[name].model_dump()
    for key, value in changes.items():
        old = settings.get(key)
        # A setting that changes its type is another record; it is replaced, not merged.
        same_type = isinstance(value, Mapping) and value.get("type") in (
            None,
            old.get("type") if isinstance(old, dict) else None,
        )
        settings[key] = {**old, **value} if isinstance(old, dict) and same_type else value
    try:
        return Method.model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or name
        raise EpistillError(f"method {name!r}: {where}: {first['msg']}") from error


def describe_method(point: Method) -> dict[str, str]:
    """One row of `epistill methods`: every axis in a few words."""
    support = point.divergence.support.model_dump()
    shape = {"full": "full vocabulary", "sampled_token": "sampled token"}.get(
        support["type"], f"top {support.get('k')}{' + tail' if support.get('add_tail') else ''}"
    )
    share = point.blend.distillation
    distils = share > 0
    sees = "-"
    if distils or point.traces is not None:
        shown = point.context if point.traces is None else point.traces.context
        sees = shown.source + (" without thinking" if shown.thinking == "remove" else "")
        sees += " of another problem" if shown.problem == "other" else ""
    return {
        "method": point.name,
        "teacher sees": sees,
        "teacher weights": _with_values(point.teacher.model_dump()) if distils else "-",
        "divergence": f"alpha {point.divergence.alpha:g}, {shape}" if distils else "-",
        "token weights": ", ".join(_with_values(w.model_dump()) for w in point.token_weights)
        or "-",
        "blend": "SFT on traces" if point.traces is not None else f"distillation {share:g}",
        "extra forwards": "1" if distils else "0",
        "source": point.source,
    }


def _with_values(record: Mapping[str, Any]) -> str:
    values = [f"{k}={v}" for k, v in record.items() if k != "type" and v is not None]
    return " ".join([str(record["type"]), *values])
