from __future__ import annotations

import dataclasses

import pytest
import torch
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

from epistill.config import SamplingConfig
from epistill.errors import EpistillError
from epistill.rollouts import sampler
from epistill.rollouts.engine import PromptRequest
from epistill.rollouts.prompts import render_prompt
from epistill.rollouts.ruled_draws import RuledDraws
from epistill.rollouts.sampler import sample
from epistill.rollouts.scoring import score_completions
from epistill.tasks.star_search import star_problem


def draw(model, samples=6, **settings):
    problems = [star_problem(a, d, 0, "rules", i) for i, (a, d) in enumerate(((5, 3), (3, 2)))]
    requests = [
        PromptRequest(p.id, render_prompt(model.tokenizer, p.messages).ids) for p in problems
    ]
    sampling = SamplingConfig(**{"max_new_tokens": 60, **settings})
    return sample(model, requests, samples=samples, sampling=sampling, seed=3)


def words_of(rollout):
    return rollout.text.split()


def test_without_rules_nothing_is_marked(lab_model):
    assert {rollout.forced for rollout in draw(lab_model)} == {None}


def test_a_rule_that_never_holds_changes_no_token(lab_model):
    ruled = draw(lab_model, force=("wait@after:never written",), block=("Feedback",))
    assert [dataclasses.replace(r, forced=None) for r in ruled] == draw(lab_model)
    assert not any(any(r.forced) for r in ruled)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_a_blocked_draw_is_a_draw_without_the_word(lab_model, monkeypatch, temperature, top_p):
    """The slow way: the word's token has probability 0, whatever is drawn there, everywhere."""
    drawing = {"temperature": temperature, "top_p": top_p}
    ruled = draw(lab_model, block=("so", "MAYBE"), **drawing)
    banned = lab_model.tokenizer.convert_tokens_to_ids(["so", "maybe"])
    keys = sampler._keys

    def without(log_probs, sampling, noise):
        found = keys(log_probs, sampling, noise)
        found[:, banned] = -torch.inf
        lost = found.amax(-1) == -torch.inf  # top-p left nothing but them
        rest = log_probs.index_fill(-1, torch.tensor(banned), -torch.inf)
        return torch.where(lost[:, None], rest, found)

    monkeypatch.setattr(sampler, "_keys", without)
    plain = draw(lab_model, **drawing)
    assert [r.completion_ids for r in ruled] == [r.completion_ids for r in plain]
    assert any(any(r.forced) for r in ruled)
    assert not any({"so", "maybe"} & set(words_of(r)) for r in ruled)


def test_words_are_forced_at_their_places_and_nowhere_else(lab_model):
    for rollout in draw(lab_model, force=("maybe@start", "1*hmm wait@after:dust")):
        words = words_of(rollout)
        assert words[0] == "maybe"
        after = [i for i, word in enumerate(words) if word == "dust"]
        if after:
            assert words[after[0] + 1 : after[0] + 3] == ["hmm", "wait"]
        marked = {i for i, forced in enumerate(rollout.forced) if forced}
        assert marked == {0} | ({after[0] + 1, after[0] + 2} if after else set())


def test_thinking_does_not_end_before_a_pattern(lab_model):
    free = draw(lab_model)
    assert any("gold" not in words_of(r) for r in free)
    for rollout in draw(lab_model, block=("</think>@until:gold",)):
        words = words_of(rollout)
        assert "</think>" not in words or "gold" in words[: words.index("</think>")]


def test_instead_of_a_token_at_most_so_often(lab_model):
    for rollout in draw(lab_model, force=("2*wait try@before:</think>",), max_new_tokens=200):
        thinking = rollout.text.split("</think>")[0]
        assert thinking.count("wait try") >= 2
        assert sum(rollout.forced) == 4


def test_forcing_ends_with_the_thinking(lab_model):
    for rollout in draw(lab_model, force=("wait@after:answer",)):
        assert not any(rollout.forced)


def test_end_tokens_can_be_blocked(lab_model):
    rollouts = draw(lab_model, block=("<end>@until:check",), max_new_tokens=40)
    for rollout in rollouts:
        assert rollout.stop_reason == "length" or "check" in rollout.text


