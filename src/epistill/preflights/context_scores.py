"""What is gathered: student rollouts once, then for each context what the teacher makes of them.

Enters: an engine, problems, contexts. Leaves: `Student` and one `ContextMeasurement` per context,
tokens and nats only; `richness` and `pressure` turn them into numbers. Two sets of student rollouts
are drawn: one that contexts for the teacher's own responses come from, and a fresh one that is
measured, so that no response is a context of itself or of its own score.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from epistill.axes import Context
from epistill.config import SamplingConfig
from epistill.errors import EpistillError
from epistill.metrics.lexicon import Lexicon
from epistill.preflights.clustered_estimates import Floats
from epistill.preflights.token_classes import FirstTokens, TokenClasses, classify
from epistill.records import GradedRollout, Message, Problem
from epistill.rollouts.collect import sample_and_grade
from epistill.rollouts.engine import Engine, TokenScores
from epistill.rollouts.prompts import RenderedPrompt, render_prompt
from epistill.seeds import derive_seed
from epistill.tasks.grading import Grader
from epistill.teacher.context import NAMED_CONTEXTS, SUCCESS_THRESHOLD, teacher_messages
from epistill.teacher.guided import contexts_of, guided_chats
from epistill.thinking import thinking_mode

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class MeasurementSettings:
    """How much is drawn and how it is read.

    Attributes:
        samples: Responses per problem, of the student and of every teacher.
        sampling: The student's; its `thinking` is the student's mode.
        teacher_thinking: The teacher's mode.
        seed: Names every draw.
        markers, control: Words of doubt, and ordinary words beside them.
        first: The tokens whose probability is the marker mass.
        allow_mode_mismatch: Measure although student and teacher think in different modes.
    """

    samples: int
    sampling: SamplingConfig
    teacher_thinking: bool | None
    seed: int
    markers: Lexicon
    control: Lexicon | None
    first: FirstTokens
    allow_mode_mismatch: bool = False

    @property
    def teacher_sampling(self) -> SamplingConfig:
        """The student's, in the teacher's mode."""
        return self.sampling.model_copy(update={"thinking": self.teacher_thinking})


@dataclass(frozen=True, slots=True)
class Student:
    """The student's rollouts and what it says of them; aligned.

    Attributes:
        source: Rollouts that give contexts to the teacher's own responses.
        graded: Fresh rollouts: what is measured.
        tokens: Their classes.
        bare: Their scores under the bare question.
    """

    source: tuple[GradedRollout, ...]
    graded: tuple[GradedRollout, ...]
    tokens: tuple[TokenClasses, ...]
    bare: tuple[TokenScores, ...]


@dataclass(frozen=True, slots=True)
class PromptExample:
    """One problem's prompts in full, for people, and what all of the context's prompts hash to."""

    problem_id: str
    student: str
    teacher: str
    student_sha256: str
    teacher_sha256: str
    student_mode: str
    teacher_mode: str
    all_sha256: str


@dataclass(frozen=True, slots=True)
class ContextMeasurement:
    """What one context makes of the teacher.

    Attributes:
        name: Of the context.
        teacher: Aligned with the student's rollouts: scores under the context; None where a row
            has no context.
        own: The teacher's own responses.
        own_guided, own_bare: Their scores under the context and under the bare question.
        trace_rows: Of the student's rollouts, one correct one per problem: the held-out y*.
        trace_guided: Their scores under the context of the teacher's own responses.
        too_long: Prompts left out because they did not fit.
        prompt: What was read.
    """

    name: str
    teacher: tuple[TokenScores | None, ...]
    own: tuple[GradedRollout, ...]
    own_guided: tuple[TokenScores, ...]
    own_bare: tuple[TokenScores, ...]
    trace_rows: tuple[int, ...]
    trace_guided: tuple[TokenScores, ...]
    too_long: int
    prompt: PromptExample | None


def u_nats(guided: TokenScores, bare: TokenScores) -> Floats:
    """[T]: log p(y_t | x, c, y_<t) - log p(y_t | x, y_<t)."""
    return (guided.log_probs.double() - bare.log_probs.double()).numpy()


def measure_student(
    engine: Engine, problems: Sequence[Problem], settings: MeasurementSettings, grader: Grader
) -> Student:
    """Draw, grade, classify and score the student's rollouts."""
    asked = [(problem, problem.messages) for problem in problems]
    source, graded = (
        sample_and_grade(
            engine,
            asked,
            grader,
            samples=settings.samples,
            sampling=settings.sampling,
            seed=derive_seed("preflight", name, settings.seed),
        )
        for name in ("source", "student")
    )
    bare = engine.score(
        [item.rollout.prompt_ids for item in graded],
        [item.rollout.completion_ids for item in graded],
        mass_of=settings.first.ids,
    )
    tokens = [_classes(engine, item, settings) for item in graded]
    return Student(tuple(source), tuple(graded), tuple(tokens), tuple(bare))


