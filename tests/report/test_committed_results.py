"""The documentation's numbers are those of the committed data, and the data stay small."""

from __future__ import annotations

import json
import lzma
import re
from collections import Counter
from pathlib import Path

import pytest
from markupsafe import escape
from scipy.stats import spearmanr
from typer.testing import CliRunner

from epistill.cli import app
from epistill.errors import EpistillError
from epistill.report.study_page import write_report
from epistill.studies.draw_report import draw_again
from epistill.studies.outcomes import packed, unpacked
from epistill.studies.study_summary import with_estimates
from tests.helpers.committed import RESULTS, committed

ROOT = Path(__file__).resolve().parents[2]
LAB, PHASE, CURE, COVERAGE, CORNER, GAIN, *PLACES = REPORTS = [
    committed(name)
    for name in (
        "lab",
        "lab-phase",
        "lab-cure",
        "lab-cure-coverage",
        "lab-cure-corner",
        "lab-cure-gain",
        "lab-cure-corner-coverage",
        "lab-cure-gain-coverage",
        "lab-cure-final",
        "lab-cure-opposite",
    )
]
PUBLISHED = {
    world: committed(f"lab-cure-{part}coverage-published")
    for world, part in (("default", ""), ("corner", "corner-"), ("gain", "gain-"))
}


