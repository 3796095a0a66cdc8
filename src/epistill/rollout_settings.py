"""What samples the student's responses in training: this process, or vLLM servers. No torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from epistill.axes import Method
from epistill.settings import Settings


class InProcessRollouts(Settings):
    """Responses are sampled in the training process."""

    engine: Literal["inprocess"] = "inprocess"


class VllmRollouts(Settings):
    """Responses are sampled by vLLM servers (docs/vllm.md), on a trusted network.

    Attributes:
        urls: Of the servers.
        model: The name they serve the model under.
        weights_folder: Where the weights are written for them, the same path on every machine;
            None is a folder in the run's directory.
        push_every: Steps between two pushes of weights; rollouts are stale by up to one less.
        ahead: The servers write the next batch while this one trains; rollouts are one step older.
        teacher_scores: What scores the sampled tokens under the teacher's contexts before a step;
            "servers" only where they have the teacher's weights and no more is asked of it.
        importance_cap: Upper bound of the importance weight of a token, p_trainer / p_engine.
        in_flight: Requests (one per group) that each server gets at a time.
        attempts: Per request and server, with growing pauses.
        timeout_seconds: How long a reply may take; one of many tokens as long as they take at 5
            tokens per second.
    """

    engine: Literal["vllm"] = "vllm"
    urls: tuple[str, ...] = Field(min_length=1)
    model: str
    weights_folder: str | None = None
    push_every: int = Field(default=1, ge=1)
    ahead: bool = False
    teacher_scores: Literal["inprocess", "servers"] = "inprocess"
    importance_cap: float = Field(default=2.0, ge=1.0)
    in_flight: int = Field(default=32, ge=1)
    attempts: int = Field(default=4, ge=1)
    timeout_seconds: float = Field(default=600.0, gt=0.0)

    def why_no_teacher(self, method: Method, temperature: float) -> str | None:
        """Why the servers cannot score this method's teacher as they are told to; None if they can.

        Args:
            method: Of the run.
            temperature: Of the sampling, at which a teacher's log-probs count.
        """
        if self.teacher_scores == "inprocess":
            return None
        name, whose, needs = method.name, method.teacher, method.needs
        more = {
            "a whole distribution per token": method.blend.distils,
            "entropies": needs.teacher_entropies,
            "the probability of markers": needs.teacher_marker_mass,
        }
        beyond = [what for what, asked in more.items() if asked]
        told = "rollouts.teacher_scores is 'servers' and "
        if beyond:
            told += f"method {name!r} asks its teacher for {', '.join(beyond)}; expected log-probs "
            told += "alone"
        elif not needs.asks_teacher:
            told += f"method {name!r} asks no teacher before a step; expected one that does"
        elif not whose.is_student:
            told += f"the teacher of {name!r} is {getattr(whose, 'type', whose)!r}; expected "
            told += "teacher type 'live', whose weights the servers have"
        elif self.push_every > 1:
            told += f"push_every is {self.push_every}; expected 1: the teacher's current weights"
        elif self.ahead:
            told += "ahead is true; expected false: the teacher's current weights"
        elif temperature not in (0.0, 1.0):
            told += f"temperature is {temperature:g}; expected 1, at which servers score"
        else:
            return None
        return f"{told}; or teacher_scores 'inprocess'"


Rollouts = Annotated[InProcessRollouts | VllmRollouts, Field(discriminator="engine")]
# Where servers are does not decide a run's numbers: a run may go on with others.
PLACES = {"urls", "model", "weights_folder", "in_flight", "attempts", "timeout_seconds"}
