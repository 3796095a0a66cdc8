"""Every file that a resume, a report or another run reads, damaged in every way: never used silently.

Each case ends in one line that names what is damaged, or in the numbers of the untouched run.
"""

from __future__ import annotations

import json
import shutil

import pytest

from epistill import compare, measure
from epistill.config import RunConfig
from epistill.errors import EpistillError
from epistill.methods import method
from epistill.rollouts.load_model import load_model
from epistill.store import RunStore
from epistill.studies.run_arm import run
from tests.helpers.damage import (
    EVERY_FILE,
    JSON,
    LINES,
    MARKUP,
    STEP,
    cases,
    flipped_bit,
    last_byte_lost,
    one_line,
)

STEPS = 5
EVALUATION = {
    "name": "test",
    "task": {"type": "star_search", "arms": 3, "depth": 2, "split": "test"},
    "problems": 2, "samples": 1, "curve_problems": 1,
}  # fmt: skip


def configuration(seed=0):
    return RunConfig.model_validate(
        {
            "model": "lab",
            "task": {"type": "star_search", "arms": 3, "depth": 2},
            "method": method("sft-unguided", traces={"count": 4}).model_dump(),
            "coverage": 3, "sampling": {"max_new_tokens": 12}, "learning_rate": 1e-3,
            "steps": STEPS, "problems_per_step": 2, "samples_per_problem": 2, "seed": seed,
            "checkpoint_every": 1, "eval_every": 2, "evaluations": [EVALUATION],
        }
    )  # fmt: skip


class Stopped(Exception):
    pass


