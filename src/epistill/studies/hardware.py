"""What a model costs, from the numbers of its architecture: parameters, bytes, FLOPs. Torch-free.

Enters: an `Architecture` (the keys of its Hugging Face configuration). Leaves: counts per part;
`studies/plan.py` adds them up for a study on a `Hardware`.
Every formula is held against the real thing by `tests/studies/test_hardware.py`: parameters against
models on the meta device, activations against what autograd saves, teachers against their tensors.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from epistill.axes import Method
from epistill.config import Lora
from epistill.settings import Settings

FLOAT32_BYTES = 4
DTYPE_BYTES = {"float32": FLOAT32_BYTES, "bfloat16": 2}
GIB = 2**30
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class Architecture(Settings):
    """A model's shape, in the words of its `config.json`, so that a plan needs no download.

    Attributes:
        thinking: What its chat template does: "optional" (`enable_thinking`), "opened" (it writes
            `<think>` itself), "none".
        source: Where the numbers are from.
    """

    model_type: Literal["qwen3", "qwen2", "olmo3", "llama"]
    hidden_size: int = Field(ge=1)
    intermediate_size: int = Field(ge=1)
    num_hidden_layers: int = Field(ge=1)
    num_attention_heads: int = Field(ge=1)
    num_key_value_heads: int = Field(ge=1)
    head_dim: int | None = Field(default=None, ge=1)
    vocab_size: int = Field(ge=1)
    max_position_embeddings: int = Field(ge=1)
    tie_word_embeddings: bool = False
    sliding_window: int | None = Field(default=None, ge=1)
    thinking: Literal["optional", "opened", "none"] = "none"
    source: str

    def for_transformers(self) -> dict[str, Any]:
        """Keyword arguments of `AutoConfig.for_model`."""
        values = self.model_dump(exclude={"thinking", "source"}, exclude_none=True)
        return {**values, "pad_token_id": 0}

    @property
    def _head(self) -> int:
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def query_width(self) -> int:
        """Of all heads together."""
        return self.num_attention_heads * self._head

    @property
    def key_width(self) -> int:
        """Of all key-value heads together."""
        return self.num_key_value_heads * self._head

    def linear_shapes(self) -> tuple[tuple[int, int], ...]:
        """(in, out) of the linear layers of one block: q, k, v, o, gate, up, down."""
        h, i, q, k = self.hidden_size, self.intermediate_size, self.query_width, self.key_width
        return ((h, q), (h, k), (h, k), (q, h), (h, i), (h, i), (i, h))

    @property
    def layer_parameters(self) -> int:
        """Of one block: linear layers, two norms, and what the family adds."""
        q, k = self.query_width, self.key_width
        extra = {"qwen3": 2 * self._head, "qwen2": q + 2 * k, "olmo3": q + k, "llama": 0}[
            self.model_type
        ]
        return sum(a * b for a, b in self.linear_shapes()) + 2 * self.hidden_size + extra

    @property
    def embedding_parameters(self) -> int:
        """Of one matrix between vocabulary and hidden size."""
        return self.vocab_size * self.hidden_size

    @property
    def parameters(self) -> int:
        """Of the whole model."""
        matrices = 1 if self.tie_word_embeddings else 2
        blocks = self.num_hidden_layers * self.layer_parameters
        return blocks + self.hidden_size + matrices * self.embedding_parameters

    def windows(self) -> list[int | None]:
        """Of each layer; None attends to everything. Olmo 3 has every fourth layer full."""
        layers = range(1, self.num_hidden_layers + 1)
        return [self.sliding_window if layer % 4 else None for layer in layers]

    def cache_bytes(self, length: int, number_bytes: int) -> int:
        """Keys and values of one sequence."""
        kept = sum(min(length, window or length) for window in self.windows())
        return kept * 2 * self.key_width * number_bytes

    def forward_flops(self, length: int, tokens: float) -> float:
        """Multiply-adds count twice; causal attention over sequences of this length.

        A token at position t costs 2 per weight and 4 t per head dimension and layer; over a
        sequence t averages length / 2 (within a window w: about w).
        """
        weights = self.num_hidden_layers * self.layer_parameters + self.embedding_parameters
        seen = sum(
            length / 2 if window is None or window >= length else window - window**2 / (2 * length)
            for window in self.windows()
        )
        return tokens * (2.0 * weights + 4.0 * self.query_width * seen)

    def layer_activation_bytes(self, number_bytes: int) -> int:
        """What autograd keeps of one block per token, with fused attention (no T x T matrix)."""
        c, h, i, q, k = (
            number_bytes, self.hidden_size, self.intermediate_size, self.query_width, self.key_width
        )  # fmt: skip
        heads, key_heads = self.num_attention_heads, self.num_key_value_heads
        attention = c * (q + 2 * k) + 4 * heads + c * q  # q, k, v, log-sum-exp, result
        inputs = 2 * c * h  # of the attention's and the MLP's linear layers
        mlp = 4 * c * i  # gate, up, silu(gate), their product
        match self.model_type:
            case "olmo3":  # norms multiply in float32; q and k are normed whole
                norms = 2 * (8 * h + 4) + (8 * q + 4) + (8 * k + 4)
            case "qwen3":  # norms keep a float32 input and a result in the model's own type
                norms = 2 * (4 * h + 4 + c * h) + (4 + c) * (q + k) + 4 * (heads + key_heads)
            case "qwen2" | "llama":
                norms = 2 * (4 * h + 4 + c * h)
        return attention + inputs + mlp + norms

    def activation_bytes(self, tokens: int, number_bytes: int, *, checkpointing: bool) -> int:
        """Of a micro-batch; with checkpointing, every block's input and one block whole."""
        layer = self.layer_activation_bytes(number_bytes)
        inputs = self.num_hidden_layers * number_bytes * self.hidden_size
        return tokens * (inputs + layer if checkpointing else self.num_hidden_layers * layer)


