"""The formulas of a plan against the real thing: networks, autograd's memory, teachers, caches."""

from __future__ import annotations

import functools
import gc
import itertools
import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import transformers
from torch.distributed.fsdp._fully_shard import _fsdp_init
from torch.testing._internal.distributed.fake_pg import FakeStore

from epistill.config import Lora, RunConfig
from epistill.describe import extra_forwards
from epistill.errors import EpistillError
from epistill.methods import METHODS, method
from epistill.rollouts.model import LanguageModel, with_lora
from epistill.studies.hardware import GIB, Architecture, adapter_parameters, teacher_bytes
from epistill.studies.load_study import RECIPES, load_study, shipped_studies
from epistill.studies.plan import STATE, plan_study
from epistill.studies.wall_clock import evaluation_sizes, one_step_ahead, wall_hours
from epistill.teacher.weights import make_teacher
from epistill.training import train_state
from epistill.training.sharding import nowhere_whole
from epistill.world import World
from tests.helpers.models import make_tiny_model
from tests.helpers.python import run_epistill

NAMES = [name for name in shipped_studies() if name.startswith(RECIPES)]
ARCHITECTURES = {
    name: shape for recipe in NAMES for name, shape in load_study(recipe).architectures.items()
}
SMALL = {
    "qwen3": {"num_key_value_heads": 2, "head_dim": 32},
    "qwen2": {"num_key_value_heads": 2},
    "llama": {"num_key_value_heads": 2},
    "olmo3": {"num_key_value_heads": 4, "sliding_window": 16},
}


def small(model_type: str, layers: int = 4, **changes) -> Architecture:
    settings = {
        "model_type": model_type, "hidden_size": 64, "intermediate_size": 176,
        "num_hidden_layers": layers, "num_attention_heads": 4, "vocab_size": 100,
        "max_position_embeddings": 256, "source": "a test", **SMALL[model_type], **changes,
    }  # fmt: skip
    return Architecture.model_validate(settings)


def network(shape: Architecture, dtype=torch.float32):
    config = transformers.AutoConfig.for_model(**shape.for_transformers())
    return transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)


def test_the_four_models_of_the_paper_are_there():
    assert set(ARCHITECTURES) == {
        "Qwen/Qwen3-8B",
        "Qwen/Qwen3-1.7B",
        "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B",
        "allenai/Olmo-3-7B-Instruct",
    }


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_parameters_are_those_of_the_real_network(name):
    shape = ARCHITECTURES[name]
    with torch.device("meta"):
        real = network(shape)
    assert shape.parameters == sum(p.numel() for p in real.parameters())
    assert f"{shape.parameters:,} parameters" in shape.source
    block = real.model.layers[0]
    assert shape.layer_parameters == sum(p.numel() for p in block.parameters())
    if shape.sliding_window is not None:
        full = [window is None for window in shape.windows()]
        assert full == [kind == "full_attention" for kind in real.config.layer_types]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("model_type", SMALL)
def test_activations_are_what_autograd_keeps(model_type, dtype):
    tokens = 64

    def kept(layers: int) -> int:
        """Bytes of distinct storages, weights and rotary tables (not per block) aside."""
        torch.manual_seed(0)
        # A window beyond the tokens: within it, the CPU kernel keeps a mask that no GPU kernel has.
        model = network(small(model_type, layers, sliding_window=256), dtype).train()
        own = {p.untyped_storage().data_ptr() for p in model.parameters()}
        seen: dict[int, torch.UntypedStorage] = {}

        def keep(tensor: torch.Tensor) -> None:
            storage = tensor.untyped_storage()
            # Olmo 3 multiplies by rotary tables in float32, one pair for each kind of attention.
            rotary = tensor.shape == (1, 1, tokens, 16) and tensor.dtype == torch.float32
            if storage.data_ptr() not in own and not rotary:
                seen[storage.data_ptr()] = storage  # held, so that no address comes twice

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda nothing: nothing):
            ids = torch.arange(tokens).unsqueeze(0)
            states = model.model(input_ids=ids, use_cache=False)[0]
        assert states.requires_grad
        return sum(storage.nbytes() for storage in seen.values())

    shape = small(model_type)
    measured = (kept(8) - kept(4)) / 4 / tokens
    assert measured == shape.layer_activation_bytes(dtype.itemsize)
    whole = shape.activation_bytes(tokens, 2, checkpointing=False)
    less = shape.activation_bytes(tokens, 2, checkpointing=True)
    assert whole == 4 * tokens * shape.layer_activation_bytes(2)
    assert less == whole // 4 + 4 * tokens * 2 * 64


