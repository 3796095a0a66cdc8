"""Section 3 on problems of a chosen difficulty."""

from __future__ import annotations

import pytest

from epistill.errors import EpistillError
from epistill.store import RunStore
from epistill.studies.jobs import begin_job, carry_out
from epistill.studies.spec import Probe, without_analysis
from tests.helpers.fake_vllm import FakeVllm


def probe(**settings) -> Probe:
    return Probe.model_validate(
        {
            "id": "middling", "label": "", "model": "lab", "contexts": ["none"], "samples": 2,
            "task": {"type": "star_search", "arms": 5, "depth": 3},
            "sampling": {"max_new_tokens": 64}, **settings,
        }
    )  # fmt: skip


def measured(folder, **settings):
    return carry_out({"probe": probe(**settings).model_dump(mode="json"), "seed": 0}, folder)


def problems(store) -> list[str]:
    rows = store.read_evaluation("final-none")
    return sorted({row["problem_id"] for row in rows})


def test_problems_are_chosen_by_how_often_the_model_solves_them(tmp_path):
    found = {}
    for name, accuracy in (("never", (0.0, 0.0)), ("always", (1.0, 1.0))):
        settings = {"candidates": 24, "problems": 2, "accuracy": accuracy}
        found[name] = problems(measured(tmp_path / name, **settings))
        assert len(found[name]) == 2
    assert not set(found["never"]) & set(found["always"])


def test_a_probe_may_ask_servers(lab_model, tmp_path):
    """Greedy responses are those of the model in this process."""
    sampling = {"max_new_tokens": 40, "temperature": 0.0}
    settings = {"contexts": ["none", "solution"], "problems": 2, "sampling": sampling}
    here = measured(tmp_path / "here", **settings)
    with FakeVllm(lab_model) as server:
        there = measured(tmp_path / "there", engine=server.url, **settings)
        assert server.bodies
    assert there.result == here.result
    for name in settings["contexts"]:
        files = (store.folder / "evaluations" / f"final-{name}.jsonl" for store in (here, there))
        assert len({file.read_bytes() for file in files}) == 1


def test_too_few_of_them_is_one_line(tmp_path):
    settings = {"candidates": 3, "problems": 3, "accuracy": (0.4, 0.6)}
    with pytest.raises(EpistillError, match="expected 3; raise its candidates"):
        measured(tmp_path, **settings)


@pytest.mark.parametrize("asked", [None, "eager"])
def test_a_probe_of_an_older_version_did_what_the_defaults_do(tmp_path, asked):
    store = RunStore(tmp_path)
    older = probe().model_dump(mode="json")
    for name in ("attention", "engine", "top_k"):  # settings that it did not have
        del older[name]
    store.begin(without_analysis({"probe": older, "seed": 0}), {})
    store.finish({"evaluations": {}})
    now = {"probe": probe(attention=asked, label="other words").model_dump(mode="json"), "seed": 0}
    if asked is None:
        begin_job(now, store, {})
        assert store.result == {"evaluations": {}}
    else:
        with pytest.raises(EpistillError, match=r"another configuration .*probe\.attention"):
            begin_job(now, store, {})
