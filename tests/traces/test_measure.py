"""The numbers of `measure` against plain counting, one response and one word at a time."""

from __future__ import annotations

import json
import random
import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epistill.errors import EpistillError
from epistill.metrics import (
    count_markers,
    count_words,
    density,
    load_lexicon,
    marker_spans,
    official_substring_count,
)
from epistill.metrics.words import WORD, fold
from epistill.thinking import split_thinking
from epistill.traces import tabulate
from epistill.traces.measure import measure_files
from epistill.traces.measure_summary import summarise_measured, warnings_of
from epistill.traces.options import Options
from epistill.traces.tabulate import ClusterSums

BITS = [
    "Wait,", "maybe", "unlikely", "3 * 4 = 12.", "so", "the", "number", "given", "Hmm.", "that's wrong",
    "<think>", "</think>", "等等", "可能性", "满足", "x = 5", "checked", "\n\n", "I don't", "√2 ≈ 1.4",
]  # fmt: skip


def summary_of(path, **options):
    chosen = Options(**options)
    return summarise_measured(measure_files([path], chosen), chosen)


def group_of(path, name="(all)", **options):
    return summary_of(path, **options)["files"][0]["groups"][name]


def plain(texts, lexicon):
    """Sums over texts by the one-text functions."""
    found = dict.fromkeys(("words", "thinking", "count", "inside", "any", "official"), 0)
    tenths, places = np.zeros(10, int), np.zeros(10, int)
    for text in texts:
        part = split_thinking(text)
        lengths = [count_words(part.thinking), count_words(part.answer)]
        counts = [sum(count_markers(t, lexicon).values()) for t in (part.thinking, part.answer)]
        found["words"] += sum(lengths)
        found["thinking"] += lengths[0]
        found["count"] += sum(counts)
        found["inside"] += counts[0]
        found["any"] += sum(counts) > 0
        for t in (part.thinking, part.answer):
            found["official"] += sum(
                official_substring_count(t.replace("’", "'"), lexicon).values()
            )
        total, before = sum(lengths), 0
        for i in range(total):
            tenths[10 * i // total] += 1
        for t, length in zip((part.thinking, part.answer), lengths, strict=True):
            starts = [m.start() for m in WORD.finditer(fold(t))]
            for start, _ in marker_spans(t, lexicon):
                places[10 * (before + sum(s < start for s in starts)) // total] += 1
            before += length
    return found, tenths, places


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.sampled_from(BITS), max_size=25).map(" ".join), min_size=1, max_size=6))
def test_sums_equal_plain_counting(tmp_path_factory, texts):
    path = tmp_path_factory.mktemp("m") / "a.jsonl"
    path.write_text("".join(json.dumps({"response": t}) + "\n" for t in texts))
    group = group_of(path)
    for name, markers in group["markers"].items():
        lexicon = load_lexicon(name)
        found, _, places = plain(texts, lexicon)
        assert group["responses"] == len(texts)
        assert group["length"]["total_words"] == found["words"]
        assert markers["count"] == found["count"]
        assert markers["thinking"]["count"] == found["inside"]
        assert markers["answer"]["count"] == found["count"] - found["inside"]
        assert markers["official_substring_count"] == found["official"]
        assert [row["count"] for row in markers["deciles"]] == places.tolist()
        assert sum(row["count"] for row in markers["words"].values()) == found["count"]
        expected = density(found["count"], found["words"])
        value = markers["density_per_1k_words"]
        assert (value is None) == (expected is None)
        if value is not None:
            assert value["value"] == pytest.approx(expected)
        assert markers["share_of_responses_with_any"]["value"] == found["any"] / len(texts)


def test_deciles_divide_the_words_of_a_response(write):
    text = " ".join(["wait"] + ["so"] * 9 + ["maybe"] + ["so"] * 8 + ["hmm"])  # 20 words
    group = group_of(write("a.jsonl", [{"response": text}]))
    rows = group["markers"]["paper-en"]["deciles"]
    assert [row["count"] for row in rows] == [1, 0, 0, 0, 0, 1, 0, 0, 0, 1]
    assert [row["density_per_1k_words"]["value"] for row in rows][:2] == [500.0, 0.0]


