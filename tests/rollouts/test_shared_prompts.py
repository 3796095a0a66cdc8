"""Prompts computed once for the rows that share them: the same numbers from fewer tokens."""

from __future__ import annotations

import json

import pytest
import torch

from epistill.rollouts import shared_prompts
from epistill.rollouts.align import align
from epistill.rollouts.scoring import score_completions
from epistill.rollouts.shared_prompts import SharedPrompts
from epistill.world import World
from tests.helpers.drivers.scores import NETWORKS, network, rows
from tests.helpers.families import tiny_model
from tests.helpers.models import make_tiny_model
from tests.helpers.plain_flash import FLASH, use_plain_flash
from tests.helpers.two_processes import on_two

DRAW = torch.Generator().manual_seed(5)


def ids(length):
    return tuple(torch.randint(3, 60, (length,), generator=DRAW).tolist())


ROWS = {
    "equally long": ([ids(9)] * 3 + [ids(9)] * 2, [ids(n) for n in (4, 7, 1, 5, 6)]),
    "of any length": ([ids(20)] * 3 + [ids(2)] * 3, [ids(n) for n in (3, 8, 8, 1, 12, 2)]),
    "of one token": ([ids(6)] * 4, [ids(1)] * 4),
    "in turn": ([ids(8), ids(11)] * 3, [ids(n) for n in (3, 5, 4, 6, 2, 7)]),
}


def read_tokens(model):
    """Tokens that the decoder reads from now on, call by call."""
    calls = []
    model.decoder().register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    return calls


def shared(prompts, completions, *, most_tokens, batches=None):
    """Of one process; all rows are one micro-batch unless it is said."""
    batches = batches or [range(len(prompts))]
    return SharedPrompts(prompts, completions, batches, most_tokens=most_tokens)


def plain(model, prompts, completions):
    with torch.no_grad():
        return align(model, prompts, completions).hidden(model)


@pytest.mark.parametrize("rows", ROWS)
def test_hidden_states_are_those_of_whole_rows(rows):
    prompts, completions = ROWS[rows]
    model = make_tiny_model(layers=2)
    model.network.double()
    expected = plain(model, prompts, completions)
    calls = read_tokens(model)
    found = shared(prompts, completions, most_tokens=100).hidden(model)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    longest = max(map(len, set(prompts)))
    assert calls[0] == len(set(prompts)) * longest
    assert sum(calls[1:]) == len(prompts) * (max(map(len, completions)) - 1)


@pytest.mark.parametrize(("most", "reads"), [(100, 2), (11, 4), (0, 0)])
def test_a_prompt_is_kept_while_rows_are_to_come_and_there_is_room(most, reads):
    """Without room nothing would be saved: rows are read whole."""
    prompts, completions = ROWS["in turn"]
    model = make_tiny_model()
    expected = plain(model, prompts, completions)
    calls = read_tokens(model)
    one_by_one = shared(prompts, completions, most_tokens=most, batches=[[i] for i in range(6)])
    found = [one_by_one.hidden(model) for _ in prompts]
    torch.testing.assert_close(torch.cat(found), expected, rtol=1e-5, atol=1e-5)
    assert len(calls) == reads + len(prompts)
    assert not one_by_one._kept


def test_read_whole_where_little_is_saved():
    model = make_tiny_model()
    prompts, completions = [ids(2)] * 3 + [ids(3)], [ids(12)] * 4
    calls = read_tokens(model)
    shared(prompts, completions, most_tokens=100).hidden(model)
    assert calls == [4 * 15]


def test_read_whole_where_a_layer_keeps_something_else():
    """A window that is shorter than the rows, and a state that is no keys and values."""
    tokenizer = make_tiny_model().tokenizer
    for family in ("gemma2", "qwen3_5_text"):
        model = tiny_model(family, tokenizer)
        prompts, completions = ROWS["of any length"]
        calls = read_tokens(model)
        shared(prompts, completions, most_tokens=100).hidden(model)
        assert calls == [6 * 28]