def adapter_parameters(architecture: Architecture, lora: Lora) -> int:
    """Trained parameters of an adapter on every linear layer but the head."""
    sides = sum(a + b for a, b in _adapted(architecture, lora))
    return architecture.num_hidden_layers * lora.rank * sides


def _adapted(architecture: Architecture, lora: Lora) -> list[tuple[int, int]]:
    shapes = dict(zip(LINEAR, architecture.linear_shapes(), strict=True))
    return [
        shape for n, shape in shapes.items() if lora.targets == "all-linear" or n in lora.targets
    ]


def copied_networks(method: Method, lora: Lora | None) -> int:
    """How many whole networks a method copies from the student when training starts."""
    weights = method.teacher
    if lora is not None:  # frozen: the adapter is switched off; EMA: its change is averaged
        return int(_moves(method) and not weights.averages)
    return (method.needs_teacher and not weights.is_student) + (
        method.needs_start and not (method.needs_teacher and weights.stays)
    )


def _moves(method: Method) -> bool:
    return method.needs_teacher and not (method.teacher.is_student or method.teacher.stays)


def teacher_bytes(
    architecture: Architecture, method: Method, lora: Lora | None, weight_bytes: int
) -> int:
    """What a method keeps besides the student: copies of it, and averages in float32."""
    copies = copied_networks(method, lora) * architecture.parameters * weight_bytes
    if not (_moves(method) and method.teacher.averages):
        return copies
    averaged = architecture.parameters
    if lora is not None:  # dense, of the adapted layers
        inside = sum(a * b for a, b in _adapted(architecture, lora))
        averaged = architecture.num_hidden_layers * inside
    return copies + averaged * FLOAT32_BYTES


class Hardware(Settings):
    """The machine a plan is for. Throughput is stated here, not measured; flags replace it.

    Attributes:
        gpus: Of one arm: processes under `torchrun`. Each samples.
        memory_gib: Of one.
        peak_tflops: Dense bfloat16 of one, from its data sheet.
        utilisation: Share of the peak that training reaches; None where the recipe does not say.
        sampling_tokens_per_second: Of one GPU while many sequences are sampled; None as above.
        sequence_tokens_per_second: Of one sequence, however few are beside it; None: no bound.
        gather_gb_per_second: At which a GPU receives sharded weights; None: no bound.
        measured: Whether the throughputs are this machine's own (`epistill plan --calibrate`).
        source: Where the figures are from.
    """

    gpu: str
    gpus: int = Field(ge=1)
    memory_gib: float = Field(gt=0)
    peak_tflops: float = Field(gt=0)
    utilisation: float | None = Field(default=None, gt=0, le=1)
    sampling_tokens_per_second: float | None = Field(default=None, gt=0)
    sequence_tokens_per_second: float | None = Field(default=None, gt=0)
    gather_gb_per_second: float | None = Field(default=None, gt=0)
    measured: bool = False
    source: str


class Lengths(Settings):
    """Mean lengths in tokens, where something is known about them.

    Attributes:
        prompt: Of a question with its template.
        response: Of a response; None reckons with the limit, which bounds the cost from above.
        answer: Of a response without its thinking (what c = s without thinking shows); None as
            long as the response.
        source: Where they are from.
    """

    prompt: int = Field(ge=1)
    response: int | None = Field(default=None, ge=1)
    answer: int | None = Field(default=None, ge=1)
    source: str

    def response_within(self, limit: int) -> int:
        """Of a response that is cut at `limit`: the mean where one is known, else the limit."""
        return min(self.response or limit, limit)
