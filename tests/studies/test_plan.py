"""A plan as a whole: its parts, docs/scale.md, the command, and the memory of a start."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from epistill.cli.plan_command import _print_plan
from epistill.describe import extra_forwards
from epistill.errors import EpistillError
from epistill.methods import METHODS
from epistill.studies.hardware import GIB
from epistill.studies.load_study import RECIPES, load_study
from epistill.studies.plan import STATE, plan_study
from tests.helpers.plans import ARCHITECTURES, NAMES, SERVED, changed
from tests.helpers.python import run_epistill


@pytest.mark.parametrize("name", NAMES)
def test_the_parts_add_up(name):
    spec = load_study(name)
    found = plan_study(spec)
    hours = sum(p["gpu_hours"] for p in found["probes"].values())
    for arm in spec.arms:
        row = found["arms"][arm.id]
        state, of_one = (
            sum(row["memory"][part] for part in parts) for parts in (STATE, ["cache_per_sequence"])
        )
        parts = (
            "weights",
            "gradients",
            "optimizer",
            "teacher",
            "student",
            "gathered",
            "activations",
            "logits",
        )
        assert row["training_bytes"] == sum(row["memory"][part] for part in parts)
        room = spec.hardware.memory_gib * GIB
        cache = row["sequences_at_once"] * of_one
        assert state + cache <= room
        assert room < state + cache + of_one
        assert row["fits"]
        three = [row["gpu_hours"][part] for part in ("sampling", "training", "evaluation")]
        assert row["gpu_hours"]["total"] == pytest.approx(sum(three))
        hours += sum(three)
    assert found["total_gpu_hours"] == pytest.approx(hours * len(spec.seeds))


def test_tokens_are_counted_from_the_settings():
    row = plan_study(load_study("recipes/math-ds-7b"))["arms"]
    rows = 100 * 256 * 8
    assert row["sdpo"]["tokens"] == {
        "sampled": rows * 13_054,
        "trained": rows * (256 + 13_054),
        "scored": extra_forwards(METHODS["sdpo"]) * rows * (256 + 2 * 13_054),
        "evaluated": (30 + 30 + 40 + 500) * 16 * 13_054,
    }
    assert row["grpo"]["tokens"]["scored"] == 0
    assert row["sdpo-no-think"]["tokens"]["scored"] == rows * (256 + 13_054 + 640)
    assert row["base"]["tokens"]["sampled"] == row["base"]["tokens"]["trained"] == 0


def test_a_plan_against_a_computation_by_hand():
    """SDPO on Qwen3-8B, thinking on: every number written out, from config.json and the recipe."""
    found = plan_study(load_study("recipes/math-qwen3-8b-think"))
    row = found["arms"]["sdpo"]
    q, kv = 32 * 128, 8 * 128
    linear = 4096 * q + 2 * 4096 * kv + q * 4096 + 3 * 4096 * 12_288
    block = linear + 2 * 4096 + 2 * 128  # two norms, and one each for queries and keys
    head = 151_936 * 4096
    parameters = 36 * block + 4096 + 2 * head
    assert row["parameters"] == parameters == 8_190_735_360
    # float32 state over 4 GPUs: weights, gradients, two moments, a frozen teacher.
    share = parameters * 4 / 4
    # One micro-batch of 22,528 tokens in bfloat16, checkpointed: 36 inputs of blocks, and of one
    # block q, k, v, the result and its log-sum-exp; two inputs of linear layers; gate, up, silu,
    # product; two norms over 4,096 and those over q and k, each with a float32 copy and scale.
    inside = 2 * (2 * q + 2 * kv) + 4 * 32 + 2 * 2 * 4096 + 4 * 2 * 12_288
    inside += 2 * ((4 + 2) * 4096 + 4) + (4 + 2) * (q + kv) + 4 * (32 + 8)
    memory = {
        "weights": share,
        "gradients": share,
        "optimizer": 2 * share,
        "teacher": share,
        "student": parameters * 4,  # the whole copy that samples
        "gathered": 2 * (2 * block + 3 * head),  # embedding, both heads, a block and the next
        "activations": 22_528 * (36 * 2 * 4096 + inside),
        "logits": 4 * 2**25 * 4 + 4 * head,  # chunks of 2^25 logits
    }
    assert {part: row["memory"][part] for part in memory} == memory
    assert row["training_bytes"] == sum(memory.values()) == 92_743_440_384
    # A sequence of 256 + 38,912 tokens: keys and values, 36 layers, bfloat16.
    cache = 39_168 * 36 * 2 * kv * 2
    assert row["memory"]["cache_per_sequence"] == cache
    assert row["sequences_at_once"] == (178 * 2**30 - 4 * share - 4 * parameters) // cache
    # 100 steps x 256 problems x 8 samples of 20,480 tokens; the teacher reads one more response.
    rows, sequence = 204_800, 256 + 20_480
    tokens = {
        "sampled": rows * 20_480,
        "trained": rows * sequence,
        "scored": rows * (sequence + 20_480),
        "evaluated": (30 + 30 + 40 + 500) * 16 * 38_912,
    }
    assert row["tokens"] == tokens
    # 2 FLOPs per weight, and 4 per position seen (half of them on average), head dimension and
    # layer; forward, backward (2x) and once more for checkpointing; the teacher only forward.
    weights = 2 * (36 * block + head)

    def forward(length):
        return weights + 4 * q * 36 * length / 2

    flops = 4 * tokens["trained"] * forward(sequence)
    flops += tokens["scored"] * forward(sequence + 20_480)
    hours = {
        "sampling": tokens["sampled"] / 2500 / 3600,
        "training": flops / (0.35 * 2250e12) / 3600,
        "evaluation": tokens["evaluated"] / 2500 / 3600,
    }
    assert {part: row["gpu_hours"][part] for part in hours} == pytest.approx(hours)
    assert row["gpu_hours"]["total"] == pytest.approx(466.0 + 208.6 + 41.5, abs=0.2)


def test_fewer_gpus_hold_more_each():
    four, one = (
        plan_study(load_study("recipes/math-qwen3-8b-think"), gpus=n)["arms"]["sdpo"]["memory"]
        for n in (None, 1)
    )
    for part in ("weights", "gradients", "optimizer", "teacher"):
        assert one[part] == 4 * four[part]
    assert one["student"] == 0  # the trained weights sample
    assert one["gathered"] == one["weights"] / 2  # their bfloat16 copies
    assert one["activations"] == four["activations"]


def test_replicas_are_whole_and_float32_needs_no_copies():
    plans = [
        plan_study(changed(parallel=parallel, precision=precision), gpus=4)["arms"]["sdpo"][
            "memory"
        ]
        for parallel, precision in (("shard", "bf16"), ("replicate", "bf16"), ("replicate", None))
    ]
    shard, replicate, full = plans
    assert replicate["weights"] == 4 * shard["weights"] == shard["student"]
    assert (replicate["student"], full["gathered"]) == (0, 0)
    assert full["cache_per_sequence"] == 2 * replicate["cache_per_sequence"]
    assert full["activations"] > 1.5 * replicate["activations"]


def test_lora_ema_and_frozen_teachers_differ_as_they_should():
    full = plan_study(changed())["arms"]
    adapted = plan_study(changed(lora={"rank": 64}))["arms"]
    weights = full["sdpo"]["memory"]["weights"]
    assert full["sdpo"]["memory"]["teacher"] == weights  # a frozen copy
    assert full["sdpo-ema"]["memory"]["teacher"] == 2 * weights  # a copy and a float32 average
    assert full["grpo"]["memory"]["teacher"] == 0
    assert full["sdpo"]["memory"]["optimizer"] == 2 * full["sdpo"]["memory"]["gradients"]
    assert adapted["sdpo"]["memory"]["teacher"] == 0  # the base with the adapter off
    dense = adapted["sdpo-ema"]["memory"]["teacher"]
    assert 0 < dense < weights  # the averaged delta of the adapted layers only
    assert adapted["sdpo"]["memory"]["weights"] == weights
    assert adapted["sdpo"]["memory"]["gradients"] < full["sdpo"]["memory"]["gradients"] / 20
    assert (
        adapted["sdpo"]["gpu_hours"]["training"] < full["sdpo"]["gpu_hours"]["training"]
    )  # no gradient of frozen weights
    assert adapted["sdpo"]["gpu_hours"]["sampling"] == full["sdpo"]["gpu_hours"]["sampling"]


def test_checkpointing_and_the_fused_head_save_what_they_are_said_to():
    memory = plan_study(changed())["arms"]["sdpo"]["memory"]
    assert memory["activations"] < memory["activations_whole"] / 10
    assert memory["logits"] < memory["logits_dense"] / 10


def test_throughput_is_stated_and_scales_the_hours():
    spec = changed()
    once = plan_study(spec, sampling_tokens_per_second=1000.0, utilisation=0.2)
    twice = plan_study(spec, sampling_tokens_per_second=2000.0, utilisation=0.4)
    assert once["total_gpu_hours"] == pytest.approx(2 * twice["total_gpu_hours"])
    assert once["assumed"] == {"sampling_tokens_per_second": 1000.0, "utilisation": 0.2}
    silent = spec.hardware.model_copy(update={"sampling_tokens_per_second": None})
    with pytest.raises(EpistillError, match="states no throughput; pass --calibrate"):
        plan_study(spec.model_copy(update={"hardware": silent}))
    with pytest.raises(EpistillError, match="between 0 and 1"):
        plan_study(spec, utilisation=1.5)


def test_a_study_that_says_too_little_is_refused():
    with pytest.raises(EpistillError, match=r"no \[hardware\] or no \[lengths\]"):
        plan_study(load_study("lab"))
    with pytest.raises(EpistillError, match=r"no \[architectures"):
        plan_study(changed().model_copy(update={"architectures": {}}))


def test_the_command_prints_the_same_numbers():
    command = ["plan", "recipes/math-qwen3-1.7b"]
    plain = run_epistill(*command)
    assert plain.returncode == 0, plain.stderr
    found = json.loads(run_epistill(*command, "--json").stdout)
    assert f"{found['total_gpu_hours']:,.0f} GPU hours" in plain.stdout
    assert "stated, not measured" in plain.stdout


def test_what_a_start_takes_of_the_hosts_memory_is_said():
    """All of a sharded network, in each process, where servers write the responses."""
    for changes in ({}, SERVED):
        console = Console(file=io.StringIO(), width=1000)
        found = plan_study(changed(**changes), gpus=8)
        _print_plan(found, console)
        text = console.file.getvalue()
        gib = max(row["memory"]["host"] for row in found["arms"].values()) / GIB
        assert (gib > 0) == bool(changes)
        line = (
            f"{gib:.1f} GiB of the host's memory for each GPU's process ({8 * gib:,.0f} for all 8)"
        )
        assert (line in text) == (gib > 0)
        assert ("as many GPUs again" in text) == (gib > 0)


def test_hours_of_what_servers_write_are_those_with_as_many_gpus_again():
    spec = load_study("recipes/math-qwen3-8b-think")

    def hours(**rollouts):
        run = {**spec.run, "rollouts": {**SERVED["rollouts"], **rollouts}}
        served = plan_study(spec.model_copy(update={"run": run}), gpus=8)
        return served["arms"]["sdpo"]["wall_hours"]

    in_turn, ahead = hours(), hours(ahead=True)
    assert in_turn["total"] == pytest.approx(
        in_turn["sampling"] + in_turn["training"] + in_turn["evaluation"]
    )
    # All updates but the last have the next batch beside them.
    steps = spec.config_of(spec.arms[-1], 0).steps
    longer, shorter = sorted((ahead["sampling"], ahead["training"]), reverse=True)
    assert ahead["total"] == pytest.approx(longer + shorter / steps + ahead["evaluation"])


def test_an_untrained_arm_is_sharded_as_the_trained_ones_are():
    """`training.train_state` shards whatever the number of steps; nothing else is held for it."""
    found = plan_study(changed(), gpus=8)["arms"]
    base = next(row["memory"] for name, row in found.items() if name == "base")
    trained = next(row["memory"] for name, row in found.items() if name == "grpo")
    assert base["weights"] == trained["weights"]
    assert base["student"] == trained["student"]
    assert base["gradients"] == base["optimizer"] == 0


def test_without_a_name_it_lists_every_recipe_and_where_the_files_are():
    plain = run_epistill("plan")
    assert plain.returncode == 0, plain.stderr
    for name in NAMES:
        line = next(line for line in plain.stdout.splitlines() if name in line)
        assert f"{plan_study(load_study(name))['total_gpu_hours']:,.0f}" in line
    folder = Path(plain.stdout.split("copy and change:")[1].strip())
    assert {f"{RECIPES}{p.stem}" for p in folder.glob("*.toml")} == set(NAMES)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--gpus", "0"], "--gpus is 0"),
        (["--tokens-per-second", "0"], "a positive rate"),
        (["--utilisation", "0"], "between 0 and 1"),
    ],
)
def test_flags_that_make_no_sense_are_one_line(flags, said):
    done = run_epistill("plan", "recipes/math-qwen3-1.7b", *flags)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert said in done.stderr


SCALE = (Path(__file__).resolve().parents[2] / "docs" / "scale.md").read_text(encoding="utf-8")


def printed(value: float, digits: int) -> str:
    return f"{value:,.{digits}f}".removeprefix("0") if digits else f"{value:,.0f}"


def test_the_numbers_of_scale_are_what_plan_says():
    """docs/scale.md: what a study costs at 8, 64, 512 GPUs, where it stops, what ahead brings."""
    spec = load_study("recipes/math-qwen3-8b-think")
    served = spec.model_copy(update={"run": {**spec.run, **SERVED}})
    plans = {n: plan_study(spec, gpus=n) for n in (8, 64, 128, 255, 256, 512)}
    sdpo = {n: plan["arms"]["sdpo"] for n, plan in plans.items()}
    clocks = {n: row["wall_hours"] for n, row in sdpo.items()}
    sizes = (8, 64, 512)
    said = []
    for n in sizes:
        hours, clock = plans[n]["total_wall_hours"], clocks[n]
        line = [
            f"{n}", printed(hours, 0), printed(n * hours, 0),
            printed(plans[n]["total_gpu_hours"] / n / hours, 2),
            *(printed(clock[part], 1) for part in ("sampling", "training", "evaluation")),
            clock["sampling_bound"], printed(sdpo[n]["training_bytes"] / GIB, 0),
        ]  # fmt: skip
        said.append(f"| {' | '.join(line)} |")
    ahead = {
        part: [sdpo[n]["ahead"][f"hours_{part}"] for n in sizes]
        for part in ("in_process", "in_turn", "ahead")
    }
    said += [f" | {' | '.join(printed(h, 1) for h in hours)} |" for hours in ahead.values()]
    of_turns = [printed(a / b, 2) for a, b in zip(ahead["ahead"], ahead["in_turn"], strict=True)]
    said.append("to {}, {} and {} of the time".format(*of_turns))
    assert [a < b for a, b in zip(ahead["ahead"], ahead["in_process"], strict=True)] == [
        clocks[n]["sampling_bound"] == "longest response" for n in sizes
    ]

    run, hardware, arms = spec.config_of(spec.arms[2], 0), spec.hardware, plans[512]["arms"]
    rate, alone = hardware.sampling_tokens_per_second, hardware.sequence_tokens_per_second
    limit, rows = run.sampling.max_new_tokens, run.problems_per_step * run.samples_per_problem
    said += [
        f"{rate:,.0f} sampled tokens a second", f"{alone:.0f} of a sequence alone",
        f"{hardware.utilisation:.0%} of the peak".replace("%", " %"),
        f"at {hardware.gather_gb_per_second:.0f} GB/s", f"limit of {limit:,} tokens",
        f"{run.problems_per_step} problems x {run.samples_per_problem}",
        f"A response of {limit:,} tokens takes {limit / alone:.0f} s",
        f"by throughput alone {rows * limit / rate / (limit / alone):.0f}",
    ]  # fmt: skip
    assert [clocks[n]["sampling_bound"] == "throughput" for n in (128, 255, 256, 512)] == [
        True, True, False, False
    ]  # fmt: skip
    few, many = clocks[128]["sampling"], clocks[512]["sampling"]
    assert (clocks[255]["sampling"], clocks[256]["sampling"]) == (few, many)
    said.append(f"{few:.3f} h from 128 to 255 GPUs and {many:.3f} h from 256 on")
    assert clocks[512]["idle_sampling_share"] == 0.5  # "half get no problem at all"
    assert rows // run.updates_per_batch == 2 * 512  # "two rows of an update"

    def bound(gather: float) -> str:
        slow = hardware.model_copy(update={"gather_gb_per_second": gather})
        found = plan_study(spec.model_copy(update={"hardware": slow}), gpus=512)
        return found["arms"]["sdpo"]["wall_hours"]["training_bound"]

    # "a sixteenth": as long as computing where it is sixteen times as slow.
    assert [bound(400 / slower) for slower in (16, 17)] == ["FLOPs", "gathering weights"]
    shares = (arms[arm]["wall_hours"] for arm in ("sdpo", "grpo"))
    said.append(
        "{:.0f} % of SDPO's time there and {:.0f} % of GRPO's".format(
            *(100 * clock["training"] / clock["total"] for clock in shares)
        )
    )
    slowest = max(row["wall_hours"]["total"] for row in plans[128]["arms"].values())
    assert len(plans[128]["arms"]) == 4
    said.append(f"four arms of 128 GPUs each take {slowest:.1f} hours in all")

    copies, without, starts, starts_served = set(), [], [], []
    for n in sizes:
        with_copy, other = sdpo[n], plan_study(served, gpus=n)["arms"]["sdpo"]
        copies.add(copy := with_copy["memory"]["student"])
        assert with_copy["training_bytes"] - other["training_bytes"] == copy
        assert other["sequences_at_once"] is None
        assert other["fits"]
        for row in (with_copy, other):
            assert row["peak_bytes"] == row["training_bytes"]  # "never the peak"
        assert other["memory"]["host"] == copy
        without.append(printed(other["training_bytes"] / GIB, 0))
        starts.append(printed(with_copy["memory"]["start"] / GIB, 0))
        starts_served.append(printed(other["memory"]["start"] / GIB, 0))
    said += [
        f"weights that samples, {(copy := copies.pop()) / GIB:.1f} GiB in each process",
        "need {}, {} and {} GiB at 8, 64 and 512".format(*without),
        "the start needs {}, {} and {} GiB".format(*starts_served),
        "the processes sample {}, {} and {}".format(*starts),
        f"{copy / GIB:.1f} GiB of the host's memory for each process, {8 * copy / GIB:.0f} of a machine",
    ]
    page = " ".join(SCALE.split())
    assert [one for one in said if one not in page] == []


def test_what_servers_wrote_the_trainer_scores():
    """One forward pass more of the student, beside three and one that checkpointing adds."""
    spec = load_study("recipes/math-qwen3-8b-think")
    served = spec.model_copy(update={"run": {**spec.run, **SERVED}})
    slow = spec.hardware.model_copy(update={"gather_gb_per_second": 1.0})
    for changes in ({}, {"hardware": slow}):  # FLOPs; bytes: 3 (2) x bfloat16 and the gradient
        theirs, own = (
            plan_study(one.model_copy(update=changes))["arms"]["grpo"] for one in (served, spec)
        )
        ratio = theirs["wall_hours"]["training"] / own["wall_hours"]["training"]
        assert ratio == pytest.approx((3 * 2 + 4) / (2 * 2 + 4) if changes else 5 / 4, rel=1e-3)
        assert theirs["ahead"] == own["ahead"]
    assert theirs["gpu_hours"]["training"] == pytest.approx(own["gpu_hours"]["training"] * 5 / 4)


def test_a_plan_finds_the_micro_batch_that_a_run_would():
    """ "auto": a power of two that fits beside the state, at most 16,384, at least one sequence."""

    def tokens(memory_gib: float, **changes) -> int:
        spec = changed(microbatch_tokens="auto", activation_checkpointing=False, **changes)
        machine = spec.hardware.model_copy(update={"memory_gib": memory_gib})
        plan = plan_study(spec.model_copy(update={"hardware": machine}))
        return plan["arms"]["sdpo"]["memory"]["microbatch_tokens"]

    short = {"sampling": {"max_new_tokens": 1024}}
    memory = plan_study(changed(microbatch_tokens="auto"))["arms"]["sdpo"]["memory"]
    state = sum(memory[part] for part in (*STATE, "gradients"))
    per_token = ARCHITECTURES["Qwen/Qwen3-8B"].activation_bytes(1, 2, checkpointing=False)
    for size in (4096, 8192):
        room = (state + 2 * size * per_token) / GIB  # half of what is free is used
        assert tokens(room * 1.001, **short) == size
        assert tokens(room * 0.999, **short) == size // 2
    assert tokens(10_000, **short) == 16_384
    assert tokens(10_000) == 20_480 + load_study("recipes/math-qwen3-8b-no-think").lengths.prompt


def test_a_start_on_the_host_is_never_the_peak():
    row = plan_study(changed(**SERVED), gpus=8)["arms"]["sdpo"]
    whole, head = 8_190_735_360 * 4, 151_936 * 4096 * 4
    # The shares of student and teacher, and the embedding with the last norm.
    assert row["memory"]["start"] == 2 * whole // 8 + head + 4096 * 4
    assert row["memory"]["host"] == whole
    assert row["peak_bytes"] == row["training_bytes"] > 3 * row["memory"]["start"]
    row = plan_study(changed(), gpus=8)["arms"]["sdpo"]
    assert row["memory"]["start"] == whole + 2 * whole // 8  # the copy that samples
    assert row["memory"]["host"] == 0
    # An adapter's averages are whole until it is sharded: here, or on the host.
    for more, held in (({}, "start"), (SERVED, "host")):
        memory = plan_study(changed(lora={"rank": 4}, **more), gpus=8)["arms"]["sdpo-ema"]["memory"]
        averages = 8 * memory["teacher"]
        here = whole + whole // 8 if held == "start" else whole
        assert memory[held] == pytest.approx(here + averages)


def test_what_servers_score_is_their_work():
    """A live teacher's log-probs before a step: the trainer's pass less, the servers' more."""
    asked = SERVED["rollouts"] | {"teacher_scores": "servers"}
    spec = changed(**SERVED)
    arm = spec.arms[1].model_copy(
        update={"method": "rlsd", "method_settings": {"teacher": {"type": "live"}}}
    )
    both = [
        plan_study(changed(rollouts=rollouts).model_copy(update={"arms": (arm,)}), gpus=8)
        for rollouts in (SERVED["rollouts"], asked)
    ]
    own, theirs = (plan["arms"][arm.id] for plan in both)
    assert own["tokens"]["scored"] > theirs["tokens"]["scored"] == 0
    saved = own["gpu_hours"]["training"] - theirs["gpu_hours"]["training"]
    more = theirs["gpu_hours"]["sampling"] - own["gpu_hours"]["sampling"]
    assert saved == pytest.approx(more)
    assert own["memory"]["gathered"] - theirs["memory"]["gathered"] == 151_936 * 4096 * 2
    later = theirs["wall_hours"]["sampling"] - own["wall_hours"]["sampling"]
    assert later == pytest.approx(more / 8)
    assert theirs["ahead"]["hours_in_process"] == pytest.approx(own["ahead"]["hours_in_process"])
