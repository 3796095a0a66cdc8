"""A study from its TOML file, by name (those of the package) or by path. Torch-free."""

from __future__ import annotations

from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from pydantic import ValidationError

from epistill.errors import EpistillError, did_you_mean
from epistill.inputs import read_settings
from epistill.method_import import with_methods_of
from epistill.settings import checked, first_fault
from epistill.studies.spec import StudySpec

RECIPES = "recipes/"


def shipped_studies() -> list[str]:
    """Names of the studies in the package: presets, and recipes as "recipes/NAME"."""
    return sorted(_shipped())


def _shipped() -> dict[str, Traversable]:
    return {
        prefix + entry.name.removesuffix(".toml"): entry
        for kind, prefix in (("presets", ""), ("recipes", RECIPES))
        for entry in (resources.files("epistill.studies") / kind).iterdir()
    }


def load_study(name: str) -> StudySpec:
    """Load a shipped study by name, or a TOML file by path.

    Raises:
        EpistillError: Not found, not TOML, or settings that do not fit.
    """
    found: Traversable = _shipped().get(name.removesuffix(".toml"), Path(name))
    if not found.is_file():
        raise EpistillError(
            f"no study {name!r}; expected one of {', '.join(shipped_studies())}, or a TOML file"
            f"{did_you_mean(name, shipped_studies())}"
        )
    spec = checked(StudySpec, with_methods_of(read_settings(found), found), f"study {name!r}: ")
    for some in (spec, *(spec.with_preset(preset) for preset in spec.presets)):
        for arm in some.arms:
            try:
                some.config_of(arm, some.seeds[0])
            except ValueError as error:
                said = first_fault(error) if isinstance(error, ValidationError) else error
                raise EpistillError(f"study {name!r}: arm {arm.id!r}: {said}") from error
    return spec
