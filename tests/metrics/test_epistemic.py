from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epistill.errors import EpistillError
from epistill.metrics.epistemic import (
    count_markers,
    density,
    marker_spans,
    official_substring_count,
    total_markers,
)
from epistill.metrics.lexicon import load_lexicon
from epistill.metrics.words import count_words

TEN = (
    "wait",
    "hmm",
    "perhaps",
    "maybe",
    "actually",
    "alternatively",
    "seems",
    "might",
    "likely",
    "check",
)


def test_the_papers_ten():
    assert set(load_lexicon().words) == set(TEN)


@pytest.mark.parametrize(
    ("text", "word", "ours", "official"),
    [
        ("It is unlikely.", "likely", 0, 1),
        ("I am waiting; he awaits.", "wait", 0, 2),
        ("checked, checking, check.", "check", 1, 3),
        ("Mighty might!", "might", 1, 2),
        ("WAIT—Wait, wait... _wait_ wait-and-see", "wait", 4, 5),
        ("maybe\nmaybe\tmaybe", "maybe", 3, 3),
        ("Hmm,hmm.hmm", "hmm", 3, 3),
    ],
)
def test_word_boundaries_against_the_official_substring_count(text, word, ours, official):
    assert count_markers(text)[word] == ours
    assert official_substring_count(text)[word] == official


words = st.lists(st.sampled_from([*TEN, "unlikely", "so", "waiting", "x1", "it's"]), max_size=30)
separators = st.sampled_from([" ", ", ", "\n", ". ", "!? "])


@given(words, words, separators)
def test_counts_add_up_over_concatenation(first, second, separator):
    a, b = separator.join(first), separator.join(second)
    assert total_markers(a + separator + b) == total_markers(a) + total_markers(b)


@given(words, separators)
def test_counts_are_those_of_the_words(chosen, separator):
    found = count_markers(separator.join(chosen))
    assert found == {word: chosen.count(word) for word in load_lexicon().words}


@given(st.text(max_size=200))
def test_never_more_than_the_substring_count(text):
    # str.lower can lengthen a text (İ), so only ASCII-safe counts are compared.
    if text.isascii():
        official = official_substring_count(text)
        assert all(n <= official[word] for word, n in count_markers(text).items())


@given(st.text(max_size=200))
def test_spans_are_the_counted_markers(text):
    spans = marker_spans(text)
    assert len(spans) == total_markers(text)
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))


def test_density_and_words():
    assert density(3, 150) == 20.0
    assert density(0, 0) is None
    assert count_words("") == 0
    assert count_words("don't stop") == 2


def test_own_lexicons(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(
        json.dumps({"name": "m", "version": 2, "language": "en", "source": "me", "words": ["Um"]})
    )
    assert count_markers("um, UM, umbrella", load_lexicon(str(path))) == {"um": 2}
    path.write_text("{}")
    with pytest.raises(EpistillError, match="could not be read"):
        load_lexicon(str(path))
    with pytest.raises(EpistillError, match="no lexicon"):
        load_lexicon("nothing")
