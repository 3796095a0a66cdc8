"""The vectorised scanner against the one-text reference, on text that a generator makes nasty."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from epistill.metrics.epistemic import count_markers, marker_spans, official_substring_count
from epistill.metrics.lexicon import Lexicon, load_lexicon
from epistill.metrics.scan import Scanner, leftmost_longest
from epistill.metrics.words import WORD, count_words, fold, make_buffer

ODD = Lexicon(
    "odd", 1, "test", "xx", ("haha", "wait", "wait a", "等等", "...", "don't", "é"), ("等等级",)
)
LEXICONS = (load_lexicon(), load_lexicon("epistemic-zh"), load_lexicon("retractions-en"), ODD)
SCANNER = Scanner(LEXICONS)

pieces = st.one_of(
    st.sampled_from([p for lexicon in LEXICONS for p in (*lexicon.words, *lexicon.exceptions)]),
    st.sampled_from(["un", "ing", " ", " ", "\n", "'", "’", "_", "7", ".", "a", "ha", "等", "性", "ſ", "İ", "K"]),
    st.text(max_size=3),
)  # fmt: skip
texts = st.lists(pieces, max_size=12).map("".join)


@given(st.lists(texts, min_size=1, max_size=4))
def test_markers_words_and_substrings_equal_the_reference(batch):
    buffer = make_buffer(batch)
    found = SCANNER.scan(buffer)
    for lexicon, hits in zip(LEXICONS, found, strict=True):
        for i, text in enumerate(batch):
            own = hits.markers.texts == i
            counted = Counter(lexicon.words[w] for w in hits.markers.words[own])
            assert counted == +Counter(count_markers(text, lexicon))
            byte = [len(fold(text)[:k].encode()) for k in range(len(text) + 1)]
            spans = [(byte[a], byte[b]) for a, b in marker_spans(text, lexicon)]
            base = buffer.starts[i]
            ranges = zip(
                hits.markers.starts[own] - base, hits.markers.stops[own] - base, strict=True
            )
            assert [(int(a), int(b)) for a, b in ranges] == spans
    counts = np.diff(buffer.words_before(np.append(buffer.starts, len(buffer.data))))
    assert counts.tolist() == [count_words(text) for text in batch]


@given(texts)
def test_substrings_are_the_official_count(text):
    text = text.replace("İ", "I").replace("’", "'")  # one grows when lowered, one is folded
    buffer = make_buffer([text])
    for lexicon, hits in zip(LEXICONS, SCANNER.scan(buffer), strict=True):
        counted = Counter(lexicon.words[w] for w in hits.substrings.words)
        assert counted == +Counter(official_substring_count(text, lexicon))


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 6)), max_size=12))
def test_leftmost_longest_is_the_greedy_walk(ranges):
    ranges = sorted({(a, a + n) for a, n in ranges}, key=lambda r: (r[1], r[0]))
    expected, free = [], 0
    for start, stop in sorted(ranges, key=lambda r: (r[0], -r[1])):
        if start >= free:
            expected.append((start, stop))
            free = stop
    starts = np.array([r[0] for r in ranges], np.int64)
    stops = np.array([r[1] for r in ranges], np.int64)
    assert [ranges[i] for i in leftmost_longest(starts, stops)] == expected


def words_begin_as_in_the_regular_expression(text):
    folded = fold(text)
    buffer = make_buffer([text])
    expected = [len(folded[: match.start()].encode()) for match in WORD.finditer(folded)]
    return (buffer.word_starts - buffer.starts[0]).tolist() == expected


@given(texts)
def test_word_starts_are_those_of_the_regular_expression(text):
    assert words_begin_as_in_the_regular_expression(text)


def test_words_begin_alike_wherever_in_a_block_of_bits_they_stand():
    for shift in range(130):
        text = "x" * shift + " don't 'a' b's 等'c"
        assert words_begin_as_in_the_regular_expression(text)


def test_positions_of_a_text_are_found_by_search():
    buffer = make_buffer(["a b", "", "c"])
    assert buffer.text_of(buffer.word_starts).tolist() == [0, 0, 2]
    assert buffer.words_before(buffer.starts).tolist() == [0, 2, 2]


def test_a_lone_surrogate_is_a_character_like_any_other():
    buffer = make_buffer(["wait \ud800 wait", "\ud83d\ude00 hmm"])
    assert SCANNER.scan(buffer)[0].markers.words.tolist() == [0, 0, 1]
