"""epistill: a laboratory for on-policy self-distillation of language models.

Every name below is imported when it is first used: `import epistill` alone costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from epistill.library.model_functions import evaluate, preflight, study, train
    from epistill.library.trace_functions import compare, edit, grade, measure
    from epistill.methods import method
    from epistill.objective import self_distillation_loss

__version__ = "0.1.0"
__all__ = [
    "__version__",
    "compare",
    "edit",
    "evaluate",
    "grade",
    "measure",
    "method",
    "preflight",
    "self_distillation_loss",
    "study",
    "train",
]
_HOMES = {
    **dict.fromkeys(("evaluate", "preflight", "study", "train"), "library.model_functions"),
    **dict.fromkeys(("compare", "edit", "grade", "measure"), "library.trace_functions"),
    "method": "methods",
    "self_distillation_loss": "objective",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
