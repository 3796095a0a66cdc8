"""Training whose responses come from servers: compared, corrected, and stopped cleanly."""

from __future__ import annotations

import json
import math
import time

import pytest
import torch

from epistill.config import RunConfig
from epistill.errors import EpistillError
from epistill.methods import METHODS, method
from epistill.records import Grade, GradedRollout, GradeStatus, Message, Problem, Rollout
from epistill.rollouts.load_model import load_model
from epistill.store import RunStore
from epistill.studies.run_arm import run
from epistill.training import loop
from epistill.training.server_rollouts import corrected, open_engine
from epistill.training.token_coefficients import plan_coefficients
from epistill.training_rows import PreStepScores, Progress, TrainingRow
from tests.helpers.fake_vllm import FakeVllm
from tests.helpers.models import make_tiny_model
from tests.helpers.python import run_epistill
from tests.helpers.two_processes import on_two


def config(urls, name="grpo", steps=3, **more):
    rollouts = {"engine": "vllm", "urls": urls, "model": "m", "attempts": 2}
    return RunConfig.model_validate(
        {
            "model": "lab",
            "task": {"type": "star_search", "arms": 3, "depth": 2},
            "method": method(name).model_dump(),
            "sampling": {"max_new_tokens": 16},
            "steps": steps,
            "problems_per_step": 3,
            "samples_per_problem": 4,
            "learning_rate": 3e-3,
            "warmup_steps": 0,
            "rollouts": rollouts | more.pop("rollouts", {}),
            **more,
        }
    )


def metrics(folder):
    return RunStore(folder).metrics()


@pytest.mark.parametrize("name", ["grpo", "sdpo"])
def test_a_run_on_servers(name, tmp_path):
    with FakeVllm(load_model("lab")) as one, FakeVllm(load_model("lab")) as other:
        run(config([one.url, other.url], name), tmp_path)
        assert one.bodies
        assert other.bodies
    found = metrics(tmp_path)
    assert [row["step"] for row in found] == [0, 1, 2]
    for row in found:
        assert row["engine_gap_nats_per_token"] <= row["engine_gap_max_nats"] < 1e-4
        assert (row["policy_lag_steps"], row["stale_rollout_share"]) == (0, 0.0)
        assert row["importance_weight_mean"] == pytest.approx(1.0, abs=1e-4)
        assert row["entropy_nats_per_token"] > 0
        assert row["servers_in_use"] == 2
        assert row["push_gap_nats_per_token"] < 1e-4
    trained = load_model(str(tmp_path / "model")).network.state_dict()
    start = load_model("lab").network.state_dict()
    assert any((trained[key] != start[key]).any() for key in start)


def test_weights_that_are_not_pushed_are_seen_and_corrected(tmp_path):
    with FakeVllm(load_model("lab")) as server:
        run(config([server.url], "sdpo", rollouts={"push_every": 2}), tmp_path)
        assert server.paths.count("/collective_rpc") == 2
    found = metrics(tmp_path)
    assert [row["policy_lag_steps"] for row in found] == [0, 1, 0]
    assert [row["stale_rollout_share"] for row in found] == [0.0, 1.0, 0.0]
    assert found[1]["engine_gap_nats_per_token"] is None  # its gap is not the engine's
    assert found[1]["importance_weight_mean"] != pytest.approx(1.0, abs=1e-6)
    assert found[1]["entropy_nats_per_token"] is None


def test_the_next_batch_is_written_while_this_one_trains(tmp_path, monkeypatch):
    """An update does not begin before the next step's first request is there; all are one step old."""
    inner = loop.optimiser_steps
    with FakeVllm(load_model("lab")) as server:
        one_step = [3 + 1, 6 + 1 * 2]  # groups, and the probe of each push

        def held_up(now, store, state, batch, done, world):
            deadline = time.monotonic() + 120
            while done < 2 and len(server.bodies) <= one_step[done]:
                assert time.monotonic() < deadline, "nobody asked for the next batch"
                time.sleep(0.01)
            return inner(now, store, state, batch, done, world)

        monkeypatch.setattr(loop, "optimiser_steps", held_up)
        run(config([server.url], "sdpo", rollouts={"ahead": True}), tmp_path / "run")
        assert server.paths.count("/collective_rpc") == 2  # the third step's batch is there already
    found = metrics(tmp_path / "run")
    assert [row["policy_lag_steps"] for row in found] == [0, 1, 1]
    assert [row["stale_rollout_share"] for row in found] == [0.0, 1.0, 1.0]
    assert found[0]["importance_weight_mean"] == pytest.approx(1.0, abs=1e-4)
    assert found[1]["importance_weight_mean"] != pytest.approx(1.0, abs=1e-6)