def test_thinking_and_answer_in_all_four_forms(write):
    records = [
        {"response": "<think>Wait, so</think>Maybe 4"},
        {"response": "Wait, so</think>4"},  # the template opened it
        {"response": "<think>Wait, so"},  # cut inside
        {"response": "Wait, 4"},
        {"response": "Hmm so", "rendered_prompt": "<think>\n"},
    ]
    group = group_of(write("a.jsonl", records))
    markers = group["markers"]["paper-en"]
    assert (markers["thinking"]["count"], markers["answer"]["count"]) == (4, 2)
    assert group["thinking"]["share"]["value"] == 0.8
    assert group["thinking"]["unclosed_share"]["value"] == 0.4
    assert group["truncated"]["basis"] == "unclosed thinking: a lower bound"
    opened = group_of(write("b.jsonl", records[3:4]), opened=True)
    assert opened["markers"]["paper-en"]["answer"]["count"] == 0


def test_truncation_says_what_it_rests_on(write):
    said = [{"response": "a", "finish_reason": r} for r in ("stop", "length", "length", "stop")]
    truncated = group_of(write("a.jsonl", said))["truncated"]
    assert (truncated["basis"], truncated["share"]["value"]) == ("field", 0.5)
    truncated = group_of(write("b.jsonl", [*said, {"response": "<think>"}]))["truncated"]
    assert truncated["basis"].startswith("field, over")
    assert truncated["share"]["value"] == 0.5
    assert truncated["responses_with_a_stop_field"] == 4


def test_a_fall_in_everything_is_not_a_fall_in_doubt(write):
    full = "Wait, the given number means 4. Maybe it equals 5. "
    long = group_of(write("a.jsonl", [{"response": full * 3}]))["markers"]
    short = group_of(write("b.jsonl", [{"response": full}]))["markers"]
    assert long["paper-en"]["control"] == "control-en"
    for name in ("paper-en", "control-en"):
        assert long[name]["count"] == 3 * short[name]["count"] > 0
        assert long[name]["density_per_1k_words"] == short[name]["density_per_1k_words"]


def test_tokens_of_a_tokenizer(write):
    from tokenizers import Tokenizer

    from epistill.rollouts.load_model import lab_directory

    texts = ["<think>s 1 2 3</think>answer 18", "answer 7", "<think>3 4"]
    path = write("a.jsonl", [{"response": t, "n_tokens": 999} for t in texts])
    length = group_of(path, tokenizer=lab_directory())["length"]
    encode = Tokenizer.from_file(str(lab_directory() / "tokenizer.json")).encode
    inside = outside = 0
    for text in texts:
        part = split_thinking(text)
        inside += len(encode(part.thinking, add_special_tokens=False).ids)
        outside += len(encode(part.answer, add_special_tokens=False).ids)
    assert length["total_tokens"] == inside + outside
    assert length["thinking_tokens"]["value"] == pytest.approx(inside / 3)
    assert length["answer_tokens"]["value"] == pytest.approx(outside / 3)
    said = group_of(path)  # without a tokenizer the field counts
    assert said["length"]["tokens"]["value"] == 999
    assert said["length"]["thinking_tokens"] is None
    assert said["markers"]["paper-en"]["density_per_1k_tokens"]["value"] == 0


def test_no_tokens_are_none_and_not_zero(write):
    path = write("a.jsonl", [{"response": "Wait", "n_tokens": 3}, {"response": "Wait"}])
    group = group_of(path)
    assert group["length"]["tokens"] is None
    assert group["length"]["total_tokens"] is None
    assert group["markers"]["paper-en"]["density_per_1k_tokens"] is None


def test_nothing_but_empty_responses(write):
    group = group_of(write("a.jsonl", [{"response": ""}, {"response": " "}]))
    assert (group["responses"], group["empty_responses"]) == (2, 2)
    assert group["length"]["words"]["value"] == 0
    assert group["markers"]["paper-en"]["density_per_1k_words"] is None


def test_groups(write):
    records = [{"response": "Wait " * i, "arm": arm} for i, arm in enumerate(["x", "y", "y", None])]
    summary = summary_of(write("a.jsonl", records), by="arm")
    groups = summary["files"][0]["groups"]
    assert {name: g["responses"] for name, g in groups.items()} == {"x": 1, "y": 2, "(none)": 1}
    assert groups["y"]["markers"]["paper-en"]["count"] == 3
    many = write("b.jsonl", [{"response": "a", "id": i} for i in range(51)])
    with pytest.raises(EpistillError, match="more than 50 values"):
        measure_files([many], Options(by="id"))


