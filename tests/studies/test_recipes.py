"""The recipes: their figures are the paper's, and each runs end to end at toy size."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from epistill.cli import app
from epistill.errors import EpistillError
from epistill.inputs import load_run_config
from epistill.methods import METHODS
from epistill.store import RunStore, read_json, write_json
from epistill.studies.executors import run_job
from epistill.studies.load_study import RECIPES, load_study, shipped_studies
from epistill.studies.plan import plan_study
from epistill.studies.runner import jobs_of, run_study
from epistill.studies.tiny import PROBLEMS, tiny_study
from tests.helpers.known_answers import know_toy_answers
from tests.helpers.python import run_epistill

NAMES = [name for name in shipped_studies() if name.startswith(RECIPES)]
MATH = [name for name in NAMES if "math-" in name or "coverage-" in name]

# ---- figures; the numbers of the comments are sections of the design notes' field.md -----------

MODELS = {  # 1.1: Qwen3-8B and Qwen3-1.7B, DS-7B, Olmo-3-7B-Instruct
    "recipes/math-qwen3-8b-think": "Qwen/Qwen3-8B",
    "recipes/math-qwen3-8b-no-think": "Qwen/Qwen3-8B",
    "recipes/math-qwen3-1.7b": "Qwen/Qwen3-1.7B",
    "recipes/math-ds-7b": "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B",
    "recipes/math-olmo3-7b": "allenai/Olmo-3-7B-Instruct",
    "recipes/coverage-qwen3-8b": "Qwen/Qwen3-8B",  # 1.5
    "recipes/chemistry-qwen3-8b": "Qwen/Qwen3-8B",
    "recipes/livecodebench-qwen3-8b": "Qwen/Qwen3-8B",
}
THINKING = {  # 1.1, 1.4, 1.5, 2.1; None where the template leaves no choice
    "recipes/math-qwen3-8b-think": True,
    "recipes/math-qwen3-8b-no-think": False,
    "recipes/math-qwen3-1.7b": True,
    "recipes/math-ds-7b": None,
    "recipes/math-olmo3-7b": None,
    "recipes/coverage-qwen3-8b": False,
    "recipes/chemistry-qwen3-8b": False,
    "recipes/livecodebench-qwen3-8b": False,
}
WITH_THINKING, WITHOUT = (0.6, 0.95), (0.7, 0.8)  # 1.6 and the table of 5: T, top_p
SUFFIX = "\nPlease reason step by step, and put your final answer within \\boxed{}."
CHAT_SIZES = {"AIME24": 30, "AIME25": 30, "AMC23": 40, "MATH500": 500}  # 5, sizes


def config(name: str, arm: str = "sdpo"):
    spec = load_study(name)
    found = next(a for a in spec.arms if a.id.startswith(arm))
    return spec.config_of(found, 0)


def test_every_experiment_has_its_recipe():
    assert set(NAMES) == set(MODELS) == set(THINKING)


@pytest.mark.parametrize("name", NAMES)
def test_model_and_thinking(name):
    run = config(name)
    assert run.model == MODELS[name]
    assert run.sampling.thinking is THINKING[name]
    assert run.eval_sampling.thinking is THINKING[name]


@pytest.mark.parametrize("name", MATH)
def test_math_trains_and_evaluates_as_published(name):
    spec, run = load_study(name), config(name)
    # 1.6: n 8, prompt 2,048 + response 20,480, warmup 10; 1.5: 25,600 prompts in 100 steps.
    assert (run.samples_per_problem, run.sampling.max_new_tokens) == (8, 20_480)
    assert (run.warmup_steps, run.steps) == (10, 100)
    assert run.microbatch_tokens >= 2_048 + 20_480
    small = name == "recipes/coverage-qwen3-8b"
    # 1.6: batch 256 with mini-batches of 128; small sets 64 with 32.
    assert run.problems_per_step == (64 if small else 256)
    assert run.problems_per_step // run.updates_per_batch == (32 if small else 128)
    # 1.6 and 5: max 38,912, n 16; T and top_p by thinking (DS-7B always thinks, Olmo never).
    thinks = THINKING[name] or name == "recipes/math-ds-7b"
    drawn = run.eval_sampling
    assert (drawn.temperature, drawn.top_p) == (WITH_THINKING if thinks else WITHOUT)
    assert (drawn.max_new_tokens, drawn.top_k) == (38_912, None)  # 1.7, trap 2: top_k unused
    assert {e.name: e.problems for e in spec.evaluations} == CHAT_SIZES
    assert {e.samples for e in spec.evaluations} == {16}
    assert {e.kind for e in spec.evaluations} == {"ood"}  # 1.5
    for task in (run.task, *(e.task for e in spec.evaluations)):
        assert task.prompt == "{question}" + SUFFIX
        assert task.grader == "math"
    assert "DAPO-Math-17k" in run.task.path


@pytest.mark.parametrize("name", MATH)
def test_methods_are_the_published_points(name):
    # 1.6: lr GRPO 1e-6 / SDPO 1e-5, teacher rate 0, JSD .5, top-k 100 + tail, is_clip 2,
    # clip .2/.28, no division by std.
    grpo, sdpo = config(name, "grpo"), config(name)
    assert grpo.method == METHODS["grpo"]
    assert sdpo.method == METHODS["sdpo"]
    assert (grpo.method.learning_rate, sdpo.method.learning_rate) == (1e-6, 1e-5)
    assert grpo.learning_rate is sdpo.learning_rate is None
    assert sdpo.method.teacher.type == "frozen"
    assert sdpo.method.divergence.alpha == 0.5
    assert (sdpo.method.divergence.support.k, sdpo.method.divergence.support.add_tail) == (
        100,
        True,
    )
    assert sdpo.method.token_weights[0].clip == 2.0
    clip = grpo.method.policy_gradient
    assert (clip.clip_low, clip.clip_high, clip.normalize_std) == (0.2, 0.28, False)


def test_prompts_are_those_of_the_papers_files(shared_data):
    import polars as pl

    for file, raw in (("aime24", "raw_problem"), ("math500", "raw_problem")):
        for row in pl.read_parquet(shared_data / "math" / f"{file}.parquet").to_dicts()[:20]:
            prompt, extra = (
                json.loads(v) if isinstance(v, str) else v
                for v in (row["prompt"], row["extra_info"])
            )
            assert prompt[-1]["content"] == extra[raw] + SUFFIX
    for row in pl.read_parquet(shared_data / "math" / "seen_128.parquet").to_dicts():
        assert row["prompt"][-1]["content"].endswith(SUFFIX)


def test_coverage_is_the_papers(shared_data):
    found = {arm.coverage for arm in load_study("recipes/coverage-qwen3-8b").arms if arm.method}
    assert found == {1, 8, 64, 128, 512, None}  # 1.5


def test_section_3_is_the_papers():
    (probe,) = load_study("recipes/math-ds-7b").probes
    sampling = probe.sampling  # 1.2: T .6, top_p .95, top_k 20, max 32,768, n 8, 100 problems
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.6, 0.95, 20)
    assert (sampling.max_new_tokens, probe.samples, probe.problems) == (32_768, 8, 100)
    assert probe.accuracy == (0.125, 0.5)
    assert probe.candidates is not None
    table = {"none": (0.30, 13_054), "sibling": (0.98, 1_873), "sibling-no-think": (0.78, 12_036),
             "regenerated": (0.95, 2_808)}  # fmt: skip
    density = {"none": 13.98, "sibling": 4.70, "sibling-no-think": 13.28, "regenerated": 8.58}
    for name, (score, length) in table.items():
        shown = probe.reference[name]
        assert shown["score"] == score
        assert shown["length_ratio"] == pytest.approx(length / 13_054, abs=0.005)
        assert shown["density_ratio"] == pytest.approx(density[name] / 13.98, abs=0.005)


def test_section_4_is_the_papers():
    spec = load_study("recipes/math-ds-7b")
    for name, source in (("sft-unguided", "none"), ("sft-guided", "sibling")):
        traces = config("recipes/math-ds-7b", name).method.traces
        assert (traces.count, traces.context.source) == (800, source)  # 1.3
    lengths = spec.lengths
    assert (lengths.response, lengths.answer) == (13_054, 640)  # 1.2


@pytest.mark.parametrize("name", ["recipes/chemistry-qwen3-8b", "recipes/livecodebench-qwen3-8b"])
def test_narrow_domains_are_sdpos(name):
    run = config(name)  # 2.1: lr 1e-5, batch 32, n 8, thinking off; 5: .6/.95, 8,192
    assert (run.problems_per_step, run.samples_per_problem) == (32, 8)
    assert (run.method.learning_rate, run.sampling.max_new_tokens) == (1e-5, 8_192)
    drawn = run.eval_sampling
    assert (drawn.temperature, drawn.top_p, drawn.max_new_tokens) == (0.6, 0.95, 8_192)


def test_livecodebench_and_chemistry_have_their_own_teachers():
    code, science = config("recipes/livecodebench-qwen3-8b"), config("recipes/chemistry-qwen3-8b")
    assert (code.method.teacher.rate, science.method.teacher.rate) == (0.01, 0.05)  # 2.1
    divergence = code.method.divergence  # 2.1: reverse KL, top 20
    assert (divergence.alpha, divergence.support.k) == (1.0, 20)
    assert code.method.context.assessment  # environment feedback
    spec = load_study("recipes/livecodebench-qwen3-8b")
    (chosen,) = spec.evaluations
    assert chosen.task == code.task  # 1.5: train == eval
    assert (chosen.problems, code.task.grader, code.task.since) == (131, "code", "2025-02-01")
    (held_out,) = load_study("recipes/chemistry-qwen3-8b").evaluations
    assert held_out.problems == 210  # 5, sizes


def test_the_science_files_are_read(shared_data):
    from epistill.tasks.files import load_problems

    for part in ("train", "test"):
        read = load_problems(str(shared_data / "science" / f"chemistry_{part}.jsonl"))
        assert read.grader == "choice"
        assert read.rows == {"train": 1890, "test": 210}[part]  # 5, sizes


@pytest.mark.parametrize("name", NAMES)
def test_recipes_are_planned_for_the_papers_machine(name):
    machine = load_study(name).hardware
    assert (machine.gpus, machine.gpu) == (4, "B200")  # 1.6
    assert all(row["fits"] for row in plan_study(load_study(name))["arms"].values())


# ---- end to end --------------------------------------------------------------------------------


def run_here(spec, folder):
    """In this process: a worker's imports take longer than a run."""
    for job in jobs_of(spec, folder.resolve()):
        run_job(json.dumps(job.payload), str(job.folder))
    run_study(spec, folder, workers=1)


