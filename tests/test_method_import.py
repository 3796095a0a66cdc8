"""A method from a user's own file; and that only a name which the user gives is ever imported."""

from __future__ import annotations

import contextlib
import json
import sys

import pytest

from epistill.axes import Method
from epistill.config import RunConfig
from epistill.describe import describe_method
from epistill.errors import EpistillError
from epistill.inputs import load_run_config
from epistill.methods import method
from epistill.store import RunStore
from epistill.studies import runner
from epistill.studies.executors import run_job
from epistill.studies.load_study import load_study
from epistill.studies.run_arm import run
from epistill.studies.runner import jobs_of
from epistill.tasks.files import load_problems

MINE = """
from typing import Literal
from epistill.axes import Context, LiveWeights, Method
from epistill.blends import PolicyGradient, Shaped
from epistill.shapes import Shape
from epistill.training_rows import Needs

class Reversed(Shape):
    type: Literal["my_reversed"] = "my_reversed"
    needs = Needs(teacher_scores=True, verdicts=True)
    strength: float = 1.0
    clip: float = 1.0

    def advantages(self, row, progress):
        sign = 1.0 if row.advantage > 0 else -1.0
        ratio = (-sign * row.log_ratio).exp().clamp(1 - self.clip, 1 + self.clip)
        mixed = 1 - self.strength + self.strength * ratio
        return row.advantage * (mixed if row.correct else mixed * 0 + 1)

rlrt = Method(
    name="mine", context=Context(source="solution"), teacher=LiveWeights(),
    blend=Shaped(shape=Reversed()),
    policy_gradient=PolicyGradient(normalize_std=True, clip_high=0.2),
)
"""
EVIL = "from pathlib import Path\nPath({mark!r}).write_text('ran')\n" + MINE
RUN = {
    "model": "lab",
    "task": {"type": "star_search", "arms": 4, "depth": 2},
    "sampling": {"max_new_tokens": 40},
    "steps": 2,
    "problems_per_step": 4,
    "samples_per_problem": 4,
    "learning_rate": 1e-3,
}


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    return path


def test_the_file_is_short():
    assert len(MINE.strip().splitlines()) <= 25


def test_a_file_is_the_built_in_method_to_the_last_bit(mine, tmp_path):
    """The same formula, once in a user's file and once in the package: one gradient."""
    rows = []
    for name in (f"{mine}:rlrt", "rlrt"):
        config = RunConfig.model_validate({**RUN, "method": method(name)})
        rows.append(run(config, tmp_path / name.rpartition(":")[2][:4] / str(len(rows))).metrics())
    assert rows[0] == rows[1]
    assert any(row["loss"] for row in rows[0])


def test_it_is_described_changed_written_and_read_like_any_other(mine):
    chosen = method(f"{mine}:rlrt", blend={"shape": {"strength": 0.5}})
    assert chosen.blend.shape.strength == 0.5
    assert describe_method(chosen)["blend"] == "advantage: my reversed strength=0.5 clip=1"
    assert describe_method(chosen)["source"] == "mine.py:rlrt"
    assert Method.model_validate_json(chosen.model_dump_json()) == chosen
    with pytest.raises(EpistillError, match="strength"):
        method(f"{mine}:rlrt", blend={"shape": {"strength": "much"}})


def test_paths_in_toml_are_from_its_folder(mine, tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    for text in ('method = "mine.py:rlrt"', '[method]\nname = "mine.py:rlrt"'):
        path = tmp_path / "run.toml"
        path.write_text('model = "lab"\ntask = { type = "star_search" }\n' + text)
        assert load_run_config(path, {}).method.name == "mine"


def test_two_files_may_use_one_type_name(mine, tmp_path):
    other = tmp_path / "other.py"
    other.write_text(MINE.replace("strength: float = 1.0", "strength: float = 0.25"))
    first, second = method(f"{mine}:rlrt"), method(f"{other}:rlrt")
    for chosen, strength in ((first, 1.0), (second, 0.25)):
        settings = chosen.model_dump()
        del settings["blend"]["shape"]["strength"]
        assert Method.model_validate(settings).blend.shape.strength == strength


def test_a_changed_file_is_read_anew_and_its_run_is_another(mine, tmp_path):
    def config():
        return RunConfig.model_validate({**RUN, "method": method(f"{mine}:rlrt")})

    before = config()
    store = RunStore(tmp_path / "run")
    store.begin(before.identity(), {}, migrate=RunConfig.identity_of)
    store.append("metrics", {"step": 0})
    mine.write_text(MINE.replace("clip: float = 1.0", "clip: float = 0.5"))
    assert config().method.blend.shape.clip == 0.5
    with pytest.raises(EpistillError, match=r"differs in .*method\.file\.sha256"):
        store.begin(config().identity(), {}, migrate=RunConfig.identity_of)
    mine.write_text(MINE)
    mine.rename(tmp_path / "moved.py")  # where it lies is not part of what it is
    moved = tmp_path / "elsewhere" / "mine.py"
    moved.parent.mkdir()
    moved.write_text(MINE)
    again = RunConfig.model_validate({**RUN, "method": method(f"{moved}:rlrt")})
    store.begin(again.identity(), {}, migrate=RunConfig.identity_of)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gone.py:rlrt", "no file"),
        ("mine.py:nope", "nothing of the name 'nope'.*: rlrt"),
        ("mine.py", "FILE.py:NAME.*: rlrt"),
        ("mine.py:Needs", "a type of the name"),
        ("broken.py:rlrt", "broken.py does not run: ZeroDivisionError"),
        ("short.py:rlrt", "does not run: TypeError: .*abstract method"),
        ("other.py:rlrt", r"expected a subclass of epistill\.shapes\.Shape"),
        ("taken.py:rlrt", "'ratio' is epistill's own"),
    ],
)
def test_what_does_not_work_is_one_line(mine, tmp_path, name, words):
    (tmp_path / "broken.py").write_text("1 / 0")
    (tmp_path / "short.py").write_text(MINE.replace("def advantages", "def advantage"))
    no_shape = MINE.replace("needs = Needs", "_needs = Needs").replace("(Shape)", "(Settings)")
    (tmp_path / "other.py").write_text("from epistill.settings import Settings\n" + no_shape)
    (tmp_path / "taken.py").write_text(MINE.replace("my_reversed", "ratio"))
    with pytest.raises(EpistillError, match=words) as refused:
        method(str(tmp_path / name))
    assert "\n" not in str(refused.value)


