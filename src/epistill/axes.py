"""Axes 1 and 2 (what the teacher sees, whose weights it has) and the record of a method. No torch.

1 context   2 teacher weights   3 `targets.py`   4 `token_weights.py`   5 `blends.py`, `shapes.py`

A choice on an axis is one class: what it needs to know, and what it computes. The published ones
are here, anybody's own is a subclass elsewhere (docs/methods.md). Defaults are the settings of
arXiv 2603.24472 unless a field says otherwise; `methods.py` names the published points.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import reduce
from operator import or_
from typing import Any, ClassVar, Literal

from pydantic import Field, ModelWrapValidatorHandler, model_validator

from epistill.blends import Blend, Convex, PolicyGradient
from epistill.settings import Choice, Settings, kinds_of
from epistill.shapes import Shape
from epistill.targets import Divergence
from epistill.token_weights import TokenWeight
from epistill.training_rows import Needs

# ---- axis 1: what the teacher sees -------------------------------------------------------------

ContextSource = Literal[
    "none", "answer", "wrong_answer", "solution", "regenerated", "sibling", "feedback"
]


class Context(Settings):
    r"""What the teacher sees beyond the question.

    Attributes:
        source: "answer"; "wrong_answer" (control); "solution" of the problem's own record;
            "sibling", a successful rollout of the group that is not the row itself (SDPO);
            "regenerated", a correct response the solution-guided model wrote; "feedback", the
            grader's words on the row itself.
        pick: Which sibling: the first (SDPO) or a random one (RLCSD).
        fallback: Where no sibling succeeded: nothing, or the problem's own solution (AntiSD).
        assessment: Also show the grader's words on the row itself (AntiSD).
        thinking: "remove" cuts the thinking out of a solution: c=s\think.
        problem: "other" takes another problem's context (control).
        fraction: First part of a solution, by words; 1.0 is all.
        shuffled: Shuffle a solution's words (control).
    """

    source: ContextSource = "sibling"
    pick: Literal["first", "random"] = "first"
    fallback: Literal["none", "solution"] = "none"
    assessment: bool = False
    thinking: Literal["keep", "remove"] = "keep"
    problem: Literal["same", "other"] = "same"
    fraction: float = Field(default=1.0, gt=0.0, le=1.0)
    shuffled: bool = False


# ---- axis 2: whose weights the teacher has -----------------------------------------------------


class TeacherWeights(Choice):
    """How the teacher's weights follow the student's: teacher += rate (student - teacher).

    Attributes:
        is_student: The teacher is the student itself; nothing is copied.
        stays: The weights at the start, for ever: of a LoRA run, the base with the adapter off.
        averages: Rates between 0 and 1, which need a copy in float32.
    """

    noun: ClassVar[str] = "teacher weights"
    is_student: ClassVar[bool] = False
    stays: ClassVar[bool] = False
    averages: ClassVar[bool] = True

    def rate_after(self, batches: int) -> float:
        """How far the teacher moves to the student after its so-many-th rollout batch (from 1).

        0 leaves it, 1 copies the student.
        """
        return 0.0


class FrozenWeights(TeacherWeights):
    """The weights at the start of training; of a LoRA run, the base with the adapter off."""

    type: Literal["frozen"] = "frozen"
    stays: ClassVar[bool] = True
    averages: ClassVar[bool] = False


class LiveWeights(TeacherWeights):
    """The student's own current weights."""

    type: Literal["live"] = "live"
    is_student: ClassVar[bool] = True
    averages: ClassVar[bool] = False


class EmaWeights(TeacherWeights):
    """teacher <- (1 - rate) teacher + rate student after each rollout batch, kept in float32."""

    type: Literal["ema"] = "ema"
    rate: float = Field(default=0.05, gt=0.0, le=1.0)
    """SDPO 2601.20802: .05 (.01 for LiveCodeBench)."""

    def rate_after(self, batches: int) -> float:
        return self.rate


class SnapshotWeights(TeacherWeights):
    """A copy of the student, taken anew every so many rollout batches."""

    type: Literal["snapshot"] = "snapshot"
    averages: ClassVar[bool] = False
    every: int = Field(default=10, ge=1)
    """RLCSD 2606.11709: 10."""

    def rate_after(self, batches: int) -> float:
        return float(batches % self.every == 0)


# ---- a method ----------------------------------------------------------------------------------


class TraceSource(Settings):
    """Off-policy data: correct traces, sampled by the tool before training, of a file, or given.

    Attributes:
        written_by: "data" takes the problems' own solutions as they are.
        context: What the model sees while it writes them.
        count: How many correct traces to keep (the paper: 800); of "data" at most as many.
        shortest: Keep only the shortest correct one of each problem (a control for length).
        as_long_as: Keep, of many, those that are as long as correct traces written under this
            context (another): as many, each within a tenth of one of these, in tokens; at most
            one in twenty may be missing, where no trace is as long.
        file: Traces that `epistill edit` (or `eval --out`) wrote; None samples them.
        edits: Rules that change them, in order ("swap lexicon:paper-en=so", "cut-rechecks"), as of
            `epistill edit`.
    """

    written_by: Literal["model", "data"] = "model"
    context: Context = Context(source="none")
    count: int = Field(default=800, ge=1)
    shortest: bool = False
    as_long_as: Context | None = None
    file: str | None = None
    edits: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _chosen_of_its_own(self) -> TraceSource:
        if self.shortest + (self.as_long_as is not None) + (self.file is not None) > 1:
            raise ValueError(
                "traces have more than one of shortest, as_long_as and file; expected one: the "
                "first two choose among traces that the run samples itself"
            )
        return self


