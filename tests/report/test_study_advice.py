"""Which arm gains and which loses is decided by its intervals alone."""

from __future__ import annotations

import pytest

from epistill.report.study_advice import GROUPS, study_advice


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