def test_a_lexicon_can_be_blocked(lab_model):
    from epistill.metrics.epistemic import total_markers

    assert sum(total_markers(r.text) for r in draw(lab_model)) > 0
    assert {total_markers(r.text) for r in draw(lab_model, block=("lexicon:paper-en",))} == {0}


def test_log_probs_of_forced_tokens_are_the_models_own(lab_model):
    """They say how likely the model found what it was made to say."""
    rollouts = draw(lab_model, force=("hmm@after:dust",), block=("so",))
    scored = score_completions(
        lab_model, [r.prompt_ids for r in rollouts], [r.completion_ids for r in rollouts]
    )
    for rollout, scores in zip(rollouts, scored, strict=True):
        torch.testing.assert_close(
            torch.tensor(rollout.logprobs), scores.log_probs, atol=2e-4, rtol=0
        )


def test_a_model_without_the_words_says_so(lab_model):
    with pytest.raises(EpistillError, match="cannot write 'Foo'"):
        draw(lab_model, force=("Foo@start",))
    with pytest.raises(EpistillError, match="in 2 tokens; expected one token"):
        draw(lab_model, force=("wait@before:hmm wait",))


@pytest.fixture(scope="module")
def byte_tokenizer():
    """Every byte a token, and a few longer ones: one word has many spellings in tokens."""
    alphabet = sorted(ByteLevel.alphabet())
    longer = ["Wa", "it", "Wait", "ĠW", "Ġmi", "gh", "ght", "Ġmigh", "Ġmight"]
    merges = [("W", "a"), ("i", "t"), ("Wa", "it"), ("Ġ", "W"), ("m", "i"), ("Ġ", "mi"),
              ("g", "h"), ("gh", "t"), ("Ġmi", "gh"), ("Ġmigh", "t")]  # fmt: skip
    vocab = {t: i for i, t in enumerate(dict.fromkeys([*alphabet, "mi", *longer, "<e>"]))}
    core = Tokenizer(BPE(vocab, merges))
    core.pre_tokenizer = ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<e>")


def written(tokenizer, wanted, **rules):
    """What is written when the model's favourites are these tokens, in turn, then spaces."""
    vocab = tokenizer.get_vocab()
    settings = SamplingConfig(temperature=0.0, **rules)
    draws = RuledDraws(tokenizer, {vocab["<e>"]}, settings, 1)
    out = []
    for favourite in wanted:
        keys = torch.full((1, len(vocab)), -9.0)
        keys[0, vocab["Ġ"]], keys[0, vocab[favourite]] = -1.0, 0.0
        out += draws.settle(torch.tensor([0]), keys.argmax(-1), keys, keys).tolist()
    return tokenizer.decode(out), draws.rows[0].decided


@pytest.mark.parametrize("spelling", [["Wait"], ["Wa", "it"], ["W", "a", "i", "t"]])
def test_a_word_is_blocked_however_its_tokens_spell_it(byte_tokenizer, spelling):
    text, decided = written(byte_tokenizer, spelling, block=("wait",))
    assert "wait" not in text.lower()
    assert decided == [False] * (len(spelling) - 1) + [True]


def test_another_word_that_holds_it_is_allowed(byte_tokenizer):
    assert written(byte_tokenizer, ["A", "Wait"], block=("wait",))[0] == "AWait"
    text, _ = written(byte_tokenizer, ["Ġmight"], block=("may", "igh"))
    assert text == " might"


def test_forced_words_get_a_space_where_they_would_touch(byte_tokenizer):
    text, decided = written(byte_tokenizer, ["a", ".", *"bbbb"], force=("Wait@after:\\.",))
    assert text == "a. Wait" + "b" * decided[2:].count(False)


def test_lines_begin_after_a_line_break(byte_tokenizer):
    wanted = ["a", "b", "Ċ", "x", "y", "z"]
    text, decided = written(byte_tokenizer, wanted, force=("Wait@line",))
    assert text == "Waitb\nWaityz"
    assert decided == [True, False, False, True, False, False]


def test_characters_of_several_tokens_do_not_disturb(byte_tokenizer):
    euro = list("âĤ¬")  # the three bytes of one sign
    text, _ = written(byte_tokenizer, [*euro, "Wait", *euro], block=("wait",))
    assert text == "€ €"