def check_modes(engine: Engine, problem: Problem, settings: MeasurementSettings) -> None:
    """Refuse at once where the two modes render the bare question differently."""
    _Prompts(engine, settings).pair(problem, problem.messages, "none")


def measure_context(
    engine: Engine, name: str, student: Student, settings: MeasurementSettings, grader: Grader
) -> ContextMeasurement:
    """Everything about one context.

    Args:
        engine: Samples and scores.
        name: One of NAMED_CONTEXTS.
        student: `measure_student`'s.
        settings: As for the student.
        grader: Grades the teacher's own responses.

    Raises:
        EpistillError: Student and teacher think in different modes.
    """
    context = NAMED_CONTEXTS[name]
    prompts = _Prompts(engine, settings)
    seed = derive_seed("preflight", name, settings.seed)

    def texts_of(graded: Sequence[GradedRollout]) -> list[str | None]:
        return contexts_of(
            engine, context, graded, grader, sampling=settings.teacher_sampling, seed=seed
        )

    teacher = _on_students(
        engine, context, student, texts_of(student.graded), settings, prompts, name
    )
    chats = guided_chats(context, student.source, texts_of(student.source))
    fitting = [
        (problem, messages)
        for problem, messages in chats
        if prompts.fits(
            prompts.pair(problem, messages, name)[1].ids, settings.sampling.max_new_tokens
        )
    ]
    own = sample_and_grade(
        engine,
        fitting,
        grader,
        samples=settings.samples,
        sampling=settings.teacher_sampling,
        seed=seed,
    )
    bare_ids = {item.problem.id: item.rollout.prompt_ids for item in student.graded}
    completions = [item.rollout.completion_ids for item in own]
    own_guided = engine.score(
        [item.rollout.prompt_ids for item in own], completions, mass_of=settings.first.ids
    )
    own_bare = engine.score(
        [bare_ids[item.problem.id] for item in own], completions, mass_of=settings.first.ids
    )
    guided_ids = {problem.id: prompts.pair(problem, m, name)[1].ids for problem, m in fitting}
    rows = _first_correct(student.graded, guided_ids, prompts)
    trace_guided = engine.score(
        [guided_ids[student.graded[i].problem.id] for i in rows],
        [student.graded[i].rollout.completion_ids for i in rows],
        mass_of=settings.first.ids,
    )
    return ContextMeasurement(
        name,
        tuple(teacher),
        tuple(own),
        tuple(own_guided),
        tuple(own_bare),
        tuple(rows),
        tuple(trace_guided),
        prompts.too_long,
        prompts.example(),
    )


