"""Checks annotations, shapes included, at every call into the packages that compute."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

SOURCE = Path(__file__).resolve().parents[2] / "src"
# Where arrays and estimates are made. Elsewhere a fake of the tests, or a loop over every row, would
# have to be mended first.
PACKAGES = (
    "objective", "evaluation", "metrics", "teacher", "comparison", "rollouts", "training", "studies",
    "preflights", "report", "lab", "tasks", "readers",
)  # fmt: skip
# Of the top level: a method's choices and the run's settings, world and reading.
MODULES = ("axes", "blends", "inputs", "method_import", "methods", "shapes", "targets", "token_weights", "world")  # fmt: skip
# The first checks the fields that a user's file gives after the record is made; the second names a
# protocol of pydantic that cannot be checked at run time; the third gives out RE2's patterns as `re`'s.
UNCHECKED = {
    "epistill.metrics.lexicon", "epistill.rollouts.vllm_api", "epistill.tasks.linear_patterns",
}  # fmt: skip
# As for every static checker, an int will do where a float is expected.
check = partial(beartype, conf=BeartypeConf(is_pep484_tower=True))


def check_annotations():
    """Before the package is imported: in modules whose annotations exist at run time."""
    modules = [
        ".".join(path.relative_to(SOURCE).with_suffix("").parts)
        for package in PACKAGES
        for path in (SOURCE / "epistill" / package).rglob("*.py")
        if path.stem != "__init__" and "TYPE_CHECKING" not in path.read_text(encoding="utf-8")
    ]
    modules += [f"epistill.{name}" for name in MODULES]
    install_import_hook([m for m in modules if m not in UNCHECKED], f"{__name__}.check")
