"""The named methods' defaults are the published settings (field.md 1.6, 2.1)."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from epistill.axes import Method
from epistill.config import RunConfig, StarSearchTask
from epistill.describe import describe_method, extra_forwards
from epistill.errors import EpistillError
from epistill.inputs import evaluation_settings
from epistill.methods import METHODS, method

PINNED = {
    "grpo": {
        "context.source": "none",
        "blend.distillation": 0.0,
        "policy_gradient.normalize_std": False,
        "policy_gradient.clip_low": 0.2,
        "policy_gradient.clip_high": 0.28,
        "policy_gradient.dual_clip": 3.0,
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
    "dapo": {
        "policy_gradient.normalize_std": True,
        "policy_gradient.clip_high": 0.28,
        "policy_gradient.drop_uniform_groups": True,
        "reduction": "token_mean",
    },
    "dr-grpo": {
        "policy_gradient.normalize_std": False,
        "policy_gradient.clip_high": 0.2,
        "reduction": "constant_length",
    },
    "opsd": {
        "context.source": "solution",
        "teacher.type": "frozen",
        "divergence.alpha": 0.0,
        "divergence.support.type": "full",
        "divergence.entry_clip": 0.05,
        "token_weights.0.up_to": 1024,
        "learning_rate": 5e-6,
    },
    "sdft": {
        "context.source": "solution",
        "teacher.type": "ema",
        "teacher.rate": 0.01,
        "divergence.alpha": 0.0,
        "divergence.support.type": "full",
        "token_weights.0.skip_first": 3,
        "learning_rate": 2e-5,
    },
    "rlsd": {
        "teacher.type": "live",
        "blend.shape.type": "ratio",
        "blend.shape.strength": 0.5,
        "blend.shape.decay_steps": 50,
        "blend.shape.low": 0.8,
        "blend.shape.high": 1.2,
        "policy_gradient.normalize_std": True,
        "policy_gradient.clip_high": 0.2,
    },
    "rlrt": {
        "context.source": "solution",
        "teacher.type": "live",
        "blend.shape.type": "reversed_ratio",
        "blend.shape.strength": 1.0,
        "blend.shape.clip": 1.0,
        "policy_gradient.normalize_std": True,
        "reduction": "token_mean",
        "learning_rate": 1e-6,
    },
    "rlcsd": {
        "context.pick": "random",
        "teacher.type": "snapshot",
        "teacher.every": 10,
        "blend.shape.type": "contrast",
        "blend.shape.tau": 0.02,
        "blend.shape.beta": 1.0,
        "blend.shape.strength": 0.5,
        "blend.shape.bound": 2.0,
        "blend.shape.gate": 0.02,
        "blend.shape.eta": 1.0,
        "blend.shape.negatives": 4,
        "learning_rate": 1e-6,
    },
    "dasd": {
        "context.source": "solution",
        "blend.shape.type": "entropy_directed",
        "blend.shape.quantile": 0.8,
    },
    "antisd": {
        "context.source": "sibling",
        "context.fallback": "solution",
        "context.assessment": True,
        "teacher.type": "live",
        "blend.shape.type": "ascent",
        "blend.shape.strength": 0.5,
        "blend.shape.gate_off": 0.93,
        "blend.shape.warmup_steps": 5,
        "learning_rate": 1e-6,
    },
    "srpo": {
        "context.source": "sibling",
        "blend.type": "routed",
        "divergence.alpha": 0.5,
        "divergence.support.k": 100,
        "divergence.support.chosen_by": "teacher",
        "token_weights.1.beta": 1.0,
        "teacher.rate": 0.05,
        "policy_gradient.dual_clip": 3.0,
        "learning_rate": 5e-6,
    },
    "sdpg": {
        "context.source": "answer",
        "teacher.type": "live",
        "divergence.alpha": 1.0,
        "divergence.support.type": "full",
        "blend.type": "regularised",
        "blend.distillation": 1e-3,
        "blend.reference": 1e-3,
        "blend.only_positive": False,
        "divergence.cap_nats": 20.0,
        "divergence.tempered": False,
        "policy_gradient.clip_high": 0.28,
        "policy_gradient.dual_clip": 10.0,
        "policy_gradient.drop_uniform_groups": True,
        "blend.warmup_steps": 0,
        "blend.decay_steps": 0,
        "learning_rate": 1e-6,
    },
    "pw-opsd": {
        "divergence.alpha": 0.0,
        "divergence.entry_clip": 0.05,
        "teacher.type": "frozen",
        "token_weights.1.floor": 0.25,
        "token_weights.1.midpoint": 0.30,
        "token_weights.1.width": 0.10,
        "reduction": "sequence_mean",
        "learning_rate": 5e-6,
    },
    "eopd": {
        "context.source": "solution",
        "teacher.type": "frozen",
        "divergence.alpha": 1.0,
        "divergence.support.type": "entropy_gated",
        "divergence.support.above_nats": 0.8,
        "divergence.support.k": 16,
        "reduction": "token_mean",
    },
    "reopold": {
        "context.source": "solution",
        "teacher.type": "frozen",
        "blend.shape.type": "relaxed",
        "blend.shape.mix": 0.1,
        "blend.shape.top": 0.2,
        "blend.shape.switch": 50,
    },
    "purified-opsd": {
        "divergence.target.type": "purified",
        "divergence.target.beta": 1.0,
        "divergence.target.bound": 10.0,
        "teacher.type": "frozen",
    },
    "credit": {
        "context.source": "feedback",
        "teacher.type": "live",
        "blend.shape.type": "input_contrast",
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
        settings = settings[int(part) if part.isdigit() else part]
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
        ("sdpo", {"teacher": {"type": "trust-region"}}, "of type 'trust-region'"),
        ("sdpo", {"context": {"source": "none"}}, "student would agree"),
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


ISSUED = (
    "grpo", "sdpo", "opsd", "sdft", "rlsd", "rlrt", "rlcsd", "dasd", "antisd", "srpo", "sdpg", "pw-opsd",
    "purified-opsd", "credit",
)  # fmt: skip


def test_the_zoo_is_complete_and_described():
    assert set(ISSUED) <= set(METHODS)
    for point in METHODS.values():
        row = describe_method(point)
        assert all(row.values()), row
    assert describe_method(METHODS["sdpo"])["extra forwards"] == "1"


@pytest.mark.parametrize(
    ("name", "passes"),
    [("grpo", 0), ("sdpo", 1), ("srpo", 2), ("rlsd", 1), ("rlrt", 1), ("rlcsd", 5), ("purified-opsd", 3),
     ("sdpg", 2), ("credit", 2), ("eopd", 1), ("reopold", 1), ("sft-guided", 0)],
)  # fmt: skip
def test_extra_forward_passes(name, passes):
    assert extra_forwards(METHODS[name]) == passes


def test_settings_that_would_stop_the_first_step_are_refused():
    with pytest.raises(EpistillError, match="entry_clip"):
        method("opsd", divergence={"alpha": 1.0, "support": {"type": "sampled_token"}})
    settings = {"model": "lab", "task": {"type": "star_search"}, "samples_per_problem": 1}
    chosen = method("sdpo", context={"source": "regenerated"})
    with pytest.raises(ValueError, match="samples_per_problem"):
        RunConfig.model_validate({**settings, "method": chosen.model_dump()})


def test_the_command_line_evaluates_on_problems_that_training_never_draws():
    chosen, _ = evaluation_settings("star-search:5x3", 4, 8, {"max_new_tokens": 20})
    assert chosen.task.split != StarSearchTask().split


def test_a_reduction_that_would_be_ignored_is_refused():
    settings = method("rlcsd").model_dump() | {"reduction": "sequence_mean"}
    with pytest.raises(ValidationError, match="mean over tokens on each of its two paths"):
        Method.model_validate(settings)