def test_repeated_ids_are_counted_and_said(write):
    records = [
        {"problem_id": 1, "sample": 0, "response": "a"},
        {"problem_id": 1, "sample": 1, "response": "a"},
        {"problem_id": 2, "sample": 0, "response": "a"},
        {"problem_id": 1, "sample": 0, "response": "b"},
        {"problem_id": 1, "response": "a"},
        {"problem_id": 1, "response": "c"},
        {"problem_id": 1, "response": "a"},
    ]
    summary = summary_of(write("a.jsonl", records))
    repeated = summary["files"][0]["reading"]["repeated_responses"]
    assert repeated == {"count": 2, "first_row": 4}
    (line,) = warnings_of(summary)
    assert "2 responses repeat" in line
    assert "row 4" in line
    assert summary["files"][0]["reading"]["responses_used"] == 7


def test_an_own_list_is_counted_beside_or_instead(write, tmp_path):
    mine = {
        "name": "mine",
        "version": 2,
        "language": "en",
        "source": "me",
        "words": ["so", "oh no"],
    }
    (tmp_path / "mine.json").write_text(json.dumps(mine))
    path = write("a.jsonl", [{"response": "So, oh no, so wait. Solo."}])
    markers = group_of(path, lexicons=(str(tmp_path / "mine.json"), "paper-en"))["markers"]
    assert set(markers) == {"mine", "paper-en", "control-en"}
    assert {w: r["count"] for w, r in markers["mine"]["words"].items()} == {"so": 2, "oh no": 1}
    (tmp_path / "other.json").write_text(json.dumps({**mine, "words": ["um"]}))
    with pytest.raises(EpistillError, match="one name"):
        measure_files(
            [path], Options(lexicons=tuple(str(tmp_path / n) for n in ("mine.json", "other.json")))
        )


def test_chinese_lists_speak_only_of_chinese(write):
    assert "epistemic-zh" not in group_of(write("a.jsonl", [{"response": "Wait"}]))["markers"]
    group = group_of(write("b.jsonl", [{"response": "等等，wait，这不对。可能性大，满足条件。"}]))
    assert group["length"]["chinese_words"] == 13
    markers = group["markers"]
    assert (markers["paper-en"]["count"], markers["epistemic-zh"]["count"]) == (1, 1)
    assert markers["control-zh"]["count"] == 1
    assert markers["epistemic-zh"]["self_correction"]["episodes"] == 1
    assert markers["epistemic-zh"]["words"]["可能"] == {
        "count": 0,
        "official_substring_count": 1,
        "density_per_1k_words": markers["epistemic-zh"]["words"]["可能"]["density_per_1k_words"],
    }


def test_intervals_come_from_problems_not_responses(write):
    """16 copies of each response change nothing about what is known."""
    rng = random.Random(3)
    texts = [" ".join(rng.choices(["wait", "so", "the"], k=20)) for _ in range(12)]
    once = write("a.jsonl", [{"problem_id": i, "response": t} for i, t in enumerate(texts)])
    often = write("b.jsonl", [{"problem_id": i, "response": t} for i, t in enumerate(texts)] * 16)
    one, many = (group_of(p)["markers"]["paper-en"]["density_per_1k_words"] for p in (once, often))
    assert one == pytest.approx(many)
    assert one["low"] < one["value"] < one["high"]


def test_many_problems_are_folded_into_sets_of_whole_problems(monkeypatch):
    monkeypatch.setattr(tabulate, "MAX_CLUSTERS", 8)
    sums, other = ClusterSums(2), ClusterSums(2)
    keys = [key for key in range(100, 140) for _ in range(3)]
    table = np.arange(240.0).reshape(-1, 2)
    sums.add(keys[:60], table[:60])
    other.add(keys[60:], table[60:])
    sums.merge(other)
    assert sums.folded
    assert len(sums.sums) == 8
    np.testing.assert_allclose(sums.sums.sum(0), table.sum(0))
    rows = {
        key % 8: sum(table[i].sum() for i, k in enumerate(keys) if k % 8 == key % 8) for key in keys
    }
    np.testing.assert_allclose(sorted(sums.sums.sum(1)), sorted(rows.values()))


