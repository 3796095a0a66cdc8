"""train, evaluate, study and preflight in Python do what their commands do."""

from __future__ import annotations

import json

import pytest

import epistill
from epistill.config import EvalSet, RunConfig, SamplingConfig, StarSearchTask
from epistill.errors import EpistillError
from epistill.store import RunStore
from tests.helpers.python import run_epistill
from tests.helpers.toy_study import SPEC


def command(*arguments):
    done = run_epistill(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


SETTINGS = {"model": "lab", "data": "star-search:3x2", "steps": 2, "learning_rate": 1e-3}
SMALL = {"max_new_tokens": 20, "problems_per_step": 2, "samples_per_problem": 2}


def test_train_takes_a_method_and_gives_a_row_per_step(tmp_path):
    seen = []
    reverse = epistill.method("sdpo", divergence={"alpha": 1.0})
    found = epistill.train(
        out=tmp_path / "run", method=reverse, on_step=seen.append, **SETTINGS, **SMALL
    )
    assert found.to_polars()["step"].to_list() == [0, 1]
    assert seen == [0, 1, 2]
    assert found.path == tmp_path / "run"
    stored = RunStore(found.path).config
    assert stored["method"]["divergence"]["alpha"] == 1.0
    again = epistill.train(RunConfig.model_validate(stored), out=str(tmp_path / "run"))
    assert again == found  # finished: nothing is done again
    with pytest.raises(EpistillError, match="another configuration"):
        epistill.train(RunConfig.model_validate(stored), out=tmp_path / "run", seed=5)


def test_train_is_the_command(tmp_path):
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in SETTINGS.items()]
    config = tmp_path / "run.toml"
    config.write_text("problems_per_step = 2\nsamples_per_problem = 2\n")
    told = command(
        "train", config, *flags, "--method", "grpo", "--max-new-tokens", 20,
        "--out", tmp_path / "one",
    )  # fmt: skip
    found = epistill.train(out=tmp_path / "two", method="grpo", **SETTINGS, **SMALL)
    assert {**found.summary, "folder": told["folder"]} == told
    one, two = (
        [{k: v for k, v in row.items() if "seconds" not in k} for row in rows]
        for rows in (RunStore(tmp_path / "one").metrics(), found.rows)
    )
    assert one == two


def test_evaluate_is_the_command(tmp_path):
    found = epistill.evaluate(
        "lab", "star-search:3x2", samples=2, problems=4, out=tmp_path / "records.jsonl"
    )
    told = command("eval", "lab", "--data", "star-search:3x2", "-k", 2, "--problems", 4)
    assert found.summary == told
    table = found.to_polars()
    assert {"score", "pass@2", "maj@2"} <= set(table["measure"])
    assert len((tmp_path / "records.jsonl").read_text().splitlines()) == 8


def test_words_can_be_forced_at_evaluation_and_never_in_training(tmp_path):
    rules = {"force": ["maybe@start"], "block": ["so"]}
    found = epistill.evaluate(
        "lab", "star-search:3x2", samples=2, problems=4, out=tmp_path / "forced.jsonl", **rules
    )
    assert found.summary["forced_tokens"]["value"] >= 1
    assert found.summary["sampling"]["force"] == ["maybe@start"]
    for line in (tmp_path / "forced.jsonl").read_text().splitlines():
        record = json.loads(line)
        assert record["text"].startswith("maybe")
        assert record["n_forced"] >= 1
    told = command(
        "eval", "lab", "--data", "star-search:3x2", "-k", 2, "--problems", 4,
        "--force", "maybe@start", "--block", "so",
    )  # fmt: skip
    assert told == found.summary
    few = EvalSet(name="few", task=StarSearchTask(), max_new_tokens=9, force=("hmm@start",))
    drawn = few.drawn(SamplingConfig(temperature=0.5, max_new_tokens=90))
    assert (drawn.temperature, drawn.max_new_tokens, drawn.force) == (0.5, 9, ("hmm@start",))
    with pytest.raises(ValueError, match="no place"):
        EvalSet(name="few", task=StarSearchTask(), force=("hmm",))
    with pytest.raises(EpistillError, match="words that nobody sampled"):
        epistill.train(model="lab", data="star-search:3x2", method="grpo", out=tmp_path, **rules)


def test_study_gives_the_estimates_of_its_arms(tmp_path):
    spec = {**SPEC, "seeds": [0], "arms": SPEC["arms"][:2], "probes": [], "controls": []}
    spec["claims"] = []
    toml = tmp_path / "toy.toml"
    toml.write_text(as_toml(spec))
    found = epistill.study(toml, out=tmp_path / "out", workers=1)
    assert found.path == tmp_path / "out" / "report.html"
    table = found.to_polars()
    assert set(table["arm"]) == {"base", "grpo"}
    assert set(table["on"]) == {"in_domain", "ood"}
    assert found.summary["runs_finished"] == found.summary["runs_total"]
    with pytest.raises(EpistillError, match="--workers is 0"):
        epistill.study(toml, workers=0)

    pytest.importorskip("tensorboard")
    with pytest.raises(EpistillError, match="--track is 'trackoi'"):
        epistill.study(toml, out=tmp_path / "out", track="trackoi")
    again = epistill.study(toml, out=tmp_path / "out", workers=1, track="tensorboard")
    assert again.warnings == ()
    runs = {path.parent.parent for path in (tmp_path / "out" / "runs").rglob("tensorboard/events*")}
    assert runs == {path.parent for path in (tmp_path / "out" / "runs").rglob("result.json")}


def as_toml(value):
    """A mapping as one TOML document; JSON's lists and inline tables differ only in the colon."""
    lines = [f"{key} = {inline(part)}" for key, part in value.items()]
    return "\n".join(lines)


def inline(value):
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {inline(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(inline, value)) + "]"
    return json.dumps(value)


def test_preflight_gives_a_row_per_context_and_number(tmp_path):
    said = []
    found = epistill.preflight(
        "lab", "star-search:3x2", out=tmp_path, contexts=["sibling"], problems=3, samples=2,
        sampling={"max_new_tokens": 24}, say=said.append,
    )  # fmt: skip
    assert found.path == tmp_path / "preflight.html"
    table = found.to_polars()
    assert {"sibling", "none"} <= set(table["context"])
    assert "pressure/kl_nats_per_token" in set(table["measure"])
    assert any("sibling" in line for line in said)
