"""The memory in which training starts, counted while it is laid out."""

from __future__ import annotations

import gc

import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp._fully_shard import _fsdp_init
from torch.testing._internal.distributed.fake_pg import FakeStore

from epistill.config import RunConfig
from epistill.methods import method
from epistill.rollouts.model import LanguageModel, with_lora
from epistill.studies.plan import plan_study
from epistill.training import train_state
from epistill.training.sharding import nowhere_whole
from epistill.world import World
from tests.helpers.models import make_tiny_model
from tests.helpers.plans import SERVED, changed, network, small

EIGHT = 8
SNAPSHOT, EMA = ({"teacher": {"type": kind}} for kind in ("snapshot", "ema"))


def tensors_alive() -> dict[int, int]:
    """Bytes of the memory of every tensor, by its address."""
    gc.collect()
    tensors = [one for one in gc.get_objects() if type(one) in (torch.Tensor, torch.nn.Parameter)]
    storages = [one.untyped_storage() for one in tensors]
    return {storage.data_ptr(): storage.nbytes() for storage in storages}


@pytest.fixture
def one_of_eight():
    """Processes of which seven are not there: enough to shard, not to compute."""
    dist.init_process_group("fake", rank=0, world_size=EIGHT, store=FakeStore())
    yield World(0, EIGHT)
    dist.destroy_process_group()


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("vocabulary", [64, 16_384])
@pytest.mark.parametrize(
    ("name", "chosen", "changes"),
    [
        ("grpo", {}, SERVED),
        ("sdpo", {}, SERVED),
        ("sdpo", EMA, SERVED),
        ("sdpo", SNAPSHOT, SERVED | {"lora": {"rank": 1}}),
        ("sdpo", {}, {}),
        ("sdpo", EMA, {"lora": {"rank": 1}}),
    ],
    ids=[
        "GRPO",
        "SDPO",
        "EMA",
        "snapshot of an adapter",
        "SDPO samples",
        "an adapter's EMA samples",
    ],
)
def test_the_start_holds_on_a_gpu_what_the_plan_says(
    name, chosen, changes, vocabulary, tied, one_of_eight, monkeypatch
):
    """FSDP's own sharding of eight; a GPU is what memory is made after the network is loaded."""
    sizes = {"vocab_size": vocabulary, "hidden_size": 256, "intermediate_size": 2048}
    shape = small("qwen3", tie_word_embeddings=tied, **sizes)
    changes = {"parallel": "shard", "precision": None, **changes}
    spec = changed(**changes)
    arm = spec.arms[1].model_copy(update={"method": name, "method_settings": chosen})
    update = {"arms": (arm,), "architectures": dict.fromkeys(spec.architectures, shape)}
    memory = plan_study(spec.model_copy(update=update), gpus=EIGHT)["arms"][arm.id]["memory"]
    settings = {"model": "lab", "task": {"type": "star_search"}, "method": method(name, **chosen)}
    config = RunConfig.model_validate({**settings, **changes})
    served = nowhere_whole(config, EIGHT)

    def on_gpu():
        return sum(size for place, size in tensors_alive().items() if place not in before)

    def moved(parameters, buffers, device):
        for one in (*parameters, *buffers) if served else ():
            one.data = one.clone()  # as torch's own does where they lie on another device
        shares = sum(one.nbytes for one in parameters) // EIGHT  # are made next, then it returns
        seen.append(on_gpu() + shares)

    monkeypatch.setattr(_fsdp_init, "_move_states_to_device", moved)
    student = LanguageModel(network(shape).eval(), make_tiny_model().tokenizer, "small")
    if config.lora is not None:
        student = with_lora(student, config.lora)
    host = [one.untyped_storage() for one in student.network.parameters()]  # no address comes twice
    before, seen = tensors_alive().keys(), []
    state = train_state.make_train_state(config, student, one_of_eight)
    # Beside it: an adapter's own weights, buffers; the plan's student is there before.
    assert max(seen) == pytest.approx(memory["start"] - memory["student"], rel=0.05)
    assert on_gpu() == pytest.approx(memory["weights"] + memory["teacher"], rel=0.05)
    del host
    assert (memory["host"] > 0) == served == (state.student is state.trained)
