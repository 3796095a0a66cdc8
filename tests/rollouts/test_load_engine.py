"""Preflight and eval with servers over HTTP: failures are retried, what was answered is kept."""

from __future__ import annotations

import copy
import json
from contextlib import contextmanager
from functools import partial

import numpy as np
import pytest
import torch

import epistill
from epistill.config import SamplingConfig, StarSearchTask
from epistill.errors import EpistillError
from epistill.preflights.preflight_config import PreflightConfig
from epistill.preflights.preflight_run import run_preflight
from epistill.records import Message
from epistill.rollouts import vllm_client, vllm_engine
from epistill.rollouts.align import align
from epistill.rollouts.engine import PromptRequest
from epistill.rollouts.in_process_engine import InProcessEngine
from epistill.rollouts.load_engine import _known, load_engine
from epistill.rollouts.load_model import lab_directory, load_without_weights
from epistill.rollouts.model import LanguageModel
from epistill.rollouts.prompts import render_prompt
from epistill.rollouts.top_k_scores import top_k_scores
from epistill.rollouts.vllm_client import Client
from epistill.tasks.coverage import load_eval_problems
from tests.helpers.fake_vllm import FakeVllm, nobody_answers
from tests.helpers.python import run_epistill
from tests.helpers.served import serving, stop, widen_heads

AGREE = 1e-3  # nats per token, from the issue


@pytest.fixture(autouse=True, scope="module")
def impatient():
    """Requests are tried again at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vllm_client, "MAX_PAUSE_SECONDS", 0.0)
        yield


def config_of(*urls, **more):
    return PreflightConfig(
        model="lab",
        engine=",".join(urls) or "inprocess",
        task=StarSearchTask(arms=3, depth=2, split="preflight-test"),
        contexts=("sibling", "answer"),
        problems=2,
        samples=3,
        sampling=SamplingConfig(max_new_tokens=32),
        **more,
    )


def comparable(report):
    return json.dumps({k: report[k] for k in ("contexts", "student", "trace", "advice")})


def measured(config, folder):
    return run_preflight(config, load_engine(config, folder), folder)


@contextmanager
def one_at_a_time():
    """Requests are counted: of equal ones in flight together each is asked, else the first."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vllm_engine, "Client", partial(Client, in_flight=1))
        yield


@pytest.fixture(scope="module")
def whole(lab_model, tmp_path_factory):
    with FakeVllm(lab_model) as server:
        with one_at_a_time():
            report = measured(config_of(server.url), tmp_path_factory.mktemp("whole"))
        return report, len(server.bodies)


def test_an_outline_knows_what_the_model_knows(lab_model):
    outline = load_without_weights("lab")
    assert outline.eos_ids == lab_model.eos_ids
    assert outline.max_positions == lab_model.max_positions
    assert {p.device.type for p in outline.network.parameters()} == {"meta"}


def agree(engine, model, config):
    """Both engines score what the engine sampled: log-probs alike, masses within the bound."""
    problems = load_eval_problems(config.task, 4)
    asked = [
        PromptRequest(problem.id, render_prompt(model.tokenizer, problem.messages).ids)
        for problem in problems
    ]
    rollouts = engine.sample(asked, samples=2, sampling=config.sampling, seed=5)
    pairs = [r.prompt_ids for r in rollouts], [r.completion_ids for r in rollouts]
    mass_of = tuple(range(20, 60))
    slack = []
    for rollout, ours, theirs in zip(
        rollouts,
        InProcessEngine(model).score(*pairs, mass_of=mass_of),
        engine.score(*pairs, mass_of=mass_of),
        strict=True,
    ):
        assert (ours.log_probs - theirs.log_probs).abs().max() < AGREE
        assert (ours.log_probs - torch.tensor(rollout.logprobs)).abs().max() < AGREE
        assert (theirs.mass <= ours.mass + AGREE).all()
        assert (ours.mass <= theirs.mass + theirs.mass_slack + AGREE).all()
        assert (theirs.entropies <= ours.entropies + AGREE).all()
        assert (ours.entropies <= theirs.entropies + theirs.entropy_slack + AGREE).all()
        slack.append(theirs.mass_slack.mean())
    assert 0 < np.mean(slack) < 0.01


def test_both_engines_agree(lab_model, whole, tmp_path):
    report, _ = whole
    assert report["control"]["holds"]
    assert report["identity"]["top_k"] == 20
    with FakeVllm(lab_model) as server:
        config = config_of(server.url)
        agree(load_engine(config, tmp_path), lab_model, config)


