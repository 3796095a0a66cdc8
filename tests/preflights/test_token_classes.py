"""Classes of tokens from text offsets: one token per word, byte-level pieces, unusual spellings."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from epistill.metrics.lexicon import load_lexicon
from epistill.preflights.token_classes import CLASSES, classify, token_spans
from epistill.rollouts.marker_tokens import first_tokens

MARKERS, CONTROL = load_lexicon("paper-en"), load_lexicon("control-en")
TEXT = "Wait, so 12+3 = 15. Hmm… maybe não; alternatively, check given π≈3.14 unlikely 🙂 waiting"


def byte_level(vocabulary: int, words: list[str]) -> PreTrainedTokenizerFast:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator(
        words,
        trainers.BpeTrainer(
            vocab_size=vocabulary,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            special_tokens=["<eos>"],
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>")


@pytest.fixture(scope="module")
def coarse():
    return byte_level(600, [f" {w} {w} {w.capitalize()}" for w in MARKERS.words] * 20)


@pytest.fixture(scope="module")
def fine():
    return byte_level(258, ["zz"])  # bytes: every letter a token


@pytest.fixture(params=["coarse", "fine"])
def tokenizer(request):
    return request.getfixturevalue(request.param)


def words_of(tokenizer, ids, kind):
    """The text of every run of tokens of one class, spaces aside."""
    found = classify(tokenizer, ids, markers=MARKERS, control=CONTROL)
    joined = "".join(
        piece if CLASSES[k] == kind else "|"
        for piece, k in zip(found.pieces, found.classes, strict=True)
    )
    return [part.strip() for part in joined.split("|") if part.strip()]


def test_spans_tile_the_text_whatever_the_pieces(tokenizer):
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    text, spans = token_spans(tokenizer, ids)
    assert text == TEXT
    covered = set().union(*(range(a, b) for a, b in spans))
    assert {i for i, c in enumerate(text) if not c.isspace()} <= covered
    assert all(a <= b for a, b in spans)
    assert spans == sorted(spans)


def test_classes_are_those_of_the_words(tokenizer):
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    assert words_of(tokenizer, ids, "marker") == ["Wait", "Hmm", "maybe", "alternatively", "check"]
    assert words_of(tokenizer, ids, "control") == ["given"]
    numbers = "".join(words_of(tokenizer, ids, "number")).replace(" ", "")
    # The bytes of one character share its span.
    assert numbers.replace("≈≈≈", "≈") == "12+3=15≈3.14"


def test_each_marker_begins_once(tokenizer):
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    found = classify(tokenizer, ids, markers=MARKERS, control=None)
    begins = [p.strip()[:1] for p, s in zip(found.pieces, found.starts, strict=True) if s]
    assert begins == ["W", "H", "m", "a", "c"]


def test_ids_that_the_tokenizer_would_not_choose(coarse, fine):
    """A model may write `w a i t` although the tokenizer has `wait`, and half a character."""
    single = coarse.get_vocab()
    ids = [single[c] for c in "Ġwait,"] + [single["Ġ"], *coarse("é🙂")["input_ids"]]
    assert coarse(coarse.decode(ids), add_special_tokens=False)["input_ids"] != ids
    assert words_of(coarse, ids, "marker") == ["wait"]
    text, spans = token_spans(coarse, ids)
    assert spans[-1][1] == len(text)
    broken = fine("maybe 🙂", add_special_tokens=False)["input_ids"][:-1]
    assert words_of(fine, broken, "marker") == ["maybe"]


def test_the_lab_tokenizer_and_its_tags(lab_model):
    text = "so 16 10 29 dust hmm maybe 33 gold check 33 </think> answer 33"
    ids = [*lab_model.tokenizer(text, add_special_tokens=False)["input_ids"]]
    ids.append(next(iter(lab_model.eos_ids)))
    found = classify(
        lab_model.tokenizer, ids, markers=MARKERS, control=CONTROL, ends=lab_model.eos_ids
    )
    kinds = [CLASSES[k] for k in found.classes]
    assert kinds == ["other", *["number"] * 3, "other", "marker", "marker", "number", "other",
                     "marker", "number", "other", "other", "number", "other"]  # fmt: skip
    assert found.pieces[-1] == ""
    assert found.starts.sum() == 3


def test_first_tokens_are_whole_markers_or_long_beginnings(lab_model, coarse, fine):
    lab = first_tokens(lab_model.tokenizer, MARKERS)
    assert {lab_model.tokenizer.decode([i]) for i in lab.ids} == set(MARKERS.words)
    assert lab.missing == ()
    spelled = {coarse.decode([i]) for i in first_tokens(coarse, MARKERS).ids}
    assert {" wait", " maybe", " Hmm"} <= spelled
    for piece in spelled:
        bare = piece.strip().lower()
        assert any(w == bare or (w.startswith(bare) and len(bare) >= 4) for w in MARKERS.words)
    assert first_tokens(fine, MARKERS).ids == ()  # a byte says nothing of the word
    assert set(first_tokens(fine, MARKERS).missing) == set(MARKERS.words)