@pytest.mark.parametrize("name", NAMES)
def test_each_recipe_runs_at_toy_size(name, tmp_path, monkeypatch):
    know_toy_answers(monkeypatch)
    real, folder = load_study(name), tmp_path
    spec = tiny_study(real, folder)
    run_here(spec, folder)
    jobs = jobs_of(spec, folder.resolve())
    assert "Toy size" in (folder / "report.html").read_text()
    report = read_json(folder / "report.json")
    assert report["runs_finished"] == report["runs_total"] == len(jobs)
    learned = {"distilled_rows": 0.0, "reinforced_rows": 0.0}
    for job, arm in ((j, a) for j in jobs for a in real.arms if j.item.id == a.id):
        store, before = RunStore(job.folder), real.config_of(arm, 0)
        done = store.config
        metrics = store.metrics()
        assert len(metrics) == (0 if arm.method is None else 2)
        for row in metrics:
            for part in learned:
                learned[part] += row[part]
        # Everything but size is the recipe's own.
        for part in ("context", "teacher", "divergence", "blend", "token_weights"):
            assert done["method"][part] == before.method.model_dump(mode="json")[part]
        for part in ("temperature", "top_p", "top_k", "thinking"):
            assert done["eval_sampling"][part] == getattr(before.eval_sampling, part)
        assert done["task"]["prompt"] == before.task.prompt
        assert done["task"]["grader"] == before.task.grader
        family = json.loads(
            (folder / "tiny" / before.model.replace("/", "--") / "config.json").read_text()
        )
        assert family["model_type"] == real.architectures[before.model].model_type
        assert family["num_hidden_layers"] == 2
        assert set(store.result["evaluations"]) == {e.name for e in real.evaluations}
        assert all(e["problems"] == PROBLEMS for e in store.result["evaluations"].values())
    assert all(count > 0 for count in learned.values()), learned


