"""Training whose responses come from servers: compared, corrected, and stopped cleanly."""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError

from epistill.config import RunConfig
from epistill.errors import EpistillError
from epistill.methods import METHODS, method
from epistill.objective import token_log_probs
from epistill.records import Grade, GradedRollout, GradeStatus, Message, Problem, Rollout
from epistill.rollout_settings import VllmRollouts
from epistill.rollouts.load_model import load_model
from epistill.rollouts.vllm_engine import VllmEngine
from epistill.rollouts.vllm_prefix import LONG_PROMPT
from epistill.settings import first_fault
from epistill.store import RunStore
from epistill.studies.run_arm import run
from epistill.teacher.weights import LiveTeacher
from epistill.training import loop
from epistill.training.pre_step_scores import gather_scores
from epistill.training.server_rollouts import corrected, open_engine
from epistill.training.step import accumulate_gradients
from epistill.training.token_coefficients import plan_coefficients
from epistill.training_rows import PreStepScores, Progress, TrainingRow
from tests.helpers.fake_vllm import FakeVllm
from tests.helpers.models import make_tiny_model
from tests.helpers.python import run_epistill
from tests.helpers.training_rows import logits
from tests.helpers.two_processes import on_two


def config(urls, name="grpo", steps=3, **more):
    rollouts = {"engine": "vllm", "urls": urls, "model": "m", "attempts": 2}
    return RunConfig.model_validate(
        {
            "model": "lab",
            "task": {"type": "star_search", "arms": 3, "depth": 2},
            "method": method(name, **more.pop("changed", {})).model_dump(),
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

        def held_up(now, store, state, batch, done, world, scorer):
            deadline = time.monotonic() + 120
            while done < 2 and len(server.bodies) <= one_step[done]:
                assert time.monotonic() < deadline, "nobody asked for the next batch"
                time.sleep(0.01)
            return inner(now, store, state, batch, done, world, scorer)

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


def run_on_two(settings, folder):
    jobs = folder.with_suffix(".json")
    jobs.write_text(json.dumps([[str(folder), settings.model_dump(mode="json")]]))
    on_two("runs", jobs)


def alone_and_on_two(folder, name, **more):
    """Metrics of two steps, by one process and by two; the servers are asked equally often."""
    one, two = folder / "one", folder / "two"
    with FakeVllm(load_model("lab")) as server:
        settings = config([server.url], name, steps=2, **more)
        run(settings, one)
        asked = len(server.bodies)
        run_on_two(settings, two)
        assert len(server.bodies) == 2 * asked
    return zip(metrics(one), metrics(two), strict=True)


def test_two_processes_and_servers(tmp_path):
    """The first process asks for both; when the servers are lost, both stop with a checkpoint."""
    for first, second in alone_and_on_two(tmp_path, "grpo"):
        assert first["reward"] == second["reward"]
        assert first["loss"] == pytest.approx(second["loss"], abs=1e-5)
        assert second["engine_gap_max_nats"] < 1e-4
    lost = tmp_path / "lost"
    with pytest.raises(AssertionError, match="stopped after 0 steps, with a checkpoint"):
        run_on_two(config(["http://127.0.0.1:9"]), lost)
    assert (lost / "checkpoints" / "step-000000").is_dir()


LIVE = {"teacher": {"type": "live"}}
SERVED = {"rollouts": {"teacher_scores": "servers"}}


def long_rows(model):
    """Groups of four that share a long context and two long contrasting ones; one row has none."""
    draw = torch.Generator().manual_seed(0)

    def ids(n):
        return tuple(torch.randint(model.vocabulary, (n,), generator=draw).tolist())

    rows = []
    for group in range(2):
        seen, *others = (ids(LONG_PROMPT + 5 + group) for _ in range(3))
        for k in range(4):
            prompt, said = ids(6), ids(5 + k)
            with torch.no_grad():
                old = token_log_probs(logits(model, prompt, said), torch.tensor(said))
            row = TrainingRow(
                prompt, said, tuple(old.tolist()), (0.5, -0.5)[k % 2], seen,
                correct=k % 2 == 0, negative_prompt_ids=tuple(others), entropies=(1.0, *[0.5] * (4 + k)),
            )  # fmt: skip
            rows.append(row)
    return [*rows[:-1], replace(rows[-1], teacher_prompt_ids=None, negative_prompt_ids=())]


@pytest.mark.parametrize("name", ["rlsd", "rlrt", "dasd", "rlcsd", "credit"])
def test_a_step_is_the_same_whoever_scores_the_teacher(name):
    """Loss and gradients, from a prefix cache; other weights would give others."""
    model = make_tiny_model()
    model.output_layer().weight.data *= 20  # a fresh head is all but uniform, whatever comes in
    rows, point = long_rows(model), method(name, **LIVE)
    settings = {"temperature": 1.0, "microbatch_tokens": 2000}

    def gradients(engine):
        scores = gather_scores(
            rows, point, model, LiveTeacher(model), None, teacher_engine=engine, **settings
        )
        model.network.zero_grad()
        result = accumulate_gradients(
            model, LiveTeacher(model), rows, point, scores=scores, **settings
        )
        grads = [p.grad.clone() for p in model.network.parameters()]
        return scores, result, torch.cat([g.flatten() for g in grads])

    def asking(served):
        with FakeVllm(served, cache=16) as server:
            engine = VllmEngine([server.url], "m", model)
            found = gradients(engine)
            views = 3 if point.needs.contrasting_views else 1  # of the 7 rows that have a context
            assert engine.client.counts["answered"] == 7 * views
        return found

    expected, mine, wanted = gradients(None)
    scores, theirs, found = asking(model)
    for one, two in zip(expected, scores, strict=True):
        assert (two.teacher_log_probs is None) == (one.teacher_log_probs is None)
        assert two.teacher_entropies is two.teacher_marker_mass is None
    assert theirs.loss == pytest.approx(mine.loss, abs=1e-5)  # tau of RLCSD is .02 nats
    assert theirs.teacher_entropy_nats_per_token is None
    assert theirs.teacher_log_ratio_nats_per_token == pytest.approx(
        mine.teacher_log_ratio_nats_per_token, abs=1e-5
    )
    largest = wanted.abs().max()
    assert (found - wanted).abs().max() < 1e-3 * largest
    other = make_tiny_model(1)
    other.output_layer().weight.data *= 20
    assert (asking(other)[2] - wanted).abs().max() > 0.01 * largest


@pytest.mark.parametrize("name", ["rlrt", "rlcsd"])
def test_a_run_is_the_same_whoever_scores_the_teacher(name, tmp_path):
    asked = []
    for where in ("inprocess", "servers"):
        with FakeVllm(load_model("lab")) as server:
            settings = config(
                [server.url], name, steps=2, rollouts={"teacher_scores": where},
                changed=LIVE, problems_per_step=6,
            )  # fmt: skip
            run(settings, tmp_path / where)
            asked.append(len(server.bodies))
    assert asked[1] > asked[0]
    for one, two in zip(
        metrics(tmp_path / "inprocess"), metrics(tmp_path / "servers"), strict=True
    ):
        assert one["teacher_log_ratio_nats_per_token"] is not None
        for key in ("loss", "gradient_norm", "reward", "teacher_log_ratio_nats_per_token"):
            assert two[key] == pytest.approx(one[key], rel=1e-3, abs=1e-5)
        assert one["teacher_entropy_nats_per_token"] is not None
        assert two["teacher_entropy_nats_per_token"] is None


@pytest.mark.parametrize("parallel", ["replicate", "shard"])
def test_two_processes_whose_teacher_servers_score(parallel, tmp_path):
    """The first process asks for all rows, and both have all numbers."""
    for first, second in alone_and_on_two(tmp_path, "rlrt", parallel=parallel, **SERVED):
        assert first["teacher_log_ratio_nats_per_token"] is not None
        for key in ("loss", "gradient_norm", "teacher_log_ratio_nats_per_token"):
            assert second[key] == pytest.approx(first[key], rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("fault", ["die", "stale"])
def test_servers_lost_while_they_score_the_teacher_stop_the_run_before_the_step(
    fault, tmp_path, monkeypatch
):
    with FakeVllm(load_model("lab")) as server:
        inner = loop.optimiser_steps

        def lost(*arguments):  # the batch is there; its teacher is not scored yet
            if fault == "die":
                server.always = "die"
            else:
                server.version = "default"  # it was restarted
            return inner(*arguments)

        monkeypatch.setattr(loop, "optimiser_steps", lost)
        with pytest.raises(
            EpistillError, match="stopped after 0 steps, with a checkpoint"
        ) as error:
            run(config([server.url], "rlrt", **SERVED), tmp_path)
    assert "\n" not in str(error.value)
    assert ("version default, expected 0" in str(error.value)) == (fault == "stale")
    assert metrics(tmp_path) == []
    monkeypatch.undo()
    with FakeVllm(load_model("lab")) as server:
        run(config([server.url], "rlrt", **SERVED), tmp_path)
    assert [row["step"] for row in metrics(tmp_path)] == [0, 1, 2]


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


@pytest.mark.parametrize(
    ("name", "more", "told"),
    [
        ("rlrt", {"rollouts": {"push_every": 2}}, "push_every is 2; expected 1"),
        ("rlrt", {"rollouts": {"ahead": True}}, "ahead is true; expected false"),
        ("rlrt", {"sampling": {"temperature": 0.7}}, "temperature is 0.7; expected 1"),
        ("rlcsd", {}, "the teacher of 'rlcsd' is 'snapshot'; expected teacher type 'live'"),
        ("reopold", {}, "the teacher of 'reopold' is 'frozen'; expected teacher type 'live'"),
        ("antisd", {}, "'antisd' asks its teacher for entropies; expected log-probs alone"),
        ("sdpg", {}, "'sdpg' asks its teacher for a whole distribution per token; expected"),
        ("srpo", {}, "'srpo' asks its teacher for a whole distribution per token, entropies;"),
        ("grpo", {}, "method 'grpo' asks no teacher before a step; expected one that does"),
    ],
)
def test_teachers_that_servers_cannot_score_are_refused_in_one_line(name, more, told):
    rollouts = {**SERVED["rollouts"], **more.get("rollouts", {})}
    with pytest.raises(ValidationError) as error:
        config(["http://x"], name, **{**more, "rollouts": rollouts})
    line = first_fault(error.value)
    assert "\n" not in line
    assert line.startswith("rollouts.teacher_scores is 'servers' and ")
    assert told in line
    assert line.endswith("or teacher_scores 'inprocess'")
    rollouts = {**rollouts, "teacher_scores": "inprocess"}
    config(["http://x"], name, **{**more, "rollouts": rollouts})


@pytest.mark.parametrize("name", METHODS)
def test_only_methods_that_read_log_probs_alone_may_ask_servers(name):
    """What a method's own code reads of its teacher is what its needs say."""
    point = method(name, **LIVE)
    reads = {"rlsd", "rlrt", "rlcsd", "dasd", "reopold", "credit"}
    settings = VllmRollouts(urls=("http://x",), model="m", teacher_scores="servers")
    assert (settings.why_no_teacher(point, 1.0) is None) == (name in reads)
