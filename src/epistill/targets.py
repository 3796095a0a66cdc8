"""Axis 3: towards what rows are distilled, on which tokens, and how the distance is measured.

Defaults are the settings of arXiv 2603.24472 unless a field says otherwise. Imports no torch until
a choice is asked to compute.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from epistill.settings import Choice, Settings
from epistill.training_rows import Tensor

View = Literal["start", "context_alone", "wrong_sibling"]


class Support(Choice):
    """On which tokens of the vocabulary student and target are compared.

    Attributes:
        options: What `objective.distillation_nats` is told of it.
    """

    noun: ClassVar[str] = "support"
    options: ClassVar[Mapping[str, Any]] = {}

    def nats(
        self,
        student_logits: Tensor,
        target_logits: Tensor,
        token_ids: Tensor,
        *,
        alpha: float,
        entry_clip: float | None,
    ) -> Tensor:
        """Divergence of every position in nats, [n], with gradient for the student.

        Args:
            student_logits, target_logits: [n, V], at the loss temperature.
            token_ids: [n], the tokens that were sampled there.
            alpha, entry_clip: Of the `Divergence`.
        """
        from epistill.objective import distillation_nats

        settings = {"alpha": alpha, "entry_clip": entry_clip, **self.options}
        return distillation_nats(student_logits, target_logits, token_ids, **settings)

    def check(self, divergence: Divergence) -> None:
        """Refuse settings that this support would ignore, by a ValueError."""


class FullVocabulary(Support):
    """Compare over every token."""

    type: Literal["full"] = "full"

    def words(self) -> str:
        return "all tokens"


class TopK(Support):
    """Compare over the top k, with or without the rest as one bucket: a lower bound."""

    type: Literal["top_k"] = "top_k"
    k: int = Field(default=100, ge=1)
    add_tail: bool = True
    chosen_by: Literal["student", "teacher"] = "student"

    @property
    def options(self) -> Mapping[str, Any]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return {"top_k": self.k, "add_tail": self.add_tail, "chosen_by": self.chosen_by}

    def words(self) -> str:
        return f"{self.chosen_by}'s top {self.k}" + (" + tail" if self.add_tail else "")


class SampledToken(Support):
    """Compare on the sampled token alone: an estimate of the gradient of reverse KL."""

    type: Literal["sampled_token"] = "sampled_token"
    options: ClassVar[Mapping[str, Any]] = {"sampled_token": True}

    def check(self, divergence: Divergence) -> None:
        if divergence.alpha != 1.0:
            raise ValueError(
                "support sampled_token estimates reverse KL only: found "
                f"alpha={divergence.alpha}, expected 1.0"
            )
        if divergence.entry_clip is not None:
            raise ValueError(
                "support sampled_token has one term per position and entry_clip "
                f"{divergence.entry_clip} bounds terms; expected entry_clip none"
            )


class EntropyGated(Support):
    """Reverse KL on the sampled token, and where H_T > above_nats also forward KL on T's top k.

    In it the teacher is renormalised over its k tokens, the student is not. Source: EOPD
    2603.07079, equations 7 to 10 (.8 nats, 16).
    """

    type: Literal["entropy_gated"] = "entropy_gated"
    above_nats: float = Field(default=0.8, ge=0.0)
    k: int = Field(default=16, ge=1)

    def nats(
        self,
        student_logits: Tensor,
        target_logits: Tensor,
        token_ids: Tensor,
        *,
        alpha: float,
        entry_clip: float | None,
    ) -> Tensor:
        from epistill.objective import distillation_nats, entropy, top_k_forward_nats

        told = {"alpha": alpha, "entry_clip": entry_clip, "sampled_token": True}
        sampled = distillation_nats(student_logits, target_logits, token_ids, **told)
        unsure = entropy(target_logits.log_softmax(-1)) > self.above_nats
        return sampled + unsure * top_k_forward_nats(student_logits, target_logits, k=self.k)

    def check(self, divergence: Divergence) -> None:
        SampledToken().check(divergence)

    def words(self) -> str:
        return f"sampled token; forward KL on top {self.k} where H_T > {self.above_nats:g}"


class Target(Choice):
    """What a distilled row is trained towards.

    Attributes:
        views: What must be scored besides the teacher: "start" sees the question, "context_alone"
            the context without it, both with the weights at the start of training; "wrong_sibling"
            is the teacher with a wrong response to the same question as its context: rows without
            one are not distilled.
    """

    noun: ClassVar[str] = "target"
    views: ClassVar[tuple[View, ...]] = ()

    @abstractmethod
    def logits(self, seen: Mapping[str, Tensor]) -> Tensor:
        """Logits of the target, [n, V].

        Args:
            seen: Logits [n, V] by view: "teacher", "student" (both always there, without
                gradient), and the `views`; at the loss temperature.
        """


class TeacherTarget(Target):
    """The student is trained towards the teacher itself."""

    type: Literal["teacher"] = "teacher"

    def logits(self, seen: Mapping[str, Tensor]) -> Tensor:
        return seen["teacher"]

    def words(self) -> str:
        return ""  # this is what distillation is


class PurifiedTarget(Target):
    """softmax(log p_base + bound tanh((log p_T - log p_reference - mean) / bound) / beta).

    p_reference sees the context without the question, so that what the context says by itself is
    taken out; p_base sees the question alone; both have the frozen weights. The mean is over the
    vocabulary. Source: Purified OPSD 2607.02234.
    """

    type: Literal["purified"] = "purified"
    views: ClassVar[tuple[View, ...]] = ("start", "context_alone")
    beta: float = Field(default=1.0, gt=0.0)
    bound: float = Field(default=10.0, gt=0.0)

    def logits(self, seen: Mapping[str, Tensor]) -> Tensor:
        names = ("start", "teacher", "context_alone")
        base, teacher, reference = (seen[name].log_softmax(-1) for name in names)
        gap = teacher - reference
        centred = gap - gap.mean(-1, keepdim=True)
        return base + self.bound * (centred / self.bound).tanh() / self.beta

    def words(self) -> str:
        return "purified target"


class GeometricTarget(Target):
    """softmax((1 - share) log p_ref + share log p_T), p_ref the unguided model.

    The mix of beta-OPSD (2607.28582), whose reference is the current student, whose share rises
    from .5 to .8 and which discounts the return: it is not in the zoo.

    Attributes:
        share: Of the teacher.
        reference: Whose unguided distribution: at the start of training, or the student's now.
        above_nats: Mix only where the reference's entropy is above; elsewhere the teacher alone.
    """

    type: Literal["geometric"] = "geometric"
    share: float = Field(default=0.5, ge=0.0, le=1.0)
    reference: Literal["start", "student"] = "start"
    above_nats: float = Field(default=0.0, ge=0.0)

    @property
    def views(self) -> tuple[View, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return ("start",) if self.reference == "start" else ()

    def logits(self, seen: Mapping[str, Tensor]) -> Tensor:
        from epistill.objective import entropy

        teacher, alone = (seen[n].log_softmax(-1) for n in ("teacher", self.reference))
        mixed = (1 - self.share) * alone + self.share * teacher
        forks = (entropy(alone) > self.above_nats).unsqueeze(-1)
        return mixed if self.above_nats == 0 else mixed.where(forks, teacher)


class ContrastTarget(Target):
    """softmax(log p_start + strength bound tanh((log p_T(c+) - log p_T(c-)) / bound)).

    c- is a wrong response to the same question: what both contexts say alike (that it is short,
    that it is sure) is taken out. Ours: RLCSD's evidence (2606.11709) in purified OPSD's form.
    """

    type: Literal["contrast"] = "contrast"
    views: ClassVar[tuple[View, ...]] = ("start", "wrong_sibling")
    strength: float = Field(default=1.0, gt=0.0)
    bound: float = Field(default=4.0, gt=0.0)
    floor_nats: float = Field(default=8.0, gt=0.0)
    """Log-probs below -floor_nats count as that: what both exclude is no evidence."""

    def logits(self, seen: Mapping[str, Tensor]) -> Tensor:
        base, right, wrong = (
            seen[n].log_softmax(-1) for n in ("start", "teacher", "wrong_sibling")
        )
        gap = right.clamp(min=-self.floor_nats) - wrong.clamp(min=-self.floor_nats)
        return base + self.strength * self.bound * (gap / self.bound).tanh()


class Divergence(Settings):
    """alpha 0 is KL(T||S), 1 is KL(S||T), between generalised JSD; mind the jump at the ends.

    Attributes:
        entry_clip: Upper bound on each token's term of the sum (OPSD); None for none.
        cap_nats: Upper bound on the divergence of a position (SDPG); None for none.
        tempered: Divide the target's logits by the sampling temperature, as the student's are.
    """

    alpha: float = Field(default=0.5, ge=0.0, le=1.0)
    support: Support = TopK()
    target: Target = TeacherTarget()
    entry_clip: float | None = Field(default=None, gt=0.0)
    cap_nats: float | None = Field(default=None, gt=0.0)
    tempered: bool = True

    @model_validator(mode="after")
    def _the_support_can_do_this(self) -> Divergence:
        self.support.check(self)
        return self

    def words(self) -> str:
        name = {0.0: "forward KL", 1.0: "reverse KL"}.get(self.alpha, f"JSD {self.alpha:g}")
        clip = "" if self.entry_clip is None else f", entries <= {self.entry_clip:g}"
        clip += "" if self.cap_nats is None else f", <= {self.cap_nats:g} nats"
        target = self.target.words()
        return f"{name}, {self.support.words()}{clip}" + (f", {target}" if target else "")