def test_the_command_line_does_what_is_missing(tmp_path):
    """With models that are taught, and say what they learned: the same numbers, whichever."""
    folder = tmp_path
    run_here(tiny_study(load_study("recipes/chemistry-qwen3-8b"), folder), folder)
    runs = folder / "runs"
    kept, missing = (runs / arm / "seed-0" / "result.json" for arm in ("grpo", "sdpo"))
    before = kept.stat().st_mtime_ns
    found = read_json(missing)
    shutil.rmtree(missing.parent)
    again = ("recipes/chemistry-qwen3-8b", "--tiny", "--workers", "1", "--out", folder)
    # In this process: its workers are forked from the process that those of other tests are.
    done = CliRunner().invoke(app, ["study", *map(str, again)])
    assert done.exit_code == 0, done.output
    assert read_json(missing)["evaluations"] == found["evaluations"]  # the same numbers again
    assert kept.stat().st_mtime_ns == before


@pytest.mark.slow
def test_an_arm_trained_by_torchrun_is_taken_by_its_study(tmp_path):
    recipe, out = "recipes/chemistry-qwen3-8b", tmp_path / "out"
    spec = tiny_study(load_study(recipe), out)
    arm = next(arm for arm in spec.arms if arm.id == "sdpo")
    write_json(tmp_path / "sdpo.json", spec.config_of(arm, 0).model_dump(mode="json"))
    folder = out / "runs" / "sdpo" / "seed-0"
    epistill = ["-m", "epistill"]
    for command in (
        ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *epistill, "train",
         str(tmp_path / "sdpo.json"), "--out", str(folder)],
        [*epistill, "study", recipe, "--tiny", "--workers", "1", "--out", str(out)],
    ):  # fmt: skip
        done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        if "train" in command:
            written = (folder / "result.json").stat().st_mtime_ns
    assert (folder / "result.json").stat().st_mtime_ns == written
    report = read_json(out / "report.json")
    assert report["runs_finished"] == report["runs_total"] == 3


