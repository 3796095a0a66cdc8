"""The file of weights of every family that is trained: what its own library would write."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from epistill.rollouts.load_model import lab_directory, load_tokenizer
from epistill.rollouts.weights_file import WEIGHTS, own_tensors, write_model
from tests.helpers.families import FAMILIES, tiny_model


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(str(lab_directory()), "lab", trust=False)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_names_and_numbers_are_those_of_save_pretrained(family, tokenizer, tmp_path):
    """Experts that are one tensor in memory are many in the file."""
    network = tiny_model(family, tokenizer).network
    assert write_model(network, own_tensors(network), tmp_path / "own") is None
    network.save_pretrained(tmp_path / "saved")
    own, saved = (load_file(tmp_path / folder / WEIGHTS) for folder in ("own", "saved"))
    assert own.keys() == saved.keys()
    assert all(torch.equal(own[name], tensor) for name, tensor in saved.items())