def test_servers_lost_while_they_write_ahead_stop_the_run_at_the_next_step(tmp_path):
    # The probe and the groups of step 0, then those of step 1.
    with FakeVllm(load_model("lab"), faults=["ok"] * 5, always="die") as server:
        settings = config([server.url], rollouts={"ahead": True})
        with pytest.raises(EpistillError, match="stopped after 1 steps, with a checkpoint"):
            run(settings, tmp_path)
    with FakeVllm(load_model("lab")) as server:
        run(config([server.url], rollouts={"ahead": True}), tmp_path)
    assert [row["policy_lag_steps"] for row in metrics(tmp_path)] == [0, 0, 1]


def graded(log_probs, version):
    ids = tuple(range(5, 5 + len(log_probs)))
    rollout = Rollout("p", 0, (1, 2), ids, tuple(log_probs), "length", "", version)
    problem = Problem("p", (Message("user", "?"),), "1", "exact")
    return GradedRollout(problem, rollout, Grade(GradeStatus.WRONG, "2"))


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_importance_weights_are_ratios_up_to_the_cap(temperature):
    model, cap = make_tiny_model(), 1.5
    settings = config(
        ["http://x"], rollouts={"importance_cap": cap}, sampling={"temperature": temperature}
    )
    ids = torch.tensor([[1, 2, 5, 6, 7]])
    with torch.no_grad():
        full = (model.network(ids).logits[0].double() / temperature).log_softmax(-1)
    mine = [full[1 + i, 5 + i].item() for i in range(3)]
    asked = [math.log(1.2), math.log(4.0), math.log(0.5)]  # log p_trainer - log p_engine
    items = [
        graded([m - a for m, a in zip(mine, asked, strict=True)], version=4),
        graded([m - 0.01 for m in mine], version=5),
    ]
    rows = [
        TrainingRow(i.rollout.prompt_ids, i.rollout.completion_ids, i.rollout.logprobs, 0.5, None)
        for i in items
    ]
    rows, seen, numbers = corrected(model, rows, items, settings, step=5)
    assert rows[0].importance == pytest.approx((1.2, cap, 0.5), rel=1e-4)
    assert rows[0].old_log_probs == pytest.approx(mine, abs=1e-4)
    assert numbers["importance_capped_share"] == pytest.approx(1 / 6)
    assert numbers["engine_gap_nats_per_token"] == pytest.approx(0.01, abs=1e-4)
    assert (numbers["policy_lag_steps"], numbers["stale_rollout_share"]) == (1, 0.5)
    assert seen[0].rollout.entropies is None
    assert seen[1].rollout.entropies == rows[1].entropies


@pytest.mark.parametrize("name", ["grpo", "sdpo", "sdpg"])
def test_importance_multiplies_every_term(name):
    def rows(importance):
        return [
            TrainingRow(
                (1,), (2, 3), (-1.0, -2.0), 0.5, (1, 1), correct=True, importance=importance
            )
        ]

    scores = [PreStepScores(start_log_probs=torch.tensor([-1.0, -2.0]))]
    plain, weighted = (
        plan_coefficients(rows(w), scores, METHODS[name], Progress(max_new_tokens=2))[0]
        for w in (None, (0.5, 2.0))
    )
    terms = 0
    for term in ("distillation", "gradient", "reference"):
        before, after = getattr(plain, term), getattr(weighted, term)
        assert (before is None) == (after is None)
        if before is not None:
            terms += 1
            torch.testing.assert_close(after, before * torch.tensor([0.5, 2.0]))
    assert terms == {"grpo": 1, "sdpo": 1, "sdpg": 3}[name]