def test_docstring_of_the_page_names_every_number():
    """docs/metrics.md defines what the summary holds."""
    from pathlib import Path

    page = (Path(__file__).resolve().parents[2] / "docs" / "metrics.md").read_text()
    for name in (
        "density_per_1k_words", "density_per_1k_tokens", "share_of_responses_with_any", "deciles",
        "self_correction", "official_substring_count", "truncated", "per_response", "control",
        "repeated_responses", "chinese_words", "unclosed_share",
    ):  # fmt: skip
        assert re.search(rf"`([a-z_]+\.)?{name}`", page), name


def test_the_sample_for_the_page_keeps_whole_problems(write):
    path = write("a.jsonl", [{"problem_id": i // 10, "response": f"a {i}"} for i in range(300)])
    (found,) = measure_files([path], Options(keep=95))
    kept = Counter(shown["problem"] for _, shown in found.sample)
    assert sorted(kept.values()) == [5] + [10] * 9


def test_a_group_with_half_a_character_is_written(write, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"response": "a", "g": "x\\ud800"}\n')
    assert list(summary_of(path, by="g")["files"][0]["groups"]) == ["x?"]


def test_densities_with_and_without_loops(write):
    loop = "x = 3. " + "Wait, let me check that again. " * 100
    good = ["Maybe 12. So 3 * 4 = 12.", "Wait, no. It is 7."]
    texts = [*good, loop]
    path = write("t.jsonl", [{"response": t, "problem_id": i} for i, t in enumerate(texts)])
    found = group_of(path)
    assert found["looping"]["count"] == 1
    assert found["looping"]["share"]["value"] == pytest.approx(1 / 3)
    markers = found["markers"]["paper-en"]
    assert markers["count"] == 2 + 200  # "Maybe", "Wait"; a "wait" and a "check" a hundred times
    words = sum(map(count_words, good))
    rest = markers["without_looping"]
    assert rest["count"] == 2
    assert rest["density_per_1k_words"]["value"] == pytest.approx(1000 * 2 / words)


def test_truncation_is_inferred_from_one_largest_length(write):
    def basis(lengths, **extra):
        records = [{"response": f"It is {i}.", "n_tokens": n} for i, n in enumerate(lengths)]
        return group_of(write("t.jsonl", [record | extra for record in records]))["truncated"]

    found = basis([*range(20, 60), *[512] * 8])
    assert found["basis"].startswith("at least: 8 responses")
    assert (found["share"]["value"], found["share"]["low"]) == (8 / 48, None)
    assert basis([*range(20, 60), *[512] * 4])["basis"].startswith("unclosed")
    assert basis([*range(20, 60), *[512] * 8], finish_reason="stop")["basis"] == "field"
    # Where lengths do not vary, or others are as common, the largest one is no limit.
    for lengths in (
        [40] * 300,
        [40] * 50 + [20] * 50,
        [n for n in range(40, 60) for _ in "12345678"],
    ):
        assert basis(lengths)["basis"].startswith("unclosed")


def test_answers_given_unverified_are_counted_among_graded_responses(tmp_path):
    said = [
        ("<think>3*6 = 18. Let me check: 18/6 = 3, so 18.</think>\\boxed{18}", "18"),
        ("<think>so it is 18</think>\\boxed{18}", "18"),
        ("<think>no idea</think>\\boxed{18}", "18"),
        ("<think>cut in", None),
        ("<think>so B or C</think>B", "B"),
    ]
    rows = [{"problem": i, "response": t, "grade_extracted": a} for i, (t, a) in enumerate(said)]
    path = tmp_path / "graded.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (result,) = measure_files([path], Options())
    found = summarise_measured([result], Options())["files"][0]["groups"]["(all)"]["answers"]
    assert found["responses"] == 4
    assert found["verified_share"]["value"] == 0.25
    assert found["committed_share"]["value"] == 0.5
    assert found["candidates"]["value"] == pytest.approx(2 / 3)
    assert found["first_commitment"]["value"] == pytest.approx((6 / 40 + 9 / 11) / 2)
    path.write_text("".join(json.dumps({"response": text}) + "\n" for text, _ in said))
    (result,) = measure_files([path], Options())
    found = summarise_measured([result], Options())["files"][0]["groups"]["(all)"]["answers"]
    assert found == {
        "responses": 0, "verified_share": None, "committed_share": None, "candidates": None,
        "first_commitment": None,
    }  # fmt: skip
