"""Arms at another coverage or in another world are the same arms otherwise."""

from __future__ import annotations

import copy

import pytest

from epistill.errors import EpistillError
from epistill.settings import checked
from epistill.studies.load_study import load_study
from epistill.studies.spec import StudySpec

TASK = {"type": "star_search", "arms": 5, "depth": 3}
TEST = {"measure": "score", "on": "ood", "arm": "sdpo", "versus": "grpo", "expect": "below"}
SPEC = {
    "name": "toy",
    "question": "?",
    "about": "A test.",
    "seeds": [0],
    "run": {"model": "lab", "steps": 1, "problems_per_step": 2, "samples_per_problem": 2, "task": TASK,
            "sampling": {"max_new_tokens": 8}},
    "evaluations": [{"name": "deeper", "kind": "ood", "task": TASK, "problems": 2, "samples": 2}],
    "arms": [
        {"id": "base", "label": "base"},
        {"id": "grpo", "label": "GRPO", "method": "grpo", "series": "G", "changes": {"steps": 2}},
        {"id": "sdpo", "label": "SDPO", "method": "sdpo", "method_settings": {"blend": {"type": "convex", "distillation": 0.5}}},
    ],
    "worlds": [{"id": "far", "dials": {"commit": 0.25}}],
    "claims": [{"id": "harm", "text": "Less.", "tests": [TEST]}],
    "copies": [
        {"arms": ["base", "grpo"], "world": "far"},
        {"arms": ["grpo", "sdpo"], "world": "far", "coverage": 8, "claims": ["harm"]},
        {"arms": ["sdpo-c8-far"], "coverage": 64},
    ],
}  # fmt: skip


def test_a_copy_is_its_arm_but_for_what_it_says():
    spec = StudySpec.model_validate(SPEC)
    arms = {arm.id: arm.model_dump() for arm in spec.arms}
    assert list(arms)[3:] == [
        "base-far",
        "grpo-far",
        "grpo-c8-far",
        "sdpo-c8-far",
        "sdpo-c8-far-c64",
    ]

    def changes(one, other):
        return {key: value for key, value in arms[one].items() if value != arms[other][key]}

    assert changes("grpo-c8-far", "grpo") == {
        "id": "grpo-c8-far",
        "label": "GRPO, 8 problems, far world",
        "coverage": 8,
        "changes": {"steps": 2, "model": "world:far"},
        "baseline": "base-far",
        "series": "G, far world",
    }
    assert set(changes("sdpo-c8-far-c64", "sdpo-c8-far")) == {"id", "label", "coverage"}
    assert arms["base-far"]["baseline"] == "base-far"


def test_a_claim_goes_with_its_arms():
    told = StudySpec.model_validate(SPEC).claims
    assert [(c.id, c.text) for c in told[1:]] == [("harm-c8-far", "Less, 8 problems, far world")]
    (test,) = told[1].tests
    assert (test.arm, test.versus, test.expect) == ("sdpo-c8-far", "grpo-c8-far", "below")


def test_what_is_written_out_is_a_study_of_its_own():
    """As a run folder holds it: read again, nothing is copied twice."""
    spec = StudySpec.model_validate(SPEC)
    assert StudySpec.model_validate(spec.model_dump()) == spec


@pytest.mark.parametrize(
    ("copies", "words"),
    [
        ({"arms": ["sdpo"]}, "changes nothing"),
        ({"arms": ["spdo"], "coverage": 8}, "copies.0.arms names 'spdo'"),
        ({"arms": ["sdpo"], "coverage": 8, "claims": ["help"]}, "copies.0.claims names 'help'"),
        ({"arms": ["sdpo"], "coverage": 8, "claims": ["harm"]}, "'grpo-c8'"),
        ({"arms": ["sdpo"], "world": "far"}, "'base-far'"),
        ({"arms": ["base", "sdpo"], "world": "near"}, "'near'"),
        ({"arms": ["sdpo"], "coverage": 0}, "copies.0: coverage"),
        ({"arms": ["sdpo"], "coverag": 8}, "copies.0: 'coverag'"),
    ],
)
def test_a_copy_that_leads_nowhere_is_one_line(copies, words):
    settings = {**copy.deepcopy(SPEC), "copies": [copies]}
    with pytest.raises(EpistillError, match=words) as raised:
        checked(StudySpec, settings, "study: ")
    assert "\n" not in str(raised.value)


def test_the_search_for_a_cure_has_every_rule_at_every_coverage_in_every_world():
    cure = load_study("lab-cure")
    ids = {arm.id for arm in cure.arms}
    rules = ["grpo", "sdpo", "rlcsd", *(i for i in ids if i.endswith("-half"))]
    places = [
        f"{rule}{coverage}{world}"
        for rule in rules
        for coverage in ("", "-c8", "-c64")
        for world in ("", "-corner", "-gain", "-middle")
    ]
    assert (len(rules), set(places) - ids) == (8, set())