def test_faults_on_the_way_change_nothing(lab_model, whole, tmp_path):
    report, _ = whole
    kinds = ("429", "500", "garbage", "few_choices", "few_tokens", "drop", "nan")
    faults = [fault for kind in kinds for fault in ("ok",) * 9 + (kind,)]
    with FakeVllm(lab_model, faults=faults, retry_after="0") as server:
        found = measured(config_of(server.url), tmp_path)
        assert server.faults == []  # every fault was met
    assert comparable(found) == comparable(report)


def test_a_server_that_dies_in_the_middle(lab_model, whole, tmp_path):
    report, asked = whole
    with FakeVllm(lab_model, faults=["ok"] * 60 + ["die"]) as server:
        with pytest.raises(EpistillError, match="finished work is kept") as e, one_at_a_time():
            measured(config_of(server.url), tmp_path)
        assert len(str(e.value).splitlines()) == 1
    assert list(tmp_path.glob("*.parquet"))
    with FakeVllm(lab_model) as server, one_at_a_time():  # at another address
        found = measured(config_of(server.url), tmp_path)
        # The probe of the weights is asked again; of the rest only what had no answer.
        assert len(server.bodies) == asked - 60 + 1
    assert comparable(found) == comparable(report)


def test_fewer_tokens_than_asked_for_ever_is_one_line(lab_model, tmp_path):
    with FakeVllm(lab_model, faults=["ok"], always="few_tokens") as server:
        config = config_of(server.url)
        with pytest.raises(EpistillError, match="a reply cut at") as error:
            measured(config, tmp_path)
    assert len(str(error.value).splitlines()) == 1


def test_other_weights_under_the_same_name_are_not_served_from_the_cache(lab_model, tmp_path):
    other = LanguageModel(copy.deepcopy(lab_model.network), lab_model.tokenizer, "lab")
    next(iter(other.network.parameters())).data *= 1.05
    with FakeVllm(lab_model) as one, FakeVllm(other) as two:
        names = {
            load_engine(config_of(server.url), tmp_path).identity["probe"]
            for server in (one, two, one)
        }
        assert len(names) == 2
        with pytest.raises(EpistillError, match="expected one model under one name"):
            load_engine(config_of(one.url, two.url), tmp_path)


PROBE = [-1.25, -2.5, -3.75]
NO_PROBES = [
    '[["a", "b", "c"]]', "[[null, null, null]]", "[[[1], [2], [3]]]", "[[1, [2], 3]]", "[1, 2, 3]",
    '[{"a": 1}]', "[[true, false, true]]", "[[1" + 400 * "0" + ", 1, 2]]", "[[1, 2]]", "[[]]",
    '[["\\ud800", 1, 2]]',
]  # fmt: skip


@pytest.mark.parametrize("text", NO_PROBES)
def test_a_file_of_probes_that_holds_none_is_one_line(text, tmp_path):
    path = tmp_path / "served-models.json"
    first = _known(path, PROBE)
    assert _known(path, [value + 1e-4 for value in PROBE]) == first
    path.write_text(text)
    with pytest.raises(EpistillError, match=r"served-models\.json is damaged: it holds") as found:
        _known(path, PROBE)
    assert "\n" not in str(found.value)


def test_the_chat_template_reaches_a_served_model(tmp_path):
    path = tmp_path / "mine.jinja"
    path.write_text("{{ messages[0].content }}!")
    outline = load_without_weights("lab", chat_template=str(path))
    assert render_prompt(outline.tokenizer, [Message("user", "gold")]).text == "gold!"
    with pytest.raises(EpistillError, match="cannot be read"):
        load_without_weights("lab", chat_template=str(tmp_path))


def test_a_server_that_does_not_say_what_it_serves_is_left_soon(lab_model, tmp_path, monkeypatch):
    limits = nobody_answers(monkeypatch)
    hasty = partial(Client, sleep=lambda seconds: None)
    monkeypatch.setattr("epistill.rollouts.load_engine.Client", hasty)
    with pytest.raises(EpistillError, match="no reply within 30 s"):
        load_engine(config_of("http://127.0.0.1:9"), tmp_path)
    assert limits == [30.0] * 4