@pytest.mark.parametrize("model_type", SMALL)
def test_the_cache_is_what_transformers_allocates(model_type):
    shape, length = small(model_type), 40
    model = network(shape).eval()
    with torch.no_grad():
        cache = model(input_ids=torch.zeros(1, length, dtype=torch.long)).past_key_values
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    # A sliding layer keeps window - 1 tokens: the next one is the window's last.
    sliding = sum(window is not None for window in shape.windows())
    assert shape.cache_bytes(length, 4) - held == sliding * 2 * shape.key_width * 4


@pytest.mark.parametrize("model_type", SMALL)
def test_flops_are_those_torch_counts(model_type):
    from torch.utils.flop_counter import FlopCounterMode

    shape, length = small(model_type, sliding_window=None), 64
    model = network(shape)
    model.set_attn_implementation("eager")  # the counter does not know the CPU's fused kernel
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=torch.zeros(1, length, dtype=torch.long), use_cache=False)
    # torch counts no norms and no biases, but the whole square of attention where causality skips
    # half of it.
    square = length * 4 * shape.query_width * length * shape.num_hidden_layers
    ours = shape.forward_flops(length, length) + square / 2
    assert ours == pytest.approx(counter.get_total_flops(), rel=0.02)


def tensor_bytes(teacher) -> int:
    """Distinct tensors a teacher holds besides the student's own."""
    student = {p.data_ptr() for p in teacher._student.network.parameters()}
    found = {}
    model = getattr(teacher, "_model", None)
    if model is not None:
        found |= {p.data_ptr(): p.nbytes for p in model.network.parameters()}
    found |= {t.data_ptr(): t.nbytes for t in teacher.state().values() if t.dim()}
    return sum(size for pointer, size in found.items() if pointer not in student)


TEACHERS = [{"type": "frozen"}, {"type": "live"}, {"type": "ema"}, {"type": "snapshot"}]


@pytest.mark.parametrize("weights", TEACHERS, ids=lambda w: w["type"])
@pytest.mark.parametrize("lora", [None, Lora(rank=4)], ids=["full", "LoRA"])
def test_teachers_take_what_they_are_said_to_take(weights, lora):
    model = make_tiny_model(layers=2)
    config = model.network.config
    shape = Architecture(
        model_type="qwen3", hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size, num_hidden_layers=2,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads, head_dim=config.head_dim,
        vocab_size=config.vocab_size, max_position_embeddings=512,
        tie_word_embeddings=config.tie_word_embeddings, source="a test",
    )  # fmt: skip
    assert shape.parameters == sum(p.numel() for p in model.network.parameters())
    if lora is not None:
        model = with_lora(model, lora)
        trained = sum(p.numel() for p in model.network.parameters() if p.requires_grad)
        assert adapter_parameters(shape, lora) == trained
    point = method("sdpo", teacher=weights)
    expected = teacher_bytes(shape, point, lora, 4)
    held = tensor_bytes(make_teacher(point.teacher, model))
    if lora is not None and weights["type"] == "snapshot":  # its adapter is copied with the base
        held -= trained * 4
    assert expected == held


def test_methods_without_a_teacher_keep_none():
    shape = small("qwen3")
    for name in ("grpo", "dapo", "sft-guided"):
        assert teacher_bytes(shape, METHODS[name], None, 4) == 0
    # SDPG's teacher is live, but it is also held near the weights at the start: one copy.
    assert teacher_bytes(shape, METHODS["sdpg"], None, 4) == shape.parameters * 4


# ---- whole plans -------------------------------------------------------------------------------


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


