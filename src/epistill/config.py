"""The configuration of a run: pydantic, TOML in, resolved JSON out. Imports no torch.

The axes of a method are in `axes.py`, the published points on them in `methods.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from epistill.axes import Method, MethodFile
from epistill.monitor import Monitor, with_less_teacher
from epistill.rollout_settings import PLACES, InProcessRollouts, Rollouts, VllmRollouts
from epistill.settings import Settings
from epistill.word_rules import Block, Force

NONE_IN_TOML = {"monitor": "off", "teacher_thinking": "template"}  # where None is no default
MOST_MICROBATCH_TOKENS = 16_384  # more make nothing faster


class SamplingConfig(Settings):
    """How responses are drawn.

    Attributes:
        temperature: Logits are divided by it; 0 takes the most likely token.
        top_p: The smallest set of tokens with at least this probability; 1 for all.
        top_k: The so many most likely tokens; None for all.
        max_new_tokens: Of a response; what is longer is cut.
        stop: Texts that end a response as its end token does; they are no part of its text.
        batch_rows: Responses that are written together in process; memory and speed, not numbers.
        thinking: Goes to the chat template as `enable_thinking`; None leaves it to the template.
        force, block: Words forced into responses or kept out of them, by the rules of
            `word_rules`; of evaluations only.
    """

    temperature: float = Field(default=1.0, ge=0.0)
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    top_k: int | None = Field(default=None, ge=1)
    max_new_tokens: int = Field(default=1024, ge=1)
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    batch_rows: int = Field(default=256, ge=1)
    thinking: bool | None = None
    force: tuple[Force, ...] = ()
    block: tuple[Block, ...] = ()

    @property
    def has_rules(self) -> bool:
        """Whether words are forced or blocked: then not all is sampled from the model."""
        return bool(self.force or self.block)


class StarSearchTask(Settings):
    """The lab's world: `tasks/star_search.py`.

    Attributes:
        arms, depth: Paths from the start, and steps on each.
        split: Problems of different splits are different: train, test, probe...
    """

    type: Literal["star_search"] = "star_search"
    arms: int = Field(default=5, ge=2)
    depth: int = Field(default=3, ge=1)
    split: str = "train"


class NumberPairsTask(Settings):
    """Which two numbers have this result, in English: `tasks/number_pairs.py`.

    Attributes:
        numbers: How many are listed.
        largest: Of the numbers.
        operation: What makes the result of two of them.
        wording: Of the question.
        split: As of star search.
    """

    type: Literal["number_pairs"] = "number_pairs"
    numbers: int = Field(default=4, ge=3)
    largest: int = Field(default=20, ge=4)
    operation: Literal["sum", "difference"] = "sum"
    wording: Literal["plain", "story"] = "plain"
    split: str = "train"


class FileTask(Settings):
    """Problems from JSONL, parquet or a Hugging Face dataset name: `tasks/files.py`.

    Attributes:
        path: A file, or a dataset's name on the hub.
        split: Of a dataset.
        grader: None is chosen by the record's own columns.
        prompt: What is asked, with `{question}` where the record's own text goes; None asks that
            text as it is.
        since: Of dated problems (LiveCodeBench), only those from this day on (YYYY-MM-DD).
    """

    type: Literal["file"] = "file"
    path: str
    split: str = "train"
    grader: Literal["math", "choice", "exact", "expression", "code"] | None = None
    prompt: str | None = Field(default=None, pattern=r"\{question\}")
    since: str | None = Field(default=None, pattern=r"^\d{4}-\d{2}-\d{2}$")


GeneratedTask = StarSearchTask | NumberPairsTask
TaskConfig = Annotated[GeneratedTask | FileTask, Field(discriminator="type")]


class EvalSet(Settings):
    """One evaluation: a task, how many problems and samples, and what it stands for.

    Attributes:
        name: On the page, and of its file of records.
        task: Where the problems come from.
        problems: The first so many.
        samples: Responses per problem, k of avg@k.
        kind: "in_domain" (held out, of the training distribution), "ood", "hard" (beyond what the
            base was made for) or "budget" (few tokens); sets of one kind are pooled where a study
            compares arms.
        curve_problems: Problems (one sample each) of the small evaluations during training.
        max_new_tokens, force, block: Of this set's responses; None and none as the run's.
    """

    OWN_SAMPLING: ClassVar[tuple[str, ...]] = ("max_new_tokens", "force", "block")
    name: str
    task: TaskConfig
    kind: Literal["in_domain", "ood", "hard", "budget"] = "in_domain"
    problems: int = Field(default=128, ge=1)
    samples: int = Field(default=4, ge=1)
    curve_problems: int = Field(default=64, ge=1)
    max_new_tokens: int | None = Field(default=None, ge=1)
    force: tuple[Force, ...] = ()
    block: tuple[Block, ...] = ()

    @property
    def curve(self) -> EvalSet:
        """Its small evaluation during training, a point of the learning curve."""
        fewer = {"problems": min(self.curve_problems, self.problems), "samples": 1}
        return self.model_copy(update=fewer)

    def drawn(self, sampling: SamplingConfig) -> SamplingConfig:
        """How its responses are drawn, where the run says the rest."""
        own = {n: value for n in self.OWN_SAMPLING if (value := getattr(self, n))}
        return sampling.model_copy(update=own)


class Lora(Settings):
    """A low-rank adapter on a frozen base, by peft.

    Attributes:
        rank: Of the two factors.
        alpha: Scale is alpha / rank.
        dropout: Share of the adapter's inputs that are set to zero in training.
        targets: Names of modules to adapt, or "all-linear" (all but the head).
    """

    rank: int = Field(default=64, ge=1)
    alpha: float = Field(default=128.0, gt=0.0)
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    targets: tuple[str, ...] | Literal["all-linear"] = "all-linear"


class RunConfig(Settings):
    """Everything that decides the numbers of one training run.

    Attributes:
        model: Directory, GGUF file, name on the hub, or "lab".
        task: What is asked: a table, or in short a file's path or "star-search:5x3".
        method: A name (see `epistill methods`), or a table of one and what is changed in it.
        chat_template: A Jinja file, for a base model without a template of its own; None takes the
            tokenizer's.
        sampling: Of the training's responses.
        problems_per_step, samples_per_problem: Of a rollout batch; one problem's are a group.
        updates_per_batch: Optimiser steps, each on an equal part of the batch.
        learning_rate: AdamW's, after the warmup; None takes the method's.
        warmup_steps: In rollout batches; the rate rises linearly.
        weight_decay: AdamW's.
        max_grad_norm: The whole gradient's norm is clipped at it.
        evaluations: Sets that are evaluated after the training.
        checkpoint_every: In rollout batches.
        lora: A low-rank adapter is trained instead of the weights; None trains the weights.
        dtype: Of weights, gradients and optimiser.
        device: "cpu", "cuda", "cuda:1"...
        attention: transformers' `attn_implementation`; None is its own choice.
        seed: Names every random draw.
        coverage: Number of distinct training problems; None for all of a file, or without end.
        steps: Rollout batches. Each is split into `updates_per_batch` optimiser steps.
        eval_every: Steps between evaluations of `curve_problems` of each set; None only at the end.
        eval_sampling: None evaluates with the training's sampling.
        teacher_thinking: The teacher's `enable_thinking`; "same" as the student's, which is
            `sampling.thinking`; "template" (None) leaves it to the template.
        rollouts: What samples the student's responses; evaluations, traces and the teacher's own
            writing are sampled in the training process.
        microbatch_tokens: Tokens per forward pass, with padding; memory, not numbers, beyond
            rounding. "auto" as many as the free memory holds, at most 16,384, once in a run.
        monitor: Alarms, and what they do; "off" (None) for none.
        precision: "bf16" computes in bfloat16 and keeps all else in `dtype`; None computes in it.
        activation_checkpointing: Compute activations again in the backward pass: less memory.
        parallel: Over the processes of `torchrun` whole in each, or sharded; one ignores it.
    """

    model: str
    task: TaskConfig
    method: Method
    chat_template: str | None = None
    coverage: int | None = Field(default=None, ge=1)
    sampling: SamplingConfig = SamplingConfig()
    teacher_thinking: bool | Literal["same"] | None = "same"
    rollouts: Rollouts = InProcessRollouts()
    steps: int = Field(default=100, ge=0)
    problems_per_step: int = Field(default=32, ge=1)
    samples_per_problem: int = Field(default=8, ge=1)
    updates_per_batch: int = Field(default=1, ge=1)
    learning_rate: float | None = Field(default=None, gt=0.0)
    warmup_steps: int = Field(default=10, ge=0)
    weight_decay: float = Field(default=0.01, ge=0.0)
    max_grad_norm: float = Field(default=1.0, gt=0.0)
    microbatch_tokens: PositiveInt | Literal["auto"] = "auto"
    evaluations: tuple[EvalSet, ...] = ()
    eval_every: int | None = Field(default=None, ge=1)
    eval_sampling: SamplingConfig | None = None
    checkpoint_every: int = Field(default=10, ge=1)
    monitor: Monitor | None = Monitor()
    lora: Lora | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    precision: Literal["bf16"] | None = None
    activation_checkpointing: bool = False
    parallel: Literal["replicate", "shard"] = "replicate"
    device: str = "cpu"
    attention: str | None = None
    seed: int = 0

    @field_validator(*NONE_IN_TOML, mode="before")
    @classmethod
    def _none_has_a_word(cls, value: Any, info: Any) -> Any:
        return None if value == NONE_IN_TOML[str(info.field_name)] else value

    @model_validator(mode="after")
    def _groups_are_large_enough(self) -> RunConfig:
        method = self.method
        if self.monitor is not None and self.monitor.may_lower:
            method = with_less_teacher(method, self.monitor.lower_factor)
        others = method.context.source in ("sibling", "regenerated")
        compares = others or method.blend.gradient_share > 0
        if self.method.traces is None and self.samples_per_problem < 2 and compares:
            raise ValueError(
                f"samples_per_problem is {self.samples_per_problem}; expected at least 2: method "
                f"{self.method.name!r} compares responses to the same problem"
            )
        return self

    @model_validator(mode="after")
    def _watched_sets_are_evaluated(self) -> RunConfig:
        if self.monitor is not None:
            names = [chosen.name for chosen in self.evaluations] if self.eval_every else []
            self.monitor.check_sets(names)
        return self

    @model_validator(mode="after")
    def _training_can_sample_so(self) -> RunConfig:
        served = isinstance(self.rollouts, VllmRollouts)
        filtered = self.sampling.top_p < 1.0 or self.sampling.top_k is not None
        told = None
        if self.sampling.has_rules:
            told = "sampling has force or block, and training would learn words that nobody "
            told += "sampled; expected them in eval_sampling only"
        elif served and filtered:
            told = "rollouts.engine is 'vllm' and sampling has top_p or top_k; expected neither: "
            told += "a server's log-probs are those after these filters"
        elif served and self.sampling.stop:
            told = "rollouts.engine is 'vllm' and sampling has stop; expected none: a reply must "
            told += "end with an end token, or it may be of another model"
        elif served and self.method.traces is not None:
            told = f"rollouts.engine is 'vllm' but method {self.method.name!r} trains on traces; "
            told += "expected 'inprocess'"
        elif isinstance(self.rollouts, VllmRollouts):
            told = self.rollouts.why_no_teacher(self.method, self.sampling.temperature)
        if told is not None:
            raise ValueError(told)
        return self

    @property
    def most_microbatch_tokens(self) -> int:
        """Tokens per forward pass; of "auto" the most that it may become."""
        tokens = self.microbatch_tokens
        return MOST_MICROBATCH_TOKENS if tokens == "auto" else tokens

    @property
    def teacher_sampling(self) -> SamplingConfig:
        """The sampling in the teacher's own mode of thinking."""
        if self.teacher_thinking == "same":
            return self.sampling
        return self.sampling.model_copy(update={"thinking": self.teacher_thinking})

    def identity(self) -> dict[str, Any]:
        """What decides the numbers, as JSON: all settings but the places of servers and files."""
        places: Any = {"rollouts": PLACES, "method": {"file": {"path"}}}
        return self.model_dump(mode="json", exclude=places)

    @classmethod
    def identity_of(cls, stored: Mapping[str, Any]) -> dict[str, Any]:
        """The identity that an older version wrote, with this version's defaults filled in.

        That of a method whose file is not the one that was loaded stays as it was written.
        """
        method = stored.get("method")
        file = method.get("file") if isinstance(method, Mapping) else None
        if file is not None and not MethodFile.model_validate(file).is_loaded:
            return dict(stored)
        rollouts = stored.get("rollouts", {"engine": "inprocess"})
        if rollouts["engine"] == "vllm":  # its places were not written; any will do
            rollouts = {"urls": ["-"], "model": "-", **rollouts}
        return cls.model_validate({**stored, "rollouts": rollouts}).identity()
