"""Which arm gains and which loses is decided by its intervals alone."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from epistill.report.study_advice import DISPUTES, GROUPS, disputed, study_advice

ADVICE = Path(__file__).resolve().parents[2] / "docs" / "advice.md"


def arm(name, inside, ood):
    changes = {"in_domain": {"score": inside}, "ood": {"score": ood}}
    return {"id": name, "difference_to_baseline": changes}


def change(low, high):
    return {"value": (low + high) / 2, "low": low, "high": high}


@pytest.mark.parametrize(
    ("inside", "ood", "group"),
    [
        (change(0.1, 0.2), change(-0.01, 0.3), GROUPS[0]),
        (change(0.1, 0.2), change(-0.03, 0.3), GROUPS[1]),
        (change(0.1, 0.2), change(-0.3, -0.01), GROUPS[2]),
        (change(-0.2, 0.1), change(-0.1, 0.1), GROUPS[3]),
        (change(-0.2, -0.1), change(-0.1, 0.1), GROUPS[2]),
        (change(-0.1, 0.1), change(0.1, 0.2), GROUPS[3]),
    ],
)
def test_an_arm_belongs_where_its_intervals_put_it(inside, ood, group):
    assert study_advice({"arms": [arm("a", inside, ood)]}) == [(group, [arm("a", inside, ood)])]


def test_the_best_on_ood_sets_comes_first_and_arms_without_both_kinds_are_left_out():
    gain, some, more = change(0.1, 0.2), change(0.0, 0.1), change(0.1, 0.2)
    arms = [arm("some", gain, some), arm("more", gain, more)]
    untrained = {"id": "base", "difference_to_baseline": {}}
    alone = {"id": "one", "difference_to_baseline": {"in_domain": {"score": gain}, "ood": None}}
    ((_, found),) = study_advice({"arms": [untrained, alone, *arms]})
    assert [one["id"] for one in found] == ["more", "some"]
    assert study_advice({"arms": [untrained, alone]}) == []


def test_a_contradiction_of_the_literature_stands_beside_the_arms_that_bear_on_it():
    def trained(name, method, contexts=(), coverage=None):
        where = {"baseline": "base", "coverage": coverage}
        told = {"method": method, "contexts": [*contexts], **where}
        return {**arm(name, change(0, 1), change(0, 1)), **told}

    arms = [
        trained("antisd", "antisd"),
        trained("masked", "sdpo", ["sibling"]),
        trained("other", "sdpo", ["other-sibling"]),
        trained("frozen", "sdpo", ["sibling"]),
        trained("plain", "sdpo", ["sibling"]),
        trained("narrow", "sdpo", ["sibling"], coverage=8),
        trained("reward", "grpo"),
    ]
    weights = [{"type": "importance_clip"}, {"type": "marker_probability"}]
    asked = [{"id": one["id"]} for one in arms]
    asked[1]["method_settings"] = {"token_weights": weights}
    asked[3]["method_settings"] = {"teacher": {"type": "frozen"}}
    found = disputed({"arms": arms, "settings": {"arms": asked}})
    assert [[one["id"] for one in some] for _, some in found] == [
        ["antisd", "masked", "reward"],
        ["other", "plain"],
    ]
    untrained = {"id": "base", "method": None, "contexts": [], "difference_to_baseline": {}}
    assert disputed({"arms": [untrained], "settings": {"arms": [{"id": "base"}]}}) == []


def test_the_page_of_advice_has_the_same_contradictions():
    section = ADVICE.read_text().split("## Where the literature contradicts itself\n")[1]
    rows = [line.strip("| ").split(" | ") for line in section.split("\n\n")[0].splitlines()[2:]]
    known = tomllib.loads(DISPUTES.read_text())["disputes"]
    assert [row[:3] for row in rows] == [
        [row["question"], row["one_side"], row["other_side"]] for row in known
    ]