@pytest.mark.parametrize(("steps", "points"), [(0, 0), (1, 0), (4, 0), (5, 1), (8, 1), (9, 2)])
def test_points_of_the_curve_are_those_that_a_run_makes(steps, points):
    """Every fourth step but the last, which the whole evaluation follows."""
    task = {"type": "star_search"}
    sets = [
        {"name": "many", "task": task, "problems": 99, "samples": 3, "curve_problems": 7},
        {"name": "few", "task": task, "problems": 5, "samples": 2, "curve_problems": 64},
    ]
    config = RunConfig.model_validate({
        "model": "lab", "task": task, "method": method("grpo"), "steps": steps, "eval_every": 4,
        "evaluations": sets,
    })  # fmt: skip
    assert (
        list(evaluation_sizes(config))
        == [(99, 3)] + [(7, 1)] * points + [(5, 2)] + [(5, 1)] * points
    )


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


def changed(**changes):
    spec = load_study("recipes/math-qwen3-8b-no-think")
    return spec.model_copy(update={"run": {**spec.run, **changes}})


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
SERVED = {"rollouts": {"engine": "vllm", "urls": ["http://x"], "model": "m"}}


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


def made_ahead(sampling: float, training: float, steps: int) -> float:
    """Hours until the last update, step by step; both are those of all steps."""
    written, trained = sampling / steps, 0.0
    for _ in range(steps):
        begun = max(written, trained)  # then servers have new weights, and write the next batch
        written, trained = begun + sampling / steps, begun + training / steps
    return trained


def test_sampling_ahead_is_found_as_if_every_split_was_tried():
    spec = load_study("recipes/math-qwen3-8b-think")
    shape, config = ARCHITECTURES["Qwen/Qwen3-8B"], spec.config_of(spec.arms[2], 0)
    best = set()
    for problems, samples, gather, alone, seconds in itertools.product(
        (1, 2, 3, 7, 12), (1, 4), (None, 20.0, 400.0), (None, 50.0), (1e3, 1e5, 1e7)
    ):
        sizes = {"problems_per_step": problems, "samples_per_problem": samples}
        rates = {"gather_gb_per_second": gather, "sequence_tokens_per_second": alone}
        run = config.model_copy(update={**sizes, "updates_per_batch": 1, "steps": 3})
        machine = spec.hardware.model_copy(update=rates)
        hours = functools.cache(
            functools.partial(
                wall_hours, run, shape, machine, spec.lengths,
                rate=2500.0, update_seconds=seconds, microbatch_tokens=22_528,
            )
        )  # fmt: skip
        for gpus in (2, 3, 5, 13, 29):
            splits = [
                (k, hours(gpus=k)["sampling"], hours(gpus=gpus - k)["training"])
                for k in range(1, gpus)
            ]
            ahead, servers = min((made_ahead(s, t, run.steps), k) for k, s, t in splits)
            found = one_step_ahead(hours, hours, run, gpus)
            assert found["servers"] == servers
            assert found["hours_ahead"] == pytest.approx(ahead)
            assert found["hours_in_turn"] == min(sum(one[1:]) for one in splits)
            best.add((servers == 1, servers == gpus - 1))
    assert len(best) == 4


def test_a_clock_stops_at_the_longest_response_and_at_whole_rows():
    """By hand: DS-7B's mean and limit differ; rows and problems are dealt whole."""
    spec = load_study("recipes/math-ds-7b")
    spec = spec.model_copy(
        update={"run": {**spec.run, "problems_per_step": 4}, "arms": spec.arms[1:2]}
    )  # GRPO: 100 steps of 4 x 8 rows, two updates each
    clocks = {n: plan_study(spec, gpus=n)["arms"]["grpo"]["wall_hours"] for n in (1, 4, 5, 17)}
    rate, alone = spec.hardware.sampling_tokens_per_second, spec.hardware.sequence_tokens_per_second
    assert clocks[1]["sampling"] == pytest.approx(100 * 4 * 8 * 13_054 / rate / 3600)
    assert clocks[4]["sampling"] == clocks[17]["sampling"]  # no problem for the others
    assert clocks[17]["sampling"] == pytest.approx(100 * 20_480 / alone / 3600)
    assert clocks[17]["idle_sampling_share"] == pytest.approx(13 / 17)
    assert clocks[1]["training"] == pytest.approx(4 * clocks[4]["training"])
    assert clocks[5]["training"] == clocks[4]["training"]  # four rows of 16 are the most
    assert clocks[17]["training"] == pytest.approx(clocks[1]["training"] / 16)
    slow = spec.hardware.model_copy(update={"gather_gb_per_second": 1.0})
    found = plan_study(spec.model_copy(update={"hardware": slow}), gpus=17)["arms"]["grpo"]
    shape = spec.architectures[next(iter(spec.architectures))]
    # 200 updates of one micro-batch: twice the weights in bfloat16, the float32 gradient; and per
    # step the whole float32 copy.
    moved = 200 * shape.parameters * (2 * 2 + 4) + 100 * shape.parameters * 4
    assert found["wall_hours"]["training"] == pytest.approx(moved / 1e9 / 3600)
    assert found["wall_hours"]["training_bound"] == "gathering weights"


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


