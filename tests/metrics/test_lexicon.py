"""The shipped lists: what they say of themselves, and Chinese words inside longer ones."""

from __future__ import annotations

import json
import os
from importlib import resources

import pytest

from epistill.errors import EpistillError
from epistill.metrics import count_markers, load_lexicon, shipped_lexicons, total_markers
from epistill.metrics.words import count_words
from epistill.traces.measure import tabulator
from epistill.traces.options import Options

CONTROLS = [("paper-en", "control-en"), ("epistemic-zh", "control-zh")]


def test_every_list_has_a_version_and_a_source():
    for name in shipped_lexicons():
        lexicon = load_lexicon(name)
        assert lexicon.name == name
        assert lexicon.version >= 1
        assert len(lexicon.source) > 20


@pytest.mark.parametrize(("markers", "control"), CONTROLS)
def test_control_words_are_matched_in_frequency_and_are_no_markers(markers, control):
    assert load_lexicon(markers).control == control
    chosen, matched = set(load_lexicon(markers).words), set(load_lexicon(control).words)
    assert not chosen & matched
    text = (resources.files("epistill.metrics") / "lexicons" / f"{control}.json").read_text()
    pairs = json.loads(text)["matched"]
    assert set(pairs) == matched
    for marker, zipf, zipf_of_marker, *_ in pairs.values():
        assert marker in chosen
        assert abs(zipf - zipf_of_marker) <= 0.081


def test_control_words_occur_in_worked_solutions(shared_data):
    control = load_lexicon("control-en")
    found = dict.fromkeys(control.words, 0)
    for name in ("gsm8k/train.jsonl", "gsm8k/test.jsonl"):
        for line in (shared_data / name).read_text().splitlines():
            for word, count in count_markers(json.loads(line)["answer"], control).items():
                found[word] += count
    assert all(count > 0 for count in found.values())
    assert sum(found.values()) > 1000


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("等等，这可能不对", ["等等", "可能"]),
        ("让我检查一下", ["让我检查"]),  # the longest, once
        ("检查一下", ["检查"]),
        ("等等等", ["等等"]),
        ("可能性很大", []),  # a noun inside which 可能 stands
        ("这不可能", []),  # impossible
        ("所有可能的取值", []),
        ("不太可能", []),  # as "unlikely" is not "likely"
        ("有可能可能性", ["可能"]),
        ("大概率", []),
        ("也许多人", []),  # 也 + 许多
        ("其实部为 3", []),  # its real part
        ("我不太确定，也不确定", ["不太确定", "不确定"]),
        ("不确定性", []),
        ("嗯，wait，或许", ["嗯", "或许"]),
    ],
)
def test_chinese_longest_match_and_longer_words(text, found):
    counted = count_markers(text, load_lexicon("epistemic-zh"))
    assert {word: n for word, n in counted.items() if n} == dict.fromkeys(found, 1)


def test_english_markers_inside_chinese_text():
    assert total_markers("等等wait一下，maybe吧，unlikely") == 2
    assert count_words("等等wait一下") == 5


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"words": []}, "at least one word"),
        ({"words": ["um", "Um"]}, "no repeats"),
        ({"words": ["um"], "exceptions": ["um"]}, "no repeats"),
        ({"words": [""]}, "none of them empty"),
        ({"words": "um"}, "not a list of texts"),
        ({"words": [1]}, "not a list of texts"),
        ({"version": "one"}, "could not be read"),
        ({"version": float("inf")}, "could not be read"),
        ({"control": 5}, "control is '5', not the name of a list"),
        ({"words": ["um", "\ud800"]}, "surrogates not allowed"),
    ],
)
def test_an_own_list_that_does_not_fit_is_refused(change, words, tmp_path):
    path = tmp_path / "mine.json"
    good = {"name": "m", "version": 1, "language": "en", "source": "me", "words": ["um"]}
    path.write_text(json.dumps({**good, **change}))
    with pytest.raises(EpistillError, match=words):
        load_lexicon(str(path))


def test_an_own_list_that_is_nested_deeply_is_refused(tmp_path):
    path = tmp_path / "deep.json"
    path.write_text("[" * 100_000)
    with pytest.raises(EpistillError, match=r"could not be read \(RecursionError"):
        load_lexicon(str(path))


def test_an_own_list_in_another_encoding_is_refused(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text('{"name": "列表"}', encoding="gbk")
    with pytest.raises(EpistillError, match=r"could not be read \(UnicodeDecodeError"):
        load_lexicon(str(path))


def test_an_own_list_that_changed_is_read_again(tmp_path):
    """In one process, as in a notebook; also where it keeps its size and its time."""
    path = tmp_path / "mine.json"
    named = {"name": "mine", "version": 1, "source": "me", "language": "en"}
    for word in ("umm", "err"):
        path.write_text(json.dumps({**named, "words": [word]}))
        os.utime(path, (0, 0))
        assert load_lexicon(str(path)).words == (word,)
        assert tabulator(Options(lexicons=(str(path),))).lexicons[0].words == (word,)