def test_of_packed_rows_prompts_are_read_once_and_the_rest_is_padded_little(monkeypatch):
    """A packed micro-batch has rows of any length."""
    use_plain_flash(monkeypatch)
    prompts = [ids(20)] * 4 + [ids(30)] * 3 + [ids(4)] * 2
    completions = [ids(n) for n in (3, 60, 8, 1, 12, 2, 50, 9, 8)]
    model = tiny_model("llama", make_tiny_model().tokenizer, attn_implementation=FLASH)
    model.network.double()
    expected = plain(model, prompts, completions)
    model.packs = True
    calls = read_tokens(model)
    found = shared(prompts, completions, most_tokens=200).hidden(model)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    whole = sum(map(len, (*prompts, *completions)))
    assert 20 + 30 + 4 + sum(map(len, completions)) - 9 <= sum(calls) < 0.8 * whole
    # Too little is saved: whole rows, packed.
    calls.clear()
    shared(prompts[3:5], completions[3:5], most_tokens=200).hidden(model)
    assert calls == [20 + 1 + 30 + 12]


@pytest.mark.parametrize("second", ["one prompt", "its own"])
def test_processes_that_call_together_decide_together(monkeypatch, second):
    """The first has four rows of one prompt; what it saves alone, it then waits for the second."""
    monkeypatch.setattr(shared_prompts, "FSDPModule", torch.nn.Module)  # as if it were sharded
    monkeypatch.setattr(shared_prompts, "GATHER_TOKENS", {})
    others = [ids(20)] * 4 if second == "one prompt" else [ids(20) for _ in range(4)]
    prompts, completions = [ids(20)] * 4 + others, [ids(5)] * 8
    batches, model = [[0, 1, 2, 3], [4, 5, 6, 7]], make_tiny_model()
    for rank in range(2):
        monkeypatch.setattr(shared_prompts, "current_world", lambda rank=rank: World(rank, 2))
        planned = SharedPrompts(prompts, completions, batches, most_tokens=100)._planned(model)
        ((parts, missing),) = planned
        assert [part.new is not None for part in parts] == [second == "one prompt"]
        assert missing == 0


def test_scores_in_bfloat16_are_near():
    prompts, completions = ROWS["of any length"]
    model = make_tiny_model(layers=2)
    exact = score_completions(model, prompts, completions)
    model.network.bfloat16()
    for one, other in zip(exact, score_completions(model, prompts, completions), strict=True):
        torch.testing.assert_close(one.log_probs, other.log_probs, atol=0.05, rtol=0.05)


@pytest.fixture(scope="module")
def scored_by_two(tmp_path_factory):
    """What each process found; one that calls a network more often than the other ends both."""
    folder = tmp_path_factory.mktemp("scores")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EPISTILL_HANG_MINUTES", "5")
        on_two("scores", folder)
    return [json.loads((folder / f"scores-{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("name", NETWORKS)
def test_a_sharded_network_scores_rows_as_alone(scored_by_two, monkeypatch, name):
    use_plain_flash(monkeypatch)
    model = network(name)
    for prompt, completion, *found in zip(
        *rows(), *(one[name]["log_probs"] for one in scored_by_two), strict=True
    ):
        expected = score_completions(model, [prompt], [completion])[0].log_probs
        for one in found:
            torch.testing.assert_close(torch.tensor(one), expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_sharded_network_reads_prompts_once_and_the_calls_that_a_process_has_less_are_made_up(
    scored_by_two, name
):
    first, second = (one[name]["read"] for one in scored_by_two)
    assert len(first) == len(second)
    assert 1 in first + second  # a call that only keeps a process in step
    whole = sum(len(prompt) + len(said) for prompt, said in zip(*rows(), strict=True))
    assert sum(first + second) < (0.95 if name == "windows" else 0.8) * whole


def test_a_sharded_network_reads_short_rows_whole_since_each_call_gathers_it(scored_by_two):
    once, weighed = (scored_by_two[0][name] for name in ("plain", "weighed"))
    assert len(weighed["read"]) < len(once["read"])
    for one, other in zip(once["log_probs"], weighed["log_probs"], strict=True):
        assert one == pytest.approx(other, abs=1e-4)