EIGHT = 8
SNAPSHOT, EMA = ({"teacher": {"type": kind}} for kind in ("snapshot", "ema"))


def tensors_alive() -> dict[int, int]:
    """Bytes of the memory of every tensor, by its address."""
    gc.collect()
    tensors = [one for one in gc.get_objects() if type(one) in (torch.Tensor, torch.nn.Parameter)]
    storages = [one.untyped_storage() for one in tensors]
    return {storage.data_ptr(): storage.nbytes() for storage in storages}


@pytest.fixture
def one_of_eight():
    """Processes of which seven are not there: enough to shard, not to compute."""
    dist.init_process_group("fake", rank=0, world_size=EIGHT, store=FakeStore())
    yield World(0, EIGHT)
    dist.destroy_process_group()


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("vocabulary", [64, 16_384])
@pytest.mark.parametrize(
    ("name", "chosen", "changes"),
    [
        ("grpo", {}, SERVED),
        ("sdpo", {}, SERVED),
        ("sdpo", EMA, SERVED),
        ("sdpo", SNAPSHOT, SERVED | {"lora": {"rank": 1}}),
        ("sdpo", {}, {}),
        ("sdpo", EMA, {"lora": {"rank": 1}}),
    ],
    ids=[
        "GRPO",
        "SDPO",
        "EMA",
        "snapshot of an adapter",
        "SDPO samples",
        "an adapter's EMA samples",
    ],
)
def test_the_start_holds_on_a_gpu_what_the_plan_says(
    name, chosen, changes, vocabulary, tied, one_of_eight, monkeypatch
):
    """FSDP's own sharding of eight; a GPU is what memory is made after the network is loaded."""
    sizes = {"vocab_size": vocabulary, "hidden_size": 256, "intermediate_size": 2048}
    shape = small("qwen3", tie_word_embeddings=tied, **sizes)
    changes = {"parallel": "shard", "precision": None, **changes}
    spec = changed(**changes)
    arm = spec.arms[1].model_copy(update={"method": name, "method_settings": chosen})
    update = {"arms": (arm,), "architectures": dict.fromkeys(spec.architectures, shape)}
    memory = plan_study(spec.model_copy(update=update), gpus=EIGHT)["arms"][arm.id]["memory"]
    settings = {"model": "lab", "task": {"type": "star_search"}, "method": method(name, **chosen)}
    config = RunConfig.model_validate({**settings, **changes})
    served = nowhere_whole(config, EIGHT)

    def on_gpu():
        return sum(size for place, size in tensors_alive().items() if place not in before)

    def moved(parameters, buffers, device):
        for one in (*parameters, *buffers) if served else ():
            one.data = one.clone()  # as torch's own does where they lie on another device
        shares = sum(one.nbytes for one in parameters) // EIGHT  # are made next, then it returns
        seen.append(on_gpu() + shares)

    monkeypatch.setattr(_fsdp_init, "_move_states_to_device", moved)
    student = LanguageModel(network(shape).eval(), make_tiny_model().tokenizer, "small")
    if config.lora is not None:
        student = with_lora(student, config.lora)
    host = [one.untyped_storage() for one in student.network.parameters()]  # no address comes twice
    before, seen = tensors_alive().keys(), []
    state = train_state.make_train_state(config, student, one_of_eight)
    # Beside it: an adapter's own weights, buffers; the plan's student is there before.
    assert max(seen) == pytest.approx(memory["start"] - memory["student"], rel=0.05)
    assert on_gpu() == pytest.approx(memory["weights"] + memory["teacher"], rel=0.05)
    del host
    assert (memory["host"] > 0) == served == (state.student is state.trained)


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
