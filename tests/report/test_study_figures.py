"""What a study's page says and shows of the committed studies."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from epistill.evaluation.evaluate import MEASURES
from epistill.report.format import measure_title
from epistill.report.panels import PALETTE
from epistill.report.study_figures import study_plots
from epistill.report.study_page import write_report
from epistill.studies.check_names import TRAINING_MEASURES
from tests.helpers.committed import committed

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"


def report_of(name):
    return {"preflights": [], **committed(name)}


@pytest.mark.parametrize("name", ["lab", "lab-cure", "smollm2"])
def test_no_two_methods_look_alike(name):
    (change,) = (plot for plot in study_plots(report_of(name)) if plot.id == "change")
    looks = {}
    for trace in change.panels[0].data:
        if trace.name and trace.legendgroup:
            look = trace.marker.color, trace.marker.symbol.partition("-open")[1:]
            looks.setdefault(trace.name, set()).add(look)
    assert all(len(found) == 1 for found in looks.values())
    assert len(set.union(*looks.values())) == len(looks)
    assert (len(looks) > len(PALETTE)) == ("Open or dotted" in change.text)


def test_the_largest_study_has_more_methods_than_colours():
    assert len({arm["method"] for arm in report_of("lab-cure")["arms"]} - {None}) > len(PALETTE)


@pytest.mark.parametrize("measure", [*MEASURES, *TRAINING_MEASURES])
def test_every_measure_of_a_claim_has_words(measure):
    assert "_" not in measure_title(measure)


def test_a_page_says_how_many_seeds_there_are_and_no_time_that_nobody_took(tmp_path):
    def facts(report):
        html = write_report(report, tmp_path / "page.html").read_text()
        return " ".join(re.search(r'<p class="facts">(.*?)</p>', html, re.DOTALL)[1].split()), html

    unfinished = {"seeds": [0, 1], "runs_total": 37, "duration_seconds": 8642.0}
    part, page = facts(report_of("smollm2") | unfinished)
    assert "1 of 2 seeds" in part
    assert "minutes so far on" in part
    elsewhere, _ = facts(report_of("smollm2"))  # seed 0, put together later: no one time
    assert "minutes" not in elsewhere
    assert "one seed: nothing is said of training" in page
    whole, page = facts(report_of("lab") | {"duration_seconds": 900.0})
    assert "· 3 seeds · 15.0 minutes on" in whole
    assert "over problems and seeds;" in page
