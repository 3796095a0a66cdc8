"""How a network lies over the processes of a run: whole in each, or sharded by torch's FSDP2.

Enters: a model and the run's settings. Leaves: the model laid out in place, gradients summed over
processes, and, where the processes sample themselves, a whole copy of sharded weights to do it
with. The weights of a loss are sums over the whole step already (`token_coefficients`), so
gradients are summed, never averaged.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import compress

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from epistill.config import RunConfig
from epistill.rollout_settings import VllmRollouts
from epistill.rollouts.load_model import use_attention
from epistill.rollouts.model import LanguageModel
from epistill.rollouts.weights_file import gathered
from epistill.teacher.weights import Place, whole
from epistill.world import World

NUMBERS_PER_SUM = 2**24  # gradients are summed in buckets of this many
HOST_ATTENTION = (None, "sdpa", "eager")  # others may need a GPU


def attention_waits(config: RunConfig, processes: int) -> bool:
    """Whether it is given to a network only where this was moved from the host to be sharded."""
    return nowhere_whole(config, processes) and config.attention not in HOST_ATTENTION


def nowhere_whole(config: RunConfig, processes: int) -> bool:
    """Whether weights are sharded and servers write every response: no process needs all of it."""
    drawn = config.eval_sampling or config.sampling
    served = isinstance(config.rollouts, VllmRollouts) and config.method.traces is None
    served = served and not (config.evaluations and drawn.stop)
    return processes > 1 and config.parallel == "shard" and served


def placement(config: RunConfig, world: World) -> Place:
    """What lays out the student and every copied teacher."""
    if world.size == 1 or config.parallel == "replicate":
        return whole
    device = torch.device(world.device(config.device))
    mesh = init_device_mesh(device.type, (world.size,))
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if config.precision == "bf16" else None,
        reduce_dtype=torch.float32 if config.precision == "bf16" else None,
    )

    def shard(model: LanguageModel) -> None:
        """Part after part: FSDP moves one to the device, keeps its share of a copy, lets it go."""
        decoder, head = model.decoder(), model.output_layer()
        shared = {id(p) for p in decoder.parameters()} & {id(p) for p in head.parameters()}
        blocks = max((m for m in decoder.modules() if isinstance(m, nn.ModuleList)), key=len)
        for part in (*blocks, decoder, *(() if shared else (head,))):
            fully_shard(part, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
            assert isinstance(part, FSDPModule)
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)  # gloo has no scaled sum
        if shared:  # a tied head is the embedding: it follows where that went
            head.weight = model.causal_lm().get_input_embeddings().weight
        for left in (*model.network.parameters(), *model.network.buffers()):
            if not isinstance(left, DTensor):  # outside decoder and head, or a buffer
                left.data = left.to(device, copy=True)
        if attention_waits(config, world.size):
            use_attention(model, str(config.attention))

    return shard


@torch.no_grad()
def refresh(student: LanguageModel, trained: LanguageModel) -> None:
    """Give the sampling student the trained weights, where it is not the trained one itself."""
    if student is trained:
        return
    for mine, theirs in zip(
        student.network.parameters(), trained.network.parameters(), strict=True
    ):
        if theirs.requires_grad:
            mine.copy_(gathered(theirs))


@torch.no_grad()
def sum_gradients(parameters: Iterable[nn.Parameter], world: World) -> None:
    """Sum the gradients of replicas; sharded ones are summed by FSDP already.

    A parameter that no process has a gradient for keeps none: an optimiser treats zero otherwise.
    The sum is taken in float32 or better, always over the same buckets.
    """
    own = [p for p in parameters if not isinstance(p, DTensor)]
    if world.size == 1 or not own:
        return
    touched = torch.tensor([p.grad is not None for p in own], dtype=torch.uint8)
    dist.all_reduce(touched, dist.ReduceOp.MAX)
    bucket: list[Tensor] = []
    for parameter in compress(own, touched.tolist()):
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        bucket.append(parameter.grad)
        if sum(gradient.numel() for gradient in bucket) >= NUMBERS_PER_SUM:
            _sum_bucket(bucket)
            bucket = []
    if bucket:
        _sum_bucket(bucket)


def _sum_bucket(gradients: Sequence[Tensor]) -> None:
    exact = torch.float64 if gradients[0].dtype == torch.float64 else torch.float32
    flat = torch.cat([g.to(exact).flatten() for g in gradients])
    dist.all_reduce(flat)
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))
