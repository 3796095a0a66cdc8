"""The named methods' defaults are the published settings (field.md 1.6, 2.1)."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from epistill.config import Method, RunConfig
from epistill.errors import EpistillError
from epistill.methods import METHODS, method

PINNED = {
    "grpo": {
        "context.source": "none",
        "blend.distillation": 0.0,
        "policy_gradient.normalize_std": False,
        "policy_gradient.clip_low": 0.2,
        "policy_gradient.clip_high": 0.28,
        "learning_rate": 1e-6,
        "reduction": "token_mean",
    },
    "sdpo": {
        "context.source": "sibling",
        "context.thinking": "keep",
        "teacher.type": "frozen",
        "divergence.alpha": 0.5,
        "divergence.support.type": "top_k",
        "divergence.support.k": 100,
        "divergence.support.add_tail": True,
        "divergence.support.chosen_by": "student",
        "divergence.entry_clip": None,
        "blend.distillation": 1.0,
        "learning_rate": 1e-5,
    },
    "sdpo-no-think": {
        "context.source": "sibling",
        "context.thinking": "remove",
        "teacher.type": "frozen",
    },
    "sft-unguided": {
        "traces.count": 800,
        "traces.context.source": "none",
        "blend.distillation": 0.0,
    },
    "sft-guided": {
        "traces.count": 800,
        "traces.context.source": "sibling",
        "blend.distillation": 0.0,
    },
}


def look(settings, path):
    for part in path.split("."):
        settings = settings[part]
    return settings


@pytest.mark.parametrize("name", METHODS)
def test_defaults_are_pinned(name):
    settings = METHODS[name].model_dump()
    assert {path: look(settings, path) for path in PINNED[name]} == PINNED[name]
    assert METHODS[name].source


def test_sdpo_clips_importance_at_two():
    (weight,) = METHODS["sdpo"].token_weights
    assert (weight.type, weight.clip) == ("importance_clip", 2.0)


def test_changes_touch_only_what_they_name():
    changed = method("sdpo", divergence={"alpha": 1.0}, teacher={"type": "ema", "rate": 0.01})
    assert changed.divergence.alpha == 1.0
    assert changed.divergence.support == METHODS["sdpo"].divergence.support
    assert changed.teacher.rate == 0.01
    assert METHODS["sdpo"].divergence.alpha == 0.5


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("spdo", {}, "no method 'spdo'"),
        ("sdpo", {"beta": 1}, "Extra inputs"),
        ("sdpo", {"teacher": {"type": "trust-region"}}, "tag 'trust-region'"),
        ("sdpo", {"context": {"source": "none"}}, "teacher and student would agree"),
        ("sdpo", {"divergence": {"support": {"type": "sampled_token"}}}, "reverse KL only"),
        ("sdpo", {"divergence": {"alpha": 2}}, "less than or equal to 1"),
    ],
)
def test_nothing_is_accepted_silently(name, changes, words):
    with pytest.raises(EpistillError, match=words):
        method(name, **changes)


def test_json_round_trip():
    for point in METHODS.values():
        assert Method.model_validate_json(point.model_dump_json()) == point


def test_a_run_that_cannot_learn_is_refused():
    base = {"model": "lab", "task": {"type": "star_search"}, "samples_per_problem": 1}
    for name in ("grpo", "sdpo"):
        with pytest.raises(ValidationError, match="at least 2"):
            RunConfig.model_validate({**base, "method": METHODS[name].model_dump()})
