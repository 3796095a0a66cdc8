"""The processes of one run: which one this is, and how they share work and numbers.

Enters: what `torchrun` put into the environment. Leaves: a `World`. One process is a world of size
1 that never touches torch.distributed. Values travel as JSON in byte tensors, never as pickle.
Every method but `share` is collective: all processes call it, in the same order.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from epistill.errors import EpistillError, LostProcess, StoppedElsewhere

Item = TypeVar("Item")
# How long a process waits for one that is there and does not answer; one that died is seen at once.
HANG_MINUTES = "EPISTILL_HANG_MINUTES"
MOST_HANG_MINUTES = 10_000  # a week
MOST_SILENT_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class World:
    """One process among `size`; rank 0 writes files and speaks to the user."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes files."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> list[Item]:
        """This process's part, dealt out like cards."""
        return list(items[self.rank :: self.size])

    def deal(self, batches: Sequence[Sequence[int]]) -> Iterator[tuple[Sequence[int], bool]]:
        """This process's micro-batches, each with whether it counts.

        All processes get equally many, because a sharded network is run by all of them together:
        whoever would sit out the last round gets the last row again, which counts for nothing.
        Micro-batches come longest first, so that row is the shortest.
        """
        own = self.share(batches)
        yield from ((batch, True) for batch in own)
        if len(own) < math.ceil(len(batches) / self.size):
            yield batches[-1][-1:], False

    def batch_tokens(self, lengths: Sequence[int], limit: int) -> int:
        """Tokens per micro-batch, so that there is one for every process."""
        return limit if self.size == 1 else min(limit, max(1, sum(lengths) // self.size))

    def gather_tensor(self, flat: Tensor) -> list[Tensor]:
        """Everyone's 1-d CPU tensor, of any length, in the order of ranks."""
        if self.size == 1:
            return [flat]
        sizes = [torch.zeros(1, dtype=torch.long) for _ in range(self.size)]
        dist.all_gather(sizes, torch.tensor([len(flat)]))
        longest = max(int(size) for size in sizes)
        padded = flat.new_zeros(longest)
        padded[: len(flat)] = flat
        found = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(found, padded)
        return [one[: int(size)] for one, size in zip(found, sizes, strict=True)]

    def gather(self, value: Any) -> list[Any]:
        """Everyone's JSON value, in the order of ranks."""
        if self.size == 1:
            return [value]
        data = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        return [json.loads(one.numpy().tobytes()) for one in self.gather_tensor(data)]

    def deal_back(self, shares: Sequence[Sequence[Item]]) -> list[Item]:
        """Undo `share`: the items of all processes in their original order."""
        total = sum(len(share) for share in shares)
        return [shares[i % self.size][i // self.size] for i in range(total)]

    def on_first(self, action: Callable[[], Any], *, slow: bool = False) -> Any:
        """Do something on rank 0 alone; everyone gets its JSON result, or stops if it failed.

        Args:
            action: What is done.
            slow: It may take longer than a process may be silent, so it is done in a thread
                (`wait_for_first`).

        Raises:
            EpistillError: On rank 0, what the action raised.
            StoppedElsewhere: On the others.
        """
        if self.size == 1:
            return action()
        if slow:
            with ThreadPoolExecutor(1) as beside:
                working = beside.submit(action) if self.first else None
                self.wait_for_first(working)
                return self.on_first(lambda: working and working.result())
        told: tuple[Any, str | None] = (None, None)
        failed: EpistillError | None = None
        if self.first:
            try:
                told = (action(), None)
            except EpistillError as error:
                failed, told = error, (None, str(error))
        value, problem = self.gather(list(told))[0]
        if failed is not None:
            raise failed
        if problem is not None:
            raise StoppedElsewhere(problem)
        return told[0] if self.first else value

    def wait_for_first(self, working: Future[Any] | None) -> None:
        """Wait for something that rank 0 has others do, however long it takes.

        It says all the while that it is there, so that no process takes it for one that hangs.

        Args:
            working: On rank 0, what is waited for; what comes of it nobody looks at.
        """
        seconds = min(MOST_SILENT_SECONDS, 15 * _hang_minutes())  # a quarter of them
        while not self.gather(working is None or bool(wait([working], timeout=seconds).done))[0]:
            pass

    def sum_numbers(self, values: dict[str, float]) -> dict[str, float]:
        """Sums by name, added in the order of ranks; a name that only some have counts too."""
        total: dict[str, float] = {}
        for one in self.gather(values):
            for name, value in one.items():
                total[name] = total.get(name, 0.0) + value
        return total

    def stop(self, message: str) -> NoReturn:
        """End the run with an error that all processes met; rank 0 reports it."""
        raise (EpistillError if self.first else StoppedElsewhere)(message)

    def device(self, name: str) -> str:
        """Which device of this machine is this process's: "cuda" becomes "cuda:LOCAL_RANK"."""
        if self.size == 1 or name != "cuda":
            return name
        return f"cuda:{os.environ.get('LOCAL_RANK', self.rank)}"


def current_world() -> World:
    """The world that `joined` opened, or this process alone."""
    if dist.is_available() and dist.is_initialized():
        return World(dist.get_rank(), dist.get_world_size())
    return World()


@contextmanager
def joined() -> Iterator[World]:
    """Join the processes that `torchrun` started; without it, this process is the whole world.

    JSON travels over gloo, gradients over gloo (CPU) or nccl (CUDA). Within another `joined` it is
    that one's world.

    Raises:
        LostProcess: Another of them ended, or was silent for EPISTILL_HANG_MINUTES (30).
    """
    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    if alone or (dist.is_available() and dist.is_initialized()):
        yield current_world()
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    minutes = _hang_minutes()
    try:
        dist.init_process_group(backend, timeout=timedelta(minutes=minutes))
        yield current_world()
    except RuntimeError as error:
        if not (isinstance(error, dist.DistError) or "gloo/" in str(error)):
            raise
        silent = f"was silent for {minutes:g} minutes" if "Timed out" in str(error) else "ended"
        raise LostProcess(
            f"another process of this run {silent}; the same command goes on, from the "
            "last checkpoint if there is one"
        ) from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _hang_minutes() -> float:
    told = os.environ.get(HANG_MINUTES, "30")
    with suppress(ValueError):
        if 0 < (minutes := float(told)) <= MOST_HANG_MINUTES:
            return minutes
    raise EpistillError(
        f"{HANG_MINUTES} is {told!r}; expected minutes, above 0 and at most {MOST_HANG_MINUTES}"
    )
