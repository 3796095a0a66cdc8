"""A method in words: one row of `epistill methods` and of docs/methods.md. Torch-free."""

from __future__ import annotations

from epistill.axes import Context, Method


def describe_method(method: Method) -> dict[str, str]:
    """Every axis in a few words.

    Returns:
        Column to cell: method, teacher sees, teacher weights, divergence, token weights, blend,
        extra forwards, source.
    """
    asks, distils = method.needs_teacher, method.blend.distils
    shown = method.context if method.traces is None else method.traces.context
    weights = ", ".join(weight.words() for weight in method.token_weights) if distils else ""
    return {
        "method": method.name,
        "teacher sees": _context(shown) if asks or method.traces is not None else "-",
        "teacher weights": method.teacher.words() if asks else "-",
        "divergence": method.divergence.words() if distils else "-",
        "token weights": weights or "-",
        "blend": "SFT on traces" if method.traces is not None else method.blend.words(),
        "extra forwards": str(extra_forwards(method)),
        "source": method.source or ("-" if method.file is None else method.file.name),
    }


def extra_forwards(method: Method) -> int:
    """Forward passes over a response beyond the student's own, with rollout log-probs reused."""
    target = 1 + len(method.divergence.target.views) if method.blend.distils else 0
    return target + method.needs.forward_passes


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