class MethodFile(Settings):
    """The file that a method came from. Recorded to be compared; nothing imports a file from it.

    Attributes:
        name: "mine.py:rlrt", the file's own name and what it defines.
        sha256: Of the file: a run does not go on with another.
        path: Where it lay, for a study's worker processes; not part of a run's identity.
    """

    name: str
    sha256: str
    path: str = ""

    @property
    def module(self) -> str:
        """Name under which the file is imported; the same contents are the same module."""
        return f"epistill_method_{self.sha256[:16]}"

    @property
    def reference(self) -> str:
        """As a user would name it: /where/it/lay/mine.py:rlrt."""
        return f"{self.path}:{self.name.rpartition(':')[2]}"

    @property
    def is_loaded(self) -> bool:
        """Whether this process has imported it, because its user named it."""
        return self.module in sys.modules


class Method(Settings):
    """A point on the five axes.

    Attributes:
        traces: None trains on the student's own responses; else on these traces (SFT), where every
            kept trace has advantage 1 and the loss is -log p.
        reduction: "token_mean" over all kept tokens of the optimiser step; "sequence_mean", the
            mean over rows of each row's token mean; "constant_length", the sum divided by rows
            times max_new_tokens (Dr.GRPO).
        learning_rate: The paper's, for a model of its size; a run may set its own.
        source: Paper and code the defaults come from.
        file: Where it was defined, if not in the package (`methods.method_from_file`).
    """

    name: str
    context: Context = Context()
    teacher: TeacherWeights = FrozenWeights()
    divergence: Divergence = Divergence()
    token_weights: tuple[TokenWeight, ...] = ()
    blend: Blend = Convex()
    policy_gradient: PolicyGradient = PolicyGradient()
    traces: TraceSource | None = None
    reduction: Literal["token_mean", "sequence_mean", "constant_length"] = "token_mean"
    learning_rate: float = Field(default=1e-5, gt=0.0)
    source: str = ""
    file: MethodFile | None = None

    @property
    def shape(self) -> Shape | None:
        """How advantages are shaped; None where they are not."""
        return getattr(self.blend, "shape", None)

    @property
    def needs(self) -> Needs:
        """What must be known about the sampled tokens before a step."""
        weights = self.token_weights if self.blend.distils else ()
        return reduce(or_, (weight.needs for weight in weights), self.blend.needs)

    def at_step(self, step: int) -> Method:
        """The method in this rollout batch: without the token weights that do not count in it."""
        counting = (w for w in self.token_weights if step >= w.from_step)
        kept = tuple(w for w in counting if w.until_step is None or step < w.until_step)
        return self.model_copy(update={"token_weights": kept})

    @property
    def needs_start(self) -> bool:
        """Whether the weights at the start are asked besides the teacher's."""
        views = self.divergence.target.views if self.blend.distils else ()
        return self.needs.start_log_probs or bool(views)

    @property
    def needs_teacher(self) -> bool:
        """Whether a teacher is asked at all."""
        return self.blend.distils or self.needs.asks_teacher

    @model_validator(mode="wrap")
    @classmethod
    def _kinds_of_its_own_file_first(
        cls, value: Any, handler: ModelWrapValidatorHandler[Method]
    ) -> Method:
        """Of two files that use one type name, take the kind of the one this method came from."""
        file = value.get("file") if isinstance(value, Mapping) else None
        if file is None:
            return handler(value)
        file = MethodFile.model_validate(file)
        if not file.is_loaded:
            raise ValueError(
                f"method {value.get('name')!r} is defined in {file.name}, and a recorded "
                f"configuration imports nothing; name the file: --method PATH/{file.name}"
            )
        with kinds_of(file.module):
            return handler(value)

    @model_validator(mode="after")
    def _its_settings_agree(self) -> Method:
        if self.needs_teacher and self.context.source == "none":
            raise ValueError(
                f"method {self.name!r} asks a teacher but its context is 'none': teacher and "
                "student would agree; choose a context, or a convex blend with distillation 0"
            )
        if self.traces is not None and (self.needs_teacher or self.needs.verdicts):
            raise ValueError(
                f"method {self.name!r} has both traces and a teacher; expected one of them"
            )
        two_means = self.shape is not None and self.shape.apart_weight is not None
        if two_means and self.reduction != "token_mean":
            raise ValueError(
                f"method {self.name!r} takes the mean over tokens on each of its two paths; "
                f"reduction {self.reduction!r} would change nothing; leave it out"
            )
        return self