def test_written_configurations_are_the_arms_own(tmp_path):
    for name in ("recipes/coverage-qwen3-8b", "recipes/math-ds-7b"):
        spec = load_study(name)
        command = ["plan", name, "--json", "--configs", str(tmp_path)]
        assert run_epistill(*command).returncode == 0
        for arm in spec.arms:
            path = tmp_path / spec.name / f"{arm.id}-seed-0.json"
            assert load_run_config(path, {}) == spec.config_of(arm, 0)


@pytest.mark.parametrize(("text", "said"), [("{", "is not JSON"), ("[1]", "is a list; expected")])
def test_a_configuration_that_is_none_is_one_line(text, said, tmp_path):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(EpistillError, match=said) as refused:
        load_run_config(tmp_path / "run.json", {})
    assert "\n" not in str(refused.value)


def test_a_toy_has_an_attention_of_the_cpu(tmp_path, monkeypatch):
    know_toy_answers(monkeypatch)  # its models need not be taught
    flash = {"attention": "flash_attention_2"}
    spec = load_study("recipes/math-ds-7b")
    probes = tuple(probe.model_copy(update=flash) for probe in spec.probes)
    spec = spec.model_copy(update={"run": {**spec.run, **flash}, "probes": probes})
    toy = tiny_study(spec, tmp_path)
    runs = [toy.config_of(arm, 0) for arm in toy.arms if arm.method is not None]
    assert {one.attention for one in (*runs, *toy.probes)} == {None}
    assert spec.config_of(spec.arms[-1], 0).attention == "flash_attention_2"


def test_a_study_without_shapes_has_no_toy_size(tmp_path):
    with pytest.raises(EpistillError, match="--tiny has no small version of task"):
        tiny_study(load_study("lab"), tmp_path)