def test_the_documentation_weighs_at_most_4_mb_and_holds_no_page():
    files = [path for path in (ROOT / "docs").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 4_000_000
    assert not [path for path in files if path.suffix == ".html"]


def table_rows(text: str, header: str) -> list[list[str]]:
    """Cells of the table whose header line holds these words."""
    lines = text[text.index(header) :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_readme_states_the_verdicts_of_the_data():
    rows = table_rows((ROOT / "README.md").read_text(), "| claim of the paper")
    assert [row[1] for row in rows] == [claim["verdict"] for claim in LAB["claims"]]


def test_numbers_of_the_readme_are_in_the_data():
    """Every score is a value of its claim, or an arm's OOD score, rounded as it is written."""
    rows = table_rows((ROOT / "README.md").read_text(), "| claim of the paper")
    for row, claim in zip(rows, LAB["claims"], strict=True):
        known = {n[side] for n in claim["numbers"] for side in ("value", "versus_value")}
        ood = [arm["evaluations"]["ood"] for arm in LAB["arms"]]
        known |= {estimates["score"]["value"] for estimates in ood if estimates is not None}
        scores = re.findall(r"(?<![\d.])\.\d+|1\.00", row[2])
        assert scores
        for score in scores:
            half = 0.5 * 10.0 ** -len(score.split(".")[1])
            assert min(abs(v - float(score)) for v in known) <= half + 1e-9, (claim["id"], score)


def test_the_surface_of_the_documentation_is_that_of_the_data():
    rows = table_rows((ROOT / "docs" / "lab.md").read_text(), "| function of doubt: `commit`")
    points = PHASE["surface"]["pairs"]["broad, SDPO against the untrained base"]
    values = [point["score"]["value"] for point in points]
    written = [float(cell) for row in rows for cell in row[1:]]
    assert written == pytest.approx(values, abs=0.0051)
    assert all(point["density_per_1k_tokens"]["high"] < 0 for point in points)


def test_a_page_without_claims_begins_with_its_surface(tmp_path):
    page = write_report(PHASE, tmp_path / "page.html").read_text()
    (answer,) = re.findall(r'<p class="answer">(.*?)</p>', page)
    said = "broad, SDPO against the untrained base: OOD score -0.55 to +0.41, fewer markers in 25 of 25"
    assert said in answer


@pytest.mark.parametrize(
    ("header", "report", "world"),
    [
        ("| arm | in-domain | OOD | 8 x 3", CURE, ""),
        ("| arm, 8 problems", COVERAGE, "-c8"),
        ("| arm, 64 problems", COVERAGE, "-c64"),
        ("| arm, `corner`", CORNER, "-corner"),
        ("| arm, `gain`", GAIN, "-gain"),
    ],
    ids=["default", "c8", "c64", "corner", "gain"],
)
def test_the_table_of_the_cure_is_that_of_the_data(header, report, world):
    rows = table_rows((ROOT / "docs" / "lab.md").read_text(), header)
    arms = [arm for arm in report["arms"] if arm["id"].endswith(world) or arm["id"] == "base"]
    labels = {arm["id"].removesuffix(world): arm for arm in arms}
    names = {"SDPO c=s\\think": "sdpo-no-think"}
    assert len(rows) == len(labels)
    longest = labels["grpo"]["evaluations"]["hard"]["length_tokens"]["value"]
    for cells in rows:
        arm = labels[names.get(cells[0], cells[0].strip("`").lower())]
        found = arm["evaluations"]
        scores = [found[kind]["score"]["value"] for kind in ("in_domain", "ood", "hard", "budget")]
        written = [float(cells[place]) for place in (1, 2, 3, 6)]
        assert written == pytest.approx(scores, abs=0.0051), cells
        tokens = found["hard"]["length_tokens"]["value"]
        assert float(cells[4]) == pytest.approx(tokens, abs=0.051)
        assert float(cells[5].strip("% ")) == pytest.approx(100 * tokens / longest, abs=0.51)
        measures = ("committed_share", "density_per_1k_tokens")
        others = [found["ood"][measure]["value"] for measure in measures]
        assert [float(cells[7]), float(cells[8])] == [
            pytest.approx(others[0], abs=0.0051), pytest.approx(others[1], abs=0.51)
        ]  # fmt: skip
        if cells[9]:
            curves = arm["curves"]["reward"]["seeds"].values()
            early = sum(sum(curve[:15]) / 15 for curve in curves) / len(curves)
            assert float(cells[9]) == pytest.approx(early, abs=0.00051)


CURES = (
    "grpo",
    "rlcsd",
    *(f"{rule}-half" for rule in ("marker", "fork", "certainty", "wrong", "contrast")),
    "sdpo",
)


def places():
    """Arms of `lab-cure` by id: every world and coverage."""
    reports = (CURE, COVERAGE, CORNER, GAIN, *PLACES)
    return {arm["id"]: arm for report in reversed(reports) for arm in report["arms"]}


@pytest.mark.parametrize("header", ["| OOD | base", "| 8 x 3, tokens | base"])
def test_the_tables_of_every_world_and_coverage_are_those_of_the_data(header):
    arms = places()
    rows = table_rows((ROOT / "docs" / "lab.md").read_text(), header)
    assert len(rows) == sum(name.startswith("grpo") and "std" not in name for name in arms)
    for place, *cells in rows:
        world, amount = place.split(", ")
        where = world.strip("`").replace("default", "")
        ids = ["-".join(filter(None, ("base", where)))]
        ids += [
            "-".join(filter(None, (one, "" if amount == "all" else f"c{amount}", where)))
            for one in CURES
        ]
        found = [arms[name]["evaluations"] for name in ids]
        if "8 x 3" in header:
            hard = [one["hard"] for one in found]
            tokens = [one["length_tokens"]["value"] for one in hard]
            written = [cell.removesuffix(" %").split(", ") for cell in cells]
            assert [float(share) for _, share in written] == pytest.approx(
                [100 * n / tokens[1] for n in tokens], abs=0.51
            )
            found, cells = [{"ood": one} for one in hard], [score for score, _ in written]
        scores = [one["ood"]["score"]["value"] for one in found]
        assert [float(cell) for cell in cells] == pytest.approx(scores, abs=0.0051), place


@pytest.mark.parametrize(
    ("header", "kind"), [("| OOD, published", "ood"), ("| 8 x 3, published", "hard")]
)
def test_the_tables_of_published_methods_with_few_problems_are_those_of_the_data(header, kind):
    rows = iter(table_rows((ROOT / "docs" / "lab.md").read_text(), header))
    methods = ("sdpo-no-think", "rlsd", "rlrt", "antisd", "dasd", "srpo", "reopold", "eopd")
    for world, report in PUBLISHED.items():
        scores = {arm["id"]: arm["evaluations"][kind]["score"]["value"] for arm in report["arms"]}
        ending = "" if world == "default" else f"-{world}"
        for amount in (8, 64):
            place, *cells = next(rows)
            assert place == f"`{world}`, {amount}"
            trained = [scores[f"{name}-c{amount}{ending}"] for name in methods]
            expected = [scores[f"base{ending}"], *trained]
            assert [float(cell) for cell in cells] == pytest.approx(expected, abs=0.0051)
    assert not list(rows)


def test_the_claims_about_published_methods_with_few_problems_came_out_as_written():
    verdicts = {
        claim["id"]: claim["verdict"] for report in PUBLISHED.values() for claim in report["claims"]
    }
    assert verdicts == {
        "narrow-shaped": "reproduced",
        "narrow-shaped-gain": "reproduced",
        "narrow-shaped-corner": "not distinguishable",
        "narrow-teacher": "not reproduced",
        "narrow-teacher-gain": "not reproduced",
        "narrow-teacher-corner": "not reproduced",
    }


def test_the_verdicts_of_the_cure_are_those_of_the_data():
    """How many claims of each place were confirmed, contradicted or undecided."""
    rows = table_rows((ROOT / "docs" / "lab.md").read_text(), "| claims of")
    claims = [claim for report in PLACES for claim in report["claims"]]
    assert sum(int(cell) for row in rows for cell in row[2:]) == len(claims)
    for place, kind, *counts in rows:
        where = place.strip("`")
        of = [
            c
            for c in claims
            if c["id"].endswith(where) and c["id"].startswith("cure") == (kind == "the goal")
        ]
        verdicts = Counter(claim["verdict"] for claim in of)
        assert [int(cell) for cell in counts] == [
            verdicts[verdict] for verdict in ("reproduced", "not reproduced", "not distinguishable")
        ], (place, kind)


def test_the_table_of_the_distance_is_that_of_the_data():
    """Question (a) of `lab-cure`: rho of each measure with the change of the OOD score."""
    lines = (RESULTS / "lab-cure-kl.jsonl").read_text().splitlines()
    arms = [json.loads(line) for line in lines]
    measures = (
        "committed_share",
        "candidates",
        "length_tokens",
        "density_per_1k_tokens",
        "kl_nats_per_token",
        "kl_nats_per_response",
    )
    rows = table_rows((ROOT / "docs" / "lab.md").read_text(), "| rho with the OOD change")
    worlds = ["default", "gain", "corner", "middle", "opposite"]
    coverages = ["8 problems", "64 problems", "all problems"]
    assert [row[0] for row in rows] == [*(f"`{world}`" for world in worlds), "all", *coverages]

    def kinds(arm):
        few = re.search(r"-c(8|64)\b", arm["arm"])
        return "all", f"`{arm['world']}`", f"{few[1] if few else 'all'} problems"

    for row in rows:
        chosen = [arm for arm in arms if row[0] in kinds(arm)]
        assert int(row[1]) == len(chosen)
        changes = [arm["change"] for arm in chosen]
        for measure, cell in zip(measures, row[2:], strict=True):
            rho = spearmanr([arm[measure] for arm in chosen], changes).statistic
            assert float(cell.split()[0]) == pytest.approx(rho, abs=0.0051)


@pytest.mark.parametrize("report", REPORTS, ids=lambda report: report["name"])
def test_no_interval_of_the_data_leaves_out_its_estimate(report):
    found = 0

    def walk(value):
        nonlocal found
        if isinstance(value, dict):
            if {"value", "low", "high"} <= set(value) and value["low"] is not None:
                assert value["low"] <= value["value"] <= value["high"], value
                found += 1
            value = list(value.values())
        for entry in value if isinstance(value, list) else []:
            walk(entry)

    walk(report)
    assert found > 500


@pytest.mark.parametrize("report", REPORTS, ids=[report["name"] for report in REPORTS])
def test_no_arm_answers_a_problem_of_a_set_twice(report):
    for trace in report["traces"]:
        arms = [response["arm"] for response in trace["responses"]]
        assert len(set(arms)) == len(arms), (trace["set"], trace["problem_id"])


def test_the_page_is_drawn_from_the_data(tmp_path):
    page = tmp_path / "page.html"
    done = CliRunner().invoke(app, ["report", str(RESULTS / "lab"), "--out", str(page)])
    assert done.exit_code == 0
    html = page.read_text()
    assert all(str(escape(claim["text"])) in html for claim in LAB["claims"])


def test_a_packed_report_is_read_or_refused_in_one_line(tmp_path):
    assert committed("lab-cure")["name"] == CURE["name"]
    bad = {"no xz": b"{}", "cut": lzma.compress(b'{"a": 1}')[:-6], "no JSON": lzma.compress(b"{")}
    bad["a bomb"] = lzma.compress(bytes(2**28 + 1), preset=0)
    for what, content in (bad | {"a list": lzma.compress(b"[]")}).items():
        (tmp_path / "report.json.xz").write_bytes(content)
        with pytest.raises(EpistillError, match=r"report\.json\.xz") as error:
            draw_again(tmp_path)
        assert "\n" not in str(error.value), what


@pytest.mark.parametrize("finished", [1, 20])
def test_a_page_is_drawn_while_runs_are_missing(tmp_path, finished):
    """Seed after seed, as a study runs them; then estimates are absent, and nothing is 0."""
    report, runs = CURE, unpacked(CURE["outcomes"])
    order = sorted((seed, place, arm) for place, arm in enumerate(runs) for seed in runs[arm])
    kept: dict[str, dict[int, dict]] = {}
    for seed, _, arm in order[:finished]:
        kept.setdefault(arm, {})[seed] = runs[arm][seed]
    there = {**report, "runs_finished": finished, "outcomes": packed(kept), "traces": []}
    there["arms"] = [arm for arm in report["arms"] if arm["id"] in kept]
    found = with_estimates(there)
    assert (
        f"{finished} of {report['runs_total']} runs finished"
        in write_report(found, tmp_path / "page.html").read_text()
    )
    for claim in found["claims"]:
        for number in claim["numbers"]:
            both = {number["arm"], number["versus"]} <= kept.keys()
            assert (number["difference"] is None) != both, claim["id"]


def test_what_orders_the_ood_change_over_all_arms_is_as_the_readme_says():
    reports = [committed(folder.name) for folder in RESULTS.glob("lab-cure*/")]
    arms = [
        (change["score"]["value"], arm["evaluations"]["ood"])
        for report in reports
        for arm in report["arms"]
        if (change := arm["difference_to_baseline"].get("ood"))
    ]
    text = (ROOT / "README.md").read_text()
    assert f"Over {len(arms)} trained arms" in text
    changes = [change for change, _ in arms]
    for measure, sentence in (
        ("committed_share", "the change of the OOD score (rho {:.2f})"),
        ("density_per_1k_tokens", "the density of markers less ({:+.2f})"),
    ):
        rho = spearmanr([ood[measure]["value"] for _, ood in arms], changes).statistic
        assert sentence.format(rho).replace("0.", ".") in text