def test_a_server_lost_in_the_middle_of_a_run(tmp_path):
    dying = FakeVllm(load_model("lab"), faults=["ok", "die"])  # the probe, then a group
    with dying, FakeVllm(load_model("lab")) as other:
        run(config([dying.url, other.url]), tmp_path)
    found = metrics(tmp_path)
    assert [row["servers_in_use"] for row in found] == [1, 1, 1]
    (moved,) = {row["requests_moved"] for row in found}
    assert moved >= 1


def test_all_servers_lost_stops_with_a_checkpoint_and_goes_on_elsewhere(tmp_path):
    broken, whole = tmp_path / "broken", tmp_path / "whole"
    with FakeVllm(load_model("lab")) as server:
        run(config([server.url]), whole)
    # A request per group and one for the probe of each push: the third step loses the server.
    with FakeVllm(load_model("lab"), faults=["ok"] * 9, always="die") as server:
        settings = config([server.url])
        with pytest.raises(
            EpistillError, match="stopped after 2 steps, with a checkpoint"
        ) as error:
            run(settings, broken)
    assert "\n" not in str(error.value)
    assert server.url in str(error.value)
    assert (broken / "checkpoints" / "step-000002").is_dir()
    assert RunStore(broken).result is None
    with FakeVllm(load_model("lab")) as server:
        run(config([server.url]), broken)  # another address is the same run
    assert RunStore(broken).result is not None
    for one, other in zip(metrics(whole), metrics(broken), strict=True):
        assert one["reward"] == other["reward"]
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-6)


def test_two_processes_and_servers(tmp_path):
    """The first process asks for both; when the servers are lost, both stop with a checkpoint."""
    one, two, lost = (tmp_path / name for name in ("one", "two", "lost"))
    with FakeVllm(load_model("lab")) as server:
        settings = config([server.url], "grpo", steps=2)
        run(settings, one)
        asked = len(server.bodies)
        jobs = tmp_path / "jobs.json"
        jobs.write_text(json.dumps([[str(two), settings.model_dump(mode="json")]]))
        on_two("runs", jobs)
        assert len(server.bodies) == 2 * asked
    for first, second in zip(metrics(one), metrics(two), strict=True):
        assert first["reward"] == second["reward"]
        assert first["loss"] == pytest.approx(second["loss"], abs=1e-5)
        assert second["engine_gap_max_nats"] < 1e-4
    jobs.write_text(
        json.dumps([[str(lost), config(["http://127.0.0.1:9"]).model_dump(mode="json")]])
    )
    with pytest.raises(AssertionError, match="stopped after 0 steps, with a checkpoint"):
        on_two("runs", jobs)
    assert (lost / "checkpoints" / "step-000000").is_dir()


def test_the_command_says_it_in_one_line(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(
        'model = "lab"\nmethod = "grpo"\nsteps = 1\nsampling = {max_new_tokens = 8}\n'
        'task = {type = "star_search"}\n[rollouts]\nengine = "vllm"\nmodel = "m"\n'
        'urls = ["http://127.0.0.1:9"]\nattempts = 1\n'
    )
    done = run_epistill("train", path, "--out", tmp_path / "run")
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert "no vLLM server could answer (http://127.0.0.1:9: no connection" in line
    assert "stopped after 0 steps, with a checkpoint" in line


def test_settings_that_cannot_work_are_refused(tmp_path):
    for more in ({"sampling": {"top_p": 0.9}}, {"sampling": {"top_k": 3}}):
        with pytest.raises(ValueError, match="top_p or top_k; expected neither"):
            config(["http://x"], **more)
    with pytest.raises(ValueError, match="trains on traces; expected 'inprocess'"):
        config(["http://x"], "sft-unguided")
    student = make_tiny_model()
    student.network.save_pretrained(tmp_path)
    settings = config(["http://x"], model=str(tmp_path), rollouts={"weights_folder": str(tmp_path)})
    with pytest.raises(EpistillError, match="the model the run starts from"):
        open_engine(settings, student, tmp_path / "run")
    assert "urls" not in settings.identity()["rollouts"]
    assert RunConfig.identity_of(settings.identity()) == settings.identity()
    assert settings.identity()["rollouts"]["importance_cap"] == 2.0