def test_nobody_there_is_one_line(tmp_path):
    nobody = ("--engine", "http://127.0.0.1:9", "--out", tmp_path)
    done = run_epistill("preflight", "lab", "--data", "star-search:3x2", *nobody)
    assert done.returncode == 2
    assert "no vLLM server could answer (http://127.0.0.1:9" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


class TopK(InProcessEngine):
    """The model of this process as a server would show it: its top 20, nothing else."""

    def __init__(self, model, survives=10**9):
        super().__init__(model)
        self.model, self.calls, self.survives = model, 0, survives

    def _count(self):
        self.calls += 1
        if self.calls > self.survives:
            raise EpistillError("the server at http://x died; start it again")

    def sample(self, requests, **drawing):
        self._count()
        return super().sample(requests, **drawing)

    @torch.no_grad()
    def score(self, prompts, completions, *, mass_of=None):
        self._count()
        rows = []
        for prompt, tokens in zip(prompts, completions, strict=True):
            batch = align(self.model, [prompt], [tokens])
            full = self.model.head().logits(batch.hidden(self.model)).log_softmax(-1).double()
            top = full.topk(20, dim=-1)
            own = full.gather(1, torch.tensor(tokens).unsqueeze(1)).squeeze(1)
            columns = own.numpy(), top.indices.numpy(), top.values.numpy()
            rows.append(
                top_k_scores(tokens, *columns, mass_of=mass_of, vocabulary=self.model.vocabulary)
            )
        return rows


def test_top_k_agrees_with_the_full_vocabulary_within_its_own_bound(lab_model, tmp_path):
    config = config_of()
    exact = run_preflight(config, InProcessEngine(lab_model), tmp_path / "a")
    found = run_preflight(config, TopK(lab_model), tmp_path / "b")
    for name, context in found["contexts"].items():
        ours, full = context["pressure"], exact["contexts"][name]["pressure"]
        gap = abs(ours["change_per_1k_tokens"]["value"] - full["change_per_1k_tokens"]["value"])
        assert gap <= ours["bound_per_1k_tokens"] + 1e-3
        assert 0 < ours["bound_per_1k_tokens"] < 5
        assert full["bound_per_1k_tokens"] == 0
        for part, key in (("pressure", "kl_nats_per_token"), ("richness", "own_nats_per_token")):
            assert context[part][key]["value"] == pytest.approx(
                exact["contexts"][name][part][key]["value"], abs=1e-4
            )
        assert context["entropy_slack_nats"] < 0.05
    assert found["control"]["holds"]


def test_an_engine_that_dies_leaves_its_work(lab_model, tmp_path):
    whole, again = TopK(lab_model), TopK(lab_model)
    run_preflight(config_of(), whole, tmp_path / "whole")
    with pytest.raises(EpistillError, match="died; start it again"):
        run_preflight(config_of(), TopK(lab_model, survives=7), tmp_path / "part")
    run_preflight(config_of(), again, tmp_path / "part")
    assert again.calls == whole.calls - 7


WORLD = "star-search:3x2"
SMALL = {"samples": 2, "problems": 3, "max_new_tokens": 40}
RULES = {"force": ("hmm wait@after:dust",), "block": ("so", "lexicon:paper-en")}
GREEDY = {
    "as it writes": {"temperature": 0.0},
    "under rules": {"temperature": 0.0, **RULES},
    "filtered": {"temperature": 0.0, "top_p": 0.9, "top_k": 5},
}


def as_flags(settings):
    each = [(n, v) for n, vs in settings.items() for v in (vs if isinstance(vs, tuple) else (vs,))]
    return [f"--{name.replace('_', '-')}={value}" for name, value in each]


@pytest.mark.parametrize("drawing", GREEDY.values(), ids=GREEDY)
def test_eval_on_a_server_has_the_records_of_eval_in_process(lab_model, tmp_path, drawing):
    """By Python and by the command; greedy responses are the same in both engines."""
    here, there, told = (tmp_path / f"{name}.jsonl" for name in ("here", "there", "told"))
    mine = epistill.evaluate("lab", WORLD, out=here, **SMALL, **drawing)
    with FakeVllm(lab_model) as server:
        theirs = epistill.evaluate("lab", WORLD, engine=server.url, out=there, **SMALL, **drawing)
        of_python = len(server.bodies)
        settings = {**SMALL, **drawing, "engine": server.url, "out": told}
        done = run_epistill("eval", "lab", "--data", WORLD, *as_flags(settings), "--json")
        assert len(server.bodies) > of_python > 0
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == theirs.summary == mine.summary
    assert here.read_bytes() == there.read_bytes() == told.read_bytes()
    records = [json.loads(line, parse_constant=pytest.fail) for line in here.open()]
    assert len(records) == 6
    forced = [record["n_forced"] for record in records]
    assert any(forced) if "force" in drawing else set(forced) == {None}