EVERY_AXIS = """
from typing import ClassVar, Literal
from epistill.axes import Context, Method, TeacherWeights
from epistill.blends import Blend
from epistill.objective import distillation_nats
from epistill.targets import Divergence, Support, Target, TopK
from epistill.token_weights import TokenWeight
from epistill.training_rows import Needs

class Late(TokenWeight):
    type: Literal["own_late"] = "own_late"
    def weights(self, row, kept):
        inside = kept.float() * 0
        inside[2:] = 1
        return inside

class Own(Target):
    type: Literal["own_target"] = "own_target"
    def logits(self, seen):
        return seen["teacher"]

class Everything(Support):
    type: Literal["own_support"] = "own_support"
    def nats(self, student_logits, target_logits, token_ids, *, alpha, entry_clip):
        return distillation_nats(student_logits, target_logits, token_ids, alpha=alpha)

class Slow(TeacherWeights):
    type: Literal["own_slow"] = "own_slow"
    def rate_after(self, batches):
        return 0.05

class Half(Blend):
    type: Literal["own_half"] = "own_half"
    distils: ClassVar = True
    gradient_share: ClassVar = 0.5
    def distillation_share(self, progress):
        return 0.5

class Pulled(Blend):
    type: Literal["own_pulled"] = "own_pulled"
    needs: ClassVar = Needs(start_log_probs=True)
    reference_share: ClassVar = 0.1

common = {"context": Context(source="solution")}
token_weights = Method(name="own", token_weights=(Late(),), **common)
target = Method(name="own", divergence=Divergence(target=Own()), **common)
support = Method(name="own", divergence=Divergence(support=Everything()), **common)
teacher = Method(name="own", teacher=Slow(), **common)
blend = Method(name="own", blend=Half(), **common)
pulled = Method(name="own", blend=Pulled(), context=Context(source="none"))
"""


@pytest.mark.parametrize(
    ("name", "same"),
    [
        ("token_weights", {"token_weights": [{"type": "token_range", "skip_first": 2}]}),
        ("target", {}),
        ("support", {"divergence": {"support": {"type": "full"}}}),
        ("teacher", {"teacher": {"type": "ema"}}),
        ("blend", {"blend": {"type": "convex", "distillation": 0.5}}),
    ],
)
def test_a_choice_on_any_axis_is_the_built_in_one_of_its_formula(name, same, tmp_path):
    path = tmp_path / "own.py"
    path.write_text(EVERY_AXIS)
    alike = Method.model_validate({"name": "built-in", "context": {"source": "solution"}, **same})
    rows = [
        run(RunConfig.model_validate({**RUN, "method": chosen}), tmp_path / str(i)).metrics()
        for i, chosen in enumerate((method(f"{path}:{name}"), alike))
    ]
    assert rows[0] == rows[1]
    assert all(row["distillation_nats_per_token"] > 0 for row in rows[0])