def stop_in_step_four(done):
    """With the checkpoints of steps 2 and 3, and one step that has none yet."""
    if done == 4:
        raise Stopped


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A finished run, one that was stopped, and a stopped one of another seed."""
    root = tmp_path_factory.mktemp("runs")
    run(configuration(), root / "whole")
    for name, seed in (("stopped", 0), ("other", 1)):
        with pytest.raises(Stopped):
            run(configuration(seed), root / name, save_model=False, on_step=stop_in_step_four)
    run(configuration(1), root / "other-whole", save_model=True)
    return root


SHARD = "checkpoints/step-000003/shard-00001-model-00001-of-00001.safetensors"
STATE = "checkpoints/step-000003/state.json"
STOPPED = {
    SHARD: EVERY_FILE,
    STATE: EVERY_FILE | JSON | STEP,
    "metrics.jsonl": EVERY_FILE | JSON | LINES | STEP,
    "timing.jsonl": EVERY_FILE | LINES | STEP,
    "evaluations/curve.jsonl": EVERY_FILE | LINES,
    "traces/traces.jsonl": EVERY_FILE | LINES,
    "manifest.json": EVERY_FILE | MARKUP,
    "config.json": EVERY_FILE | JSON,
    "environment.json": EVERY_FILE | JSON,
}
FINISHED = {
    "result.json": EVERY_FILE | JSON,
    "metrics.jsonl": EVERY_FILE | JSON | LINES | STEP,
    "timing.jsonl": EVERY_FILE | LINES,
    "evaluations/curve.jsonl": EVERY_FILE | LINES,
    "evaluations/final-test.jsonl": EVERY_FILE | LINES,
    "manifest.json": EVERY_FILE | MARKUP,
    "config.json": EVERY_FILE | JSON,
    "environment.json": EVERY_FILE | JSON,
}


def damage(folders, base, other, name, way, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(folders / base, folder)
    way(folder / name, folders / other / name)
    return folder


def numbers_of(folder):
    """All that a report reads, timing aside."""
    store = RunStore(folder)
    tables = {name: store.read_evaluation(name) for name in ("curve", "final-test")}
    store.timing()
    store.config, store.environment  # noqa: B018
    return store.metrics(), tables, store.result


@pytest.mark.parametrize(("name", "way"), cases(STOPPED))
def test_a_stopped_run_goes_on_to_the_same_numbers_or_names_the_file(
    name, way, folders, tmp_path, caplog
):
    folder = damage(folders, "stopped", "other", name, way, tmp_path)
    a_newline = way is last_byte_lost and name.endswith(".json")
    try:
        run(configuration(), folder, save_model=False)
        found = numbers_of(folder)
    except EpistillError as error:
        one_line(error, name)
        return
    assert found == numbers_of(folders / "whole")
    if "checkpoints" in name and not a_newline:
        assert "is damaged: " in caplog.text
        assert "it goes on from step-000002" in caplog.text


@pytest.mark.parametrize(("name", "way"), cases(FINISHED))
def test_a_finished_run_gives_its_numbers_or_names_the_file(name, way, folders, tmp_path):
    folder = damage(folders, "whole", "other-whole", name, way, tmp_path)
    try:
        run(configuration(), folder, save_model=False)
        found = numbers_of(folder)
    except EpistillError as error:
        one_line(error, name)
        return
    assert found == numbers_of(folders / "whole")


@pytest.mark.parametrize("told", ["{}", '{"steps": 5, "evaluations": {}}'])
def test_a_result_that_the_manifest_does_not_list_finishes_no_run(told, folders, tmp_path):
    folder = shutil.copytree(folders / "stopped", tmp_path / "run")
    (folder / "result.json").write_text(told)
    with pytest.raises(EpistillError, match=r"(result|manifest)\.json is damaged"):
        run(configuration(), folder, save_model=False)


@pytest.mark.parametrize("name", ["evaluations/final-test.jsonl", "traces/traces.jsonl"])
@pytest.mark.parametrize("told", [*EVERY_FILE, *LINES])
def test_a_table_of_a_run_is_measured_whole_or_not_at_all(name, told, folders, tmp_path):
    way = {**EVERY_FILE, **LINES}[told]
    folder = damage(folders, "whole", "other-whole", name, way, tmp_path)
    for look in (
        lambda: measure([folder / name]),
        lambda: compare(folders / "whole" / name, folder / name),
        *([lambda: compare(folders / "whole", folder)] if "final" in name else []),
    ):
        with pytest.raises(EpistillError) as refused:
            look()
        one_line(refused.value, name)


MODEL_FILES = ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json")
WITH_CHECKSUMS = (*MODEL_FILES, "generation_config.json", "chat_template.jinja")


def test_every_file_of_a_model_is_among_these(folders):
    assert sorted(p.name for p in (folders / "whole" / "model").iterdir()) == sorted(WITH_CHECKSUMS)


@pytest.mark.parametrize("name", WITH_CHECKSUMS)
@pytest.mark.parametrize("told", [*EVERY_FILE, *MARKUP])
def test_a_model_that_a_run_wrote_loads_whole_or_not_at_all(name, told, folders, tmp_path):
    way = {**EVERY_FILE, **MARKUP}[told]
    folder = damage(folders, "whole", "other-whole", f"model/{name}", way, tmp_path)
    before, after = ((f / "model" / name) for f in (folders / "whole", folder))
    if after.is_file() and before.read_bytes() == after.read_bytes():
        return
    with pytest.raises(EpistillError) as refused:
        load_model(str(folder / "model"))
    one_line(refused.value, name if after.exists() or name != "config.json" else "model")


@pytest.mark.parametrize("lost", ["manifest.json", "environment.json", "result.json"])
def test_a_model_is_checked_though_a_file_beside_it_is_lost(lost, folders, tmp_path):
    folder = damage(folders, "whole", "whole", "model/model.safetensors", flipped_bit, tmp_path)
    (folder / lost).unlink()
    with pytest.raises(EpistillError, match=r"(model\.safetensors|manifest\.json) is damaged"):
        load_model(str(folder / "model"))


@pytest.mark.parametrize("name", MODEL_FILES)
@pytest.mark.parametrize(
    "told", sorted((EVERY_FILE | MARKUP).keys() - {"flipped bit", "another run's"})
)
def test_a_model_without_checksums_is_refused_in_one_line(name, told, folders, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(folders / "whole" / "model", folder)
    {**EVERY_FILE, **MARKUP}[told](folder / name, None)
    if name == "tokenizer_config.json" and told in ("missing", "a folder", "a pipe", "{}"):
        return  # transformers does without it
    if told == "last byte lost" and json_is_whole(folder / name):
        return  # a newline
    with pytest.raises(EpistillError) as refused:
        load_model(str(folder))
    assert "\n" not in str(refused.value)


def json_is_whole(path):
    try:
        json.loads(path.read_text())
    except ValueError:
        return False
    return True


def test_a_new_run_may_begin_in_a_folder_that_holds_something_else(tmp_path):
    """The output of the command itself, say: `--out runs/x | tee runs/x/log`."""
    (tmp_path / "log").write_text("step 0")
    settings = {"steps": 1, "evaluations": (), "eval_every": None, "microbatch_tokens": "auto"}
    for _ in range(2):
        run(configuration().model_copy(update=settings), tmp_path, save_model=False)
    assert isinstance(RunStore(tmp_path).config["microbatch_tokens"], int)
