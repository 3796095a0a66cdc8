"""The fused path on a GPU against the CPU in float64; run with `pytest -m gpu`."""

from __future__ import annotations

import pytest
import torch

from epistill.objective import distillation_nats
from epistill.objective.fused import head_loss

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]

OPTIONS = [
    {"alpha": 0.0},
    {"alpha": 0.5},
    {"alpha": 1.0},
    {"alpha": 0.5, "top_k": 50, "add_tail": True},
]


def gradients(device, dtype, options):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(301, 64, generator=generator, dtype=torch.float64)
    weight = torch.randn(5003, 64, generator=generator, dtype=torch.float64) / 8
    teacher = torch.randn(301, 64, generator=generator, dtype=torch.float64)
    hidden, weight, teacher = (t.to(device, dtype) for t in (hidden, weight, teacher))
    hidden.requires_grad_()
    weight.requires_grad_()
    ids = torch.zeros(301, dtype=torch.long, device=device)

    def loss(logits, part):
        aim = teacher[part] @ weight.detach().T
        return distillation_nats(logits, aim, ids[part], **options).sum() / 301

    value = head_loss(hidden, weight, None, loss, rows_per_chunk=64)
    value.backward()
    return [t.detach().double().cpu() for t in (value, hidden.grad, weight.grad)]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 3e-2)])
def test_cuda_equals_the_cpu_in_float64(options, dtype, tolerance):
    expected = gradients("cpu", torch.float64, options)
    for found, reference in zip(gradients("cuda", dtype, options), expected, strict=True):
        assert (found - reference).norm() <= tolerance * reference.norm()


def test_a_run_on_cuda(tmp_path):
    from epistill.config import RunConfig, SamplingConfig, StarSearchTask
    from epistill.methods import METHODS
    from epistill.store import RunStore
    from epistill.studies.run_arm import run

    config = RunConfig(
        model="lab", task=StarSearchTask(arms=4, depth=2), method=METHODS["sdpo"],
        sampling=SamplingConfig(max_new_tokens=40), steps=2, problems_per_step=4,
        learning_rate=1e-3, device="cuda",
    )  # fmt: skip
    run(config, tmp_path)
    assert all(row["gradient_norm"] > 0 for row in RunStore(tmp_path).metrics())