def test_eval_on_a_server_draws_as_its_seed_says(lab_model, tmp_path):
    def drawn(seed):
        settings = {"top_p": 0.9, **SMALL, **RULES, "seed": seed, "out": tmp_path / "drawn.jsonl"}
        with FakeVllm(lab_model) as server:
            epistill.evaluate("lab", WORLD, engine=server.url, **settings)
        return settings["out"].read_text()

    first = drawn(0)
    assert first == drawn(0) != drawn(1)
    for line in first.splitlines():
        record = json.loads(line, parse_constant=pytest.fail)
        assert not {"so", "maybe"} & set(record["text"].split())


def test_a_server_that_is_lost_in_an_eval_leaves_one_line_and_no_file(lab_model, tmp_path):
    out = tmp_path / "records.jsonl"
    flags = as_flags({**SMALL, **RULES, "out": out})
    with FakeVllm(lab_model, faults=["ok", "ok", "die"]) as server:
        done = run_epistill("eval", "lab", "--data", WORLD, *flags, "--engine", server.url)
        assert len(server.bodies) > 2  # the probe of its weights, and responses
    assert (done.returncode, done.stdout) == (2, "")
    assert f"no vLLM server could answer ({server.url}" in done.stderr
    assert "kept" not in done.stderr  # an eval keeps nothing
    assert len(done.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


class Several(FakeVllm):
    """A model with adapters beside it."""

    def control(self, path, body):
        if path == "/v1/models":
            return 200, {"data": [{"id": "base"}, {"id": "adapter"}]}
        return super().control(path, body)


WRONG = {
    "batch_rows": ({"batch_rows": 8}, "batch_rows is 8 and engine is 'http"),
    "no such name": ({}, "serves base, adapter; expected one model, or one of the name 'lab'"),
    "stop texts": ({"stop": ("so",)}, "stop=['so']: a vLLM server's reply must end"),
    "dtype": ({"dtype": "bfloat16"}, "dtype is 'bfloat16' and engine is"),
    "device": ({"device": "cuda"}, "device is 'cuda' and engine is"),
    "attention": ({"attention": "eager"}, "attention is 'eager' and engine is"),
}


@pytest.mark.parametrize(("settings", "line"), WRONG.values(), ids=WRONG)
def test_what_an_eval_cannot_ask_of_a_server_is_one_line(lab_model, tmp_path, settings, line):
    kind, asked = FakeVllm if settings else Several, {**SMALL, **settings}
    with kind(lab_model) as server, pytest.raises(EpistillError) as error:
        epistill.evaluate("lab", WORLD, engine=server.url, out=tmp_path / "records.jsonl", **asked)
    assert line in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_preflight_says_which_precision_its_server_has_and_no_more():
    assert config_of("http://h", dtype="bfloat16").dtype == "bfloat16"
    with pytest.raises(ValueError, match="device is 'cuda' and engine is 'http://h'"):
        config_of("http://h", device="cuda")


@pytest.mark.vllm
def test_a_real_server(lab_model, tmp_path):
    """Log-probs agree, the control holds, masses lie within their bounds; it is killed, resumed."""
    model = widen_heads(lab_directory(), tmp_path / "model")
    log, cache = tmp_path / "server.log", tmp_path / "cache"
    with serving(model, log) as (url, process):
        config = config_of(url)
        engine = load_engine(config, cache)
        report = run_preflight(config, engine, cache)
        assert report["control"]["largest_u_nats"] < AGREE
        agree(engine, lab_model, config)
        again = measured(config, cache)
        assert again["chunks"]["computed"] == 0
        assert comparable(again) == comparable(report)
        for drawing in ({}, RULES):
            greedy = {"temperature": 0.0, **SMALL, **drawing}
            there = epistill.evaluate("lab", WORLD, engine=url, **greedy)
            assert there.summary == epistill.evaluate("lab", WORLD, **greedy).summary
        stop(process)
        with pytest.raises(EpistillError, match="no vLLM server could answer"):
            engine.score([(1, 2, 3)], [(1, 2)], mass_of=(1,))
