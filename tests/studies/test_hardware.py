"""The formulas of a plan against the real thing: networks, autograd's memory, teachers, caches."""

from __future__ import annotations

import pytest
import torch

from epistill.config import Lora
from epistill.methods import METHODS, method
from epistill.rollouts.model import with_lora
from epistill.studies.hardware import Architecture, adapter_parameters, teacher_bytes
from epistill.teacher.weights import make_teacher
from tests.helpers.models import make_tiny_model
from tests.helpers.plans import ARCHITECTURES, SMALL, network, small


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
