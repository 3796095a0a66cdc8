"""Sharded training with all responses from servers: no process holds a whole copy."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from epistill.config import EvalSet, Lora, RunConfig, SamplingConfig
from epistill.errors import EpistillError
from epistill.methods import method
from epistill.rollouts.load_model import load_model
from epistill.rollouts.model import with_lora
from epistill.rollouts.vllm_weights import write_weights
from epistill.rollouts.weights_file import WEIGHTS, own_tensors, write_model
from epistill.store import RunStore
from epistill.studies import run_arm
from epistill.studies.run_arm import run
from epistill.training import loop
from epistill.training.sharding import attention_waits, nowhere_whole
from tests.helpers.fake_vllm import FakeVllm
from tests.helpers.two_processes import on_two

LORA = {"lora": {"rank": 4, "alpha": 8.0}}
EMA = {"method": method("sdpo", teacher={"type": "ema", "rate": 0.2}).model_dump(mode="json")}
KINDS = {"grpo": {}, "sdpo": {}, "ema": EMA, "lora": LORA, "lora-ema": EMA | LORA}
TEST = {"name": "test", "problems": 3, "samples": 2, "force": ["wait@start"], "block": ["so"],
        "task": {"type": "star_search", "arms": 3, "depth": 2, "split": "test"}}  # fmt: skip


def settings(kind, url, **changes):
    return {
        "model": "lab",
        "task": {"type": "star_search", "arms": 3, "depth": 2},
        "method": method("grpo" if kind == "grpo" else "sdpo").model_dump(mode="json"),
        "sampling": {"max_new_tokens": 24},
        "steps": 3, "problems_per_step": 3, "samples_per_problem": 4, "updates_per_batch": 2,
        "learning_rate": 1e-3, "checkpoint_every": 2, "eval_every": 1, "evaluations": [TEST],
        "eval_sampling": {"max_new_tokens": 8, "temperature": 0.6, "top_p": 0.9},
        "rollouts": {"engine": "vllm", "urls": [url], "model": "m", "attempts": 2},
        **KINDS[kind], **changes,
    }  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Each kind by one process and, sharded, by two; on a server of the lab's model."""
    folder = tmp_path_factory.mktemp("nowhere-whole")
    with FakeVllm(load_model("lab")) as server:
        for kind in KINDS:
            run(RunConfig.model_validate(settings(kind, server.url)), folder / f"one-{kind}")
        two = [(folder / f"two-{kind}", settings(kind, server.url)) for kind in KINDS]
        stopped = {"max_new_tokens": 8, "stop": ["gold"]}
        two.append((folder / "two-stopped", settings("grpo", server.url, eval_sampling=stopped)))
        job = folder / "job.json"
        sharded = [[str(path), config | {"parallel": "shard"}] for path, config in two]
        job.write_text(json.dumps(sharded))
        on_two("held", job)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_the_run_is_that_of_one_process(trained, kind):
    one, two = trained / f"one-{kind}", trained / f"two-{kind}"
    first, second = RunStore(one).metrics(), RunStore(two).metrics()
    assert len(first) == len(second) == 3
    assert any(row["gradient_norm"] for row in first)
    for a, b in zip(first, second, strict=True):
        assert a.keys() == b.keys()
        # How long a busy server lets a connection wait is no matter of the weights.
        for name in a.keys() - {"padding_share", "requests_retried"}:
            near = pytest.approx(a[name], abs=1e-5, rel=1e-4) if a[name] is not None else None
            assert b[name] == near, name
    (mine,), (theirs,) = ((f / "model").glob("*.safetensors") for f in (one, two))
    mine, theirs = load_file(mine), load_file(theirs)
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        torch.testing.assert_close(theirs[name], tensor, atol=1e-5, rtol=1e-4)
    load_model(str(two / "model"))


@pytest.mark.parametrize("kind", KINDS)
def test_no_process_keeps_a_whole_matrix(trained, kind):
    held = json.loads((trained / f"two-{kind}" / "held.json").read_text())
    assert held == [[0] * 4] * 2, "bytes of both after 0 to 3 steps"


def test_an_evaluation_that_servers_cannot_make_keeps_the_whole_copy(trained):
    """What tells that the count above counts."""
    held = json.loads((trained / "two-stopped" / "held.json").read_text())
    assert min(map(min, held)) > 100_000


@pytest.mark.parametrize("kind", KINDS)
def test_evaluations_are_made_by_the_servers(trained, kind):
    store = RunStore(trained / f"two-{kind}")
    rows = store.read_evaluation("final-test")
    assert len(rows) == 6
    assert all(row["n_forced"] >= 1 for row in rows)
    assert all(row["text"].startswith("wait") for row in rows if row["sample"] == 0)
    assert not any("so" in (row["text"] or "").split() for row in rows)
    curve = store.read_evaluation("curve")
    assert [row["step"] for row in curve] == [0, 1, 2]


