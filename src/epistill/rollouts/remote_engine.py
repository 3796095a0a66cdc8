"""Servers as the engine of a training run: one process asks them, all processes get the answer.

Enters: a `VllmPool`, the same in every process of the run; only rank 0 uses it. Leaves: rollouts,
and what became of a push. An error is the same error in every process, so that all stop together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Unpack

from epistill.records import Rollout, rollout_from_json, rollout_to_json
from epistill.rollouts.engine import Drawing
from epistill.rollouts.model import LanguageModel
from epistill.rollouts.sampler import PromptRequest
from epistill.rollouts.vllm import VllmPool
from epistill.rollouts.vllm_client import ServersLost
from epistill.world import current_world


@dataclass(slots=True)
class RemoteEngine:
    """Samples on servers with weights that are pushed to them.

    Attributes:
        pool: The servers.
        push_every: Steps between two pushes; above 1 the policy that samples is a stale one.
        pushed: Steps that the weights on the servers had seen; None before the first push.
    """

    pool: VllmPool
    push_every: int = 1
    pushed: int | None = None

    def refresh(self, student: LanguageModel, step: int) -> dict[str, Any]:
        """Push the student's weights if it is time; what `Push` says, or nothing.

        Raises:
            ServersLost: No server took them.
        """
        if self.pushed is not None and step - self.pushed < self.push_every:
            return {}
        found = _asked(lambda: asdict(self.pool.push_weights(student, step)))
        self.pushed = step
        return found

    def sample(
        self, requests: Sequence[PromptRequest], **drawing: Unpack[Drawing]
    ) -> list[Rollout]:
        """`VllmPool.sample`, once for all processes.

        Raises:
            ServersLost: No server is left.
        """

        def ask() -> list[dict[str, Any]]:
            return [rollout_to_json(r) for r in self.pool.sample(requests, **drawing)]

        return [rollout_from_json(row) for row in _asked(ask)]

    def trouble(self) -> dict[str, int]:
        """Servers in use, and how often requests were repeated or moved, over the run so far."""
        client = self.pool.client
        return {
            "servers_in_use": len(client.alive),
            "requests_retried": client.counts.retried,
            "requests_moved": client.counts.moved,
        }

    def close(self) -> None:
        """Close the connections."""
        self.pool.close()


def _asked(ask: Callable[[], Any]) -> Any:
    """What rank 0 was told, in every process; ServersLost in all of them too."""

    def told() -> dict[str, Any]:
        try:
            return {"value": ask(), "lost": None}
        except ServersLost as error:
            return {"value": None, "lost": str(error)}

    answer = current_world().on_first(told)
    if answer["lost"] is not None:
        raise ServersLost(answer["lost"])
    return answer["value"]