def _on_students(
    engine: Engine,
    context: Context,
    student: Student,
    texts: Sequence[str | None],
    settings: MeasurementSettings,
    prompts: _Prompts,
    name: str,
) -> list[TokenScores | None]:
    """Scores of the student's rollouts under each row's own context, as training would see it."""
    here: list[int] = []
    ids: list[Ids] = []
    for i, (item, text) in enumerate(zip(student.graded, texts, strict=True)):
        if text is None and context.source != "none":
            continue
        messages = teacher_messages(item.problem, text, context)
        prompt = prompts.pair(item.problem, messages, name)[1]
        if prompts.fits(prompt.ids, len(item.rollout.completion_ids)):
            here.append(i)
            ids.append(prompt.ids)
    # In the opposite order of the student's own pass: "none" then meets other neighbours and
    # padding, so that its zero is a measurement and not a look-up.
    here, ids = here[::-1], ids[::-1]
    found = engine.score(
        ids, [student.graded[i].rollout.completion_ids for i in here], mass_of=settings.first.ids
    )
    scored = dict(zip(here, found, strict=True))
    return [scored.get(i) for i in range(len(student.graded))]


def _first_correct(
    graded: Sequence[GradedRollout], guided: Mapping[str, Ids], prompts: _Prompts
) -> list[int]:
    """Per problem with a context, the first correct rollout that fits behind it."""
    chosen: dict[str, int] = {}
    for i, item in enumerate(graded):
        name = item.problem.id
        right = item.grade.score > SUCCESS_THRESHOLD and name in guided
        if right and name not in chosen:
            length = len(item.rollout.completion_ids)
            if prompts.fits(guided[name], length):
                chosen[name] = i
    return list(chosen.values())


def _classes(engine: Engine, item: GradedRollout, settings: MeasurementSettings) -> TokenClasses:
    return classify(
        engine.tokenizer,
        item.rollout.completion_ids,
        markers=settings.markers,
        control=settings.control,
        ends=engine.eos_ids,
    )


class _Prompts:
    """Renders both sides of a problem, refuses unlike modes, remembers what was read."""

    def __init__(self, engine: Engine, settings: MeasurementSettings) -> None:
        self._engine, self._settings = engine, settings
        self._known: dict[tuple[Message, ...], RenderedPrompt] = {}
        self._digest = hashlib.sha256()
        self._shown: tuple[str, RenderedPrompt, RenderedPrompt] | None = None
        self.too_long = 0

    def pair(
        self, problem: Problem, messages: tuple[Message, ...], context: str
    ) -> tuple[RenderedPrompt, RenderedPrompt]:
        """(student's prompt, teacher's prompt)."""
        tokenizer = self._engine.tokenizer
        student = render_prompt(
            tokenizer, problem.messages, thinking=self._settings.sampling.thinking
        )
        if messages not in self._known:
            teacher = render_prompt(tokenizer, messages, thinking=self._settings.teacher_thinking)
            modes = thinking_mode(student.text), thinking_mode(teacher.text)
            if modes[0] != modes[1] and not self._settings.allow_mode_mismatch:
                raise EpistillError(
                    f"context {context!r}: the student's prompt leaves thinking {modes[0]} but the "
                    f"teacher's {modes[1]} (problem {problem.id!r}); differences would be those of "
                    "the modes; use the same mode for both, or pass --allow-mode-mismatch"
                )
            self._known[messages] = teacher
            self._digest.update(teacher.sha256.encode())
            self._shown = self._shown or (problem.id, student, teacher)
        return student, self._known[messages]

    def fits(self, prompt: Ids, length: int) -> bool:
        """Whether a response of that length fits behind the prompt; counts those that do not."""
        limit = self._engine.max_positions
        if limit is not None and len(prompt) + length > limit:
            self.too_long += 1
            return False
        return True

    def example(self) -> PromptExample | None:
        """The first problem's prompts."""
        if self._shown is None:
            return None
        problem_id, student, teacher = self._shown
        return PromptExample(
            problem_id,
            student.text,
            teacher.text,
            student.sha256,
            teacher.sha256,
            thinking_mode(student.text),
            thinking_mode(teacher.text),
            self._digest.hexdigest(),
        )
