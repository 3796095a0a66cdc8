"""Two processes score with a sharded network: prompts once, calls equally many, scores of whole rows."""

from __future__ import annotations

import json

import pytest
import torch

from epistill.rollouts.scoring import score_completions
from tests.helpers.drivers.scores import NETWORKS, network, rows
from tests.helpers.plain_flash import use_plain_flash
from tests.helpers.two_processes import on_two


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """What each process found; one that calls a network more often than the other ends both."""
    folder = tmp_path_factory.mktemp("scores")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EPISTILL_HANG_MINUTES", "5")
        on_two("scores", folder)
    return [json.loads((folder / f"scores-{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("name", NETWORKS)
def test_scores_are_those_of_rows_read_alone(scored, monkeypatch, name):
    use_plain_flash(monkeypatch)
    model = network(name)
    for prompt, completion, *found in zip(
        *rows(), *(one[name]["log_probs"] for one in scored), strict=True
    ):
        expected = score_completions(model, [prompt], [completion])[0].log_probs
        for one in found:
            torch.testing.assert_close(torch.tensor(one), expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_prompts_are_read_once_and_the_calls_that_a_process_has_less_are_made_up(scored, name):
    first, second = (one[name]["read"] for one in scored)
    assert len(first) == len(second)
    assert 1 in first + second  # a call that only keeps a process in step
    whole = sum(len(prompt) + len(said) for prompt, said in zip(*rows(), strict=True))
    assert sum(first + second) < (0.95 if name == "windows" else 0.8) * whole