def test_the_start_can_be_asked_for_where_no_teacher_is(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(EVERY_AXIS)
    config = RunConfig.model_validate({**RUN, "method": method(f"{path}:pulled")})
    assert not config.method.needs_teacher
    first, second = run(config, tmp_path / "run").metrics()
    assert first["reference_nats_per_token"] == pytest.approx(0, abs=1e-9)  # it is the start
    assert second["reference_nats_per_token"] > 0


# ---- who may name a file


@pytest.fixture
def evil(tmp_path):
    """A file that leaves a mark when it runs, and where the mark would be."""
    mark = tmp_path / "mark"
    path = tmp_path / "evil.py"
    path.write_text(EVIL.format(mark=str(mark)))
    return path, mark


@pytest.mark.parametrize("kind", ["name", "table", "file"])
def test_a_recorded_configuration_imports_nothing(evil, tmp_path, kind):
    path, mark = evil
    named = {
        "name": f"{path}:rlrt",
        "table": {"name": f"{path}:rlrt"},
        "file": {
            "name": "mine",
            "file": {"name": "evil.py:rlrt", "sha256": "0", "path": str(path)},
        },
    }[kind]
    record = tmp_path / "config.json"
    record.write_text(json.dumps({**RUN, "method": named}))
    with pytest.raises(EpistillError, match=r"--method PATH/evil\.py:rlrt") as refused:
        load_run_config(record, {})
    assert "\n" not in str(refused.value)
    with contextlib.suppress(ValueError):  # a name without meaning, or refused
        RunConfig.model_validate({**RUN, "method": named})
    assert not mark.exists()


def test_the_same_record_runs_with_the_file_that_its_user_names(evil, tmp_path):
    """So that the test above cannot pass because the file is broken."""
    path, mark = evil
    record = tmp_path / "config.json"
    record.write_text(json.dumps({**RUN, "method": f"{path}:rlrt"}))
    assert load_run_config(record, {"method": f"{path}:rlrt"}).method.name == "mine"
    assert mark.exists()


def test_a_run_directory_imports_nothing(evil, tmp_path):
    """A folder from elsewhere, whose records name a file, under another command's method."""
    path, mark = evil
    store = RunStore(tmp_path / "run")
    file = {"name": "evil.py:rlrt", "sha256": "0" * 64, "path": str(path)}
    stored = RunConfig.model_validate({**RUN, "method": method("grpo")}).identity()
    stored["method"] = {**stored["method"], "file": file}
    store.begin(stored, {})
    store.append("metrics", {"step": 0})
    mine = RunConfig.model_validate({**RUN, "method": method("grpo")})
    with pytest.raises(EpistillError, match="another configuration"):
        store.begin(mine.identity(), {}, migrate=RunConfig.identity_of)
    assert not mark.exists()


STUDY = """
name = "own"
question = "?"
about = "."
seeds = [0]
[run]
model = "lab"
steps = 1
problems_per_step = 4
samples_per_problem = 4
task = { type = "star_search", arms = 4, depth = 2 }
sampling = { max_new_tokens = 40 }
[learning_rates]
"mine.py:rlrt" = 1e-3
[[arms]]
id = "own"
label = "own"
method = "mine.py:rlrt"
"""


def test_a_study_goes_on_where_its_folder_moved_and_its_record_names_no_folder(mine, tmp_path):
    (tmp_path / "own.toml").write_text(STUDY)
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name in ("mine.py", "own.toml"):
        (moved / name).write_text((tmp_path / name).read_text())
    out = tmp_path / "out"
    for folder in (tmp_path, moved):
        runner._claim_folder(load_study(str(folder / "own.toml")), out)
    record = (out / "study.json").read_text()
    assert '"mine.py:rlrt"' in record
    assert str(tmp_path) not in record


def test_an_arm_of_a_study_trains_with_it_in_a_fresh_process(mine, tmp_path):
    (tmp_path / "own.toml").write_text(STUDY)
    spec = load_study(str(tmp_path / "own.toml"))
    config = spec.config_of(spec.arms[0], 0)
    assert config.learning_rate == 1e-3
    (job,) = jobs_of(spec, tmp_path / "out")
    del sys.modules[config.method.file.module]  # as a worker that has not seen the file
    run_job(json.dumps(job.payload), str(job.folder))
    assert RunStore(job.folder).result is not None
    del sys.modules[config.method.file.module]
    with pytest.raises(ValueError, match="imports nothing"):
        RunConfig.model_validate(job.payload["run"])
    (tmp_path / "study.json").write_text(json.dumps(spec.model_dump(mode="json")))
    with pytest.raises(EpistillError, match="is a record"):
        load_study(str(tmp_path / "study.json"))


def test_a_data_file_and_a_studys_record_and_checkpoint_import_nothing(evil, mine, tmp_path):
    path, mark = evil
    named = f"{path}:rlrt"
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"question": "1 + 1?", "answer": "2", "method": named}) + "\n")
    assert load_problems(str(data)).problems
    out = tmp_path / "out"
    config = RunConfig.model_validate({**RUN, "method": method("grpo"), "checkpoint_every": 1})
    (tmp_path / "own.toml").write_text(STUDY)
    spec = load_study(str(tmp_path / "own.toml"))
    runner._claim_folder(spec, out)
    record = json.loads((out / "study.json").read_text())
    record["arms"][0]["method"] = named
    (out / "study.json").write_text(json.dumps(record).replace('"mine.py:rlrt"', json.dumps(named)))
    with contextlib.suppress(EpistillError):
        runner._claim_folder(spec, out)
    store = run(config, tmp_path / "run")
    (store.folder / "result.json").unlink()
    (state,) = store.folder.glob("checkpoints/*/state.json")
    state.write_text(json.dumps({**json.loads(state.read_text()), "method": named}))
    with contextlib.suppress(EpistillError):
        run(config, store.folder)
    assert not mark.exists()