@pytest.mark.parametrize(("at", "done"), [(1, 0), (3, 2), (4, 3)])
def test_servers_lost_in_an_evaluation_lose_no_step(tmp_path, monkeypatch, at, done):
    """In the curve's first and third point, and in the final one."""
    for module in (loop, run_arm):
        monkeypatch.setattr(module, "nowhere_whole", lambda *_: True)
    evaluate, seen = run_arm.evaluate_model, []

    def evaluate_model(*args, **more):
        seen.append(args)
        if len(seen) == at:
            server.always = "die"
        return evaluate(*args, **more)

    monkeypatch.setattr(run_arm, "evaluate_model", evaluate_model)
    fewer = TEST | {"problems": 2}  # than a point of the curve would take
    changes = {"checkpoint_every": 100, "evaluations": [fewer]}
    with FakeVllm(load_model("lab")) as server:
        config = RunConfig.model_validate(settings("grpo", server.url, **changes))
        told = "with a checkpoint" if at < 4 else "only the evaluations are missing"
        with pytest.raises(EpistillError, match=told):
            run_arm.run(config, tmp_path)
    before = RunStore(tmp_path).metrics()
    assert len(before) == done
    with FakeVllm(load_model("lab")) as server:
        config = RunConfig.model_validate(settings("grpo", server.url, **changes))
        store = run_arm.run(config, tmp_path)
    assert store.metrics()[:done] == before
    assert [row["step"] for row in store.read_evaluation("curve")] == [0, 1, 2]
    assert len(store.read_evaluation("final-test")) == 4
    assert len(seen) == 5  # each once, and the one that was lost again


def test_evaluations_do_not_move_the_schedule_of_pushes(tmp_path, monkeypatch):
    for module in (loop, run_arm):
        monkeypatch.setattr(module, "nowhere_whole", lambda *_: True)
    with FakeVllm(load_model("lab")) as server:
        rollouts = settings("grpo", server.url)["rollouts"] | {"push_every": 2}
        odd = RunConfig.model_validate(settings("grpo", server.url, rollouts=rollouts))
        with pytest.raises(EpistillError, match=r"eval_every = 1.*push_every = 2.*multiple"):
            run_arm.run(odd, tmp_path / "odd")
        assert not (tmp_path / "odd").exists()
        config = odd.model_copy(update={"eval_every": 2})
        store = run_arm.run(config, tmp_path / "even")
    assert [row["policy_lag_steps"] for row in store.metrics()] == [0, 1, 0]


def test_who_needs_the_whole():
    config = RunConfig.model_validate(settings("grpo", "http://x", parallel="shard"))
    assert nowhere_whole(config, 2)
    assert not nowhere_whole(config, 1)
    assert not nowhere_whole(config.model_copy(update={"parallel": "replicate"}), 2)
    forced = EvalSet.model_validate(TEST | {"force": ["wait@start"]})
    assert nowhere_whole(config.model_copy(update={"evaluations": (forced,)}), 2)
    stopped = config.model_copy(update={"eval_sampling": SamplingConfig(stop=("gold",))})
    assert not nowhere_whole(stopped, 2)
    assert nowhere_whole(stopped.model_copy(update={"evaluations": ()}), 2)
    sft = method("sft-unguided")
    assert not nowhere_whole(config.model_copy(update={"method": sft}), 2)


@pytest.mark.parametrize("adapted", [False, True])
def test_the_file_is_the_state_dict_bit_for_bit(tmp_path, adapted):
    model = load_model("lab")
    if adapted:
        model = with_lora(model, Lora(rank=2, alpha=4.0))
        with torch.no_grad():
            for parameter in model.network.parameters():
                parameter.add_(0.1 * parameter.requires_grad)
    write_weights(model, tmp_path / "pushed")
    pushed = load_file(tmp_path / "pushed" / "model.safetensors")
    if adapted:
        model = model.with_network(model.network.merge_and_unload())
    state = model.network.state_dict()
    assert pushed.keys() == state.keys()
    for name, tensor in state.items():
        if adapted:
            torch.testing.assert_close(pushed[name], tensor)
        else:
            assert torch.equal(pushed[name], tensor), name
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "model-00001-of-00002.safetensors").touch()  # left by one that was killed
    assert write_model(model.network, own_tensors(model.network), tmp_path / "own") is None
    assert {file.name for file in (tmp_path / "own").iterdir()} == {"config.json", WEIGHTS}
    model.network.save_pretrained(tmp_path / "saved")
    own, saved = (load_file(tmp_path / f / "model.safetensors") for f in ("own", "saved"))
    assert own.keys() == saved.keys()
    assert all(torch.equal(own[name], tensor) for name, tensor in saved.items())


@pytest.mark.parametrize("attention", [None, "sdpa", "flash_attention_2"])
def test_only_what_begins_on_the_host_waits_for_its_attention(attention):
    """Others have it from the start, under the name of whichever kernel transformers took."""
    asked = {"attention": attention, "parallel": "shard"}
    served = RunConfig.model_validate(settings("grpo", "http://a:1") | asked)
    assert attention_waits(served, 2) == (attention == "flash_attention_2")
    sampling = {k: v for k, v in served.model_dump(mode="json").items() if k != "rollouts"}
    assert not attention_waits(RunConfig.model_validate(sampling), 2)
    assert not attention_waits(served, 1)
