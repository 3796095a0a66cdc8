"""A method in words: one row of `epistill methods` and of docs/methods.md. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from epistill.axes import (
    Context,
    FullVocabulary,
    Method,
    PurifiedTarget,
    TeacherConfidence,
    TopK,
)
from epistill.blends import ContrastShape, Convex, InputContrastShape, Regularised


def describe_method(method: Method) -> dict[str, str]:
    """Every axis in a few words.

    Returns:
        Column to cell: method, teacher sees, teacher weights, divergence, token weights, blend,
        extra forwards, source.
    """
    asks, distils = method.needs_teacher, method.distils
    shown = method.context if method.traces is None else method.traces.context
    return {
        "method": method.name,
        "teacher sees": _context(shown) if asks or method.traces is not None else "-",
        "teacher weights": _with_values(method.teacher.model_dump()) if asks else "-",
        "divergence": _divergence(method) if distils else "-",
        "token weights": ", ".join(_with_values(w.model_dump()) for w in method.token_weights)
        if distils and method.token_weights
        else "-",
        "blend": "SFT on traces" if method.traces is not None else _blend(method),
        "extra forwards": str(extra_forwards(method)),
        "source": method.source,
    }


def extra_forwards(method: Method) -> int:
    """Forward passes over a response beyond the student's own, with rollout log-probs reused."""
    passes = 0
    if method.distils:
        passes += 3 if isinstance(method.divergence.target, PurifiedTarget) else 1
    passes += any(isinstance(weight, TeacherConfidence) for weight in method.token_weights)
    passes += method.shape is not None
    if isinstance(method.shape, ContrastShape | InputContrastShape):
        passes += method.shape.negatives
    passes += isinstance(method.blend, Regularised) and method.blend.reference > 0
    return passes


def _context(context: Context) -> str:
    words = [context.source.replace("_", " ")]
    if context.fallback != "none":
        words.append(f"else {context.fallback}")
    if context.assessment:
        words.append("and assessment")
    if context.thinking == "remove":
        words.append("without thinking")
    if context.problem == "other":
        words.append("of another problem")
    return " ".join(words)


def _divergence(method: Method) -> str:
    setting = method.divergence
    name = {0.0: "forward KL", 1.0: "reverse KL"}.get(setting.alpha, f"JSD {setting.alpha:g}")
    support = setting.support
    if isinstance(support, TopK):
        tail = " + tail" if support.add_tail else ""
        where = f"{support.chosen_by}'s top {support.k}{tail}"
    else:
        where = "all tokens" if isinstance(support, FullVocabulary) else "sampled token"
    clip = f", entries <= {setting.entry_clip:g}" if setting.entry_clip is not None else ""
    target = "" if setting.target.type == "teacher" else f", {setting.target.type} target"
    return f"{name}, {where}{clip}{target}"


def _blend(method: Method) -> str:
    if isinstance(method.blend, Convex):
        return {0.0: "verifier only", 1.0: "distillation only"}.get(
            method.blend.distillation, f"distillation {method.blend.distillation:g}"
        )
    if method.shape is not None:
        return "advantage: " + _with_values(method.shape.model_dump())
    return _with_values(method.blend.model_dump())


def _with_values(record: Mapping[str, Any]) -> str:
    values = [f"{k}={v:g}" for k, v in record.items() if isinstance(v, int | float) and v]
    return " ".join([str(record["type"]).replace("_", " "), *values])
