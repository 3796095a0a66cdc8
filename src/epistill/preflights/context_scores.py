"""What is gathered: student rollouts once, then for each context what the teacher makes of them.

Enters: an engine, problems, contexts. Leaves: `Student` and one `ContextMeasurement` per context,
tokens and nats only; `richness` and `pressure` turn them into numbers. Two sets of student rollouts
are drawn: one that contexts for the teacher's own responses come from, and a fresh one that is
measured, so that no response is a context of itself or of its own score.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from epistill.errors import EpistillError
from epistill.metrics.lexicon import Lexicon
from epistill.preflights.clustered_estimates import Floats
from epistill.preflights.preflight_config import PreflightConfig
from epistill.preflights.token_classes import TokenClasses, classify
from epistill.records import GradedRollout, Message, Problem
from epistill.rollouts.collect import sample_and_grade
from epistill.rollouts.engine import Engine, Ids, TokenScores
from epistill.rollouts.marker_tokens import FirstTokens
from epistill.rollouts.prompts import RenderedPrompt, render_prompt
from epistill.seeds import derive_seed
from epistill.tasks.grading import Grader
from epistill.teacher.context import NAMED_CONTEXTS, SUCCESS_THRESHOLD, teacher_messages
from epistill.teacher.guided import contexts_of, guided_chats
from epistill.thinking import thinking_mode


@dataclass(frozen=True, slots=True)
class MarkerWords:
    """Words of doubt, ordinary words beside them, and the tokens whose probability is the mass."""

    markers: Lexicon
    control: Lexicon | None
    first: FirstTokens


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
        prompt: One problem's prompts in full, for people, and what all of the context's hash to.
    """

    name: str
    teacher: tuple[TokenScores | None, ...]
    own: tuple[GradedRollout, ...]
    own_guided: tuple[TokenScores, ...]
    own_bare: tuple[TokenScores, ...]
    trace_rows: tuple[int, ...]
    trace_guided: tuple[TokenScores, ...]
    too_long: int
    prompt: dict[str, str] | None


def u_nats(guided: TokenScores, bare: TokenScores) -> Floats:
    """[T]: log p(y_t | x, c, y_<t) - log p(y_t | x, y_<t)."""
    return (guided.log_probs.double() - bare.log_probs.double()).numpy()


def measure_student(
    engine: Engine,
    problems: Sequence[Problem],
    config: PreflightConfig,
    words: MarkerWords,
    grader: Grader,
) -> Student:
    """Draw, grade, classify and score the student's rollouts."""
    asked = [(problem, problem.messages) for problem in problems]
    source, graded = (
        sample_and_grade(
            engine,
            asked,
            grader,
            samples=config.samples,
            sampling=config.sampling,
            seed=derive_seed("preflight", name, config.seed),
        )
        for name in ("source", "student")
    )
    completions = [item.rollout.completion_ids for item in graded]
    prompts = [item.rollout.prompt_ids for item in graded]
    bare = engine.score(prompts, completions, mass_of=words.first.ids)
    told: Any = {"markers": words.markers, "control": words.control, "ends": engine.eos_ids}
    tokens = (classify(engine.tokenizer, ids, **told) for ids in completions)
    return Student(tuple(source), tuple(graded), tuple(tokens), tuple(bare))


def check_modes(engine: Engine, problem: Problem, config: PreflightConfig) -> None:
    """Refuse at once where the two modes render the bare question differently."""
    _Teacher(engine, config, "none").prompt(problem, problem.messages)


def measure_context(
    engine: Engine,
    name: str,
    student: Student,
    config: PreflightConfig,
    words: MarkerWords,
    grader: Grader,
) -> ContextMeasurement:
    """Everything about one context.

    Args:
        engine: Samples and scores.
        name: One of NAMED_CONTEXTS.
        student: `measure_student`'s.
        config, words: As for the student.
        grader: Grades the teacher's own responses.

    Raises:
        EpistillError: Student and teacher think in different modes.
    """
    context, graded, teacher = NAMED_CONTEXTS[name], student.graded, _Teacher(engine, config, name)
    drawn: Any = {
        "sampling": config.teacher_sampling,
        "seed": derive_seed("preflight", name, config.seed),
    }

    def score(prompts: Sequence[Ids], responses: Sequence[GradedRollout]) -> list[TokenScores]:
        completions = [item.rollout.completion_ids for item in responses]
        return engine.score(prompts, completions, mass_of=words.first.ids)

    # The student's rollouts under each row's own context, as training would see it.
    texts = contexts_of(engine, context, graded, grader, **drawn)
    here: dict[int, Ids] = {}
    for i, (item, text) in enumerate(zip(graded, texts, strict=True)):
        if text is not None or context.source == "none":
            ids = teacher.prompt(item.problem, teacher_messages(item.problem, text, context)).ids
            if teacher.fits(ids, len(item.rollout.completion_ids)):
                here[i] = ids
    # In the opposite order of the student's own pass: "none" then meets other neighbours and
    # padding, so that its zero is a measurement and not a look-up.
    order = list(here)[::-1]
    found = score([here[i] for i in order], [graded[i] for i in order])
    guided = dict(zip(order, found, strict=True))

    # The teacher's own responses, and the student's first correct one under the same contexts.
    source = student.source
    chats = guided_chats(context, source, contexts_of(engine, context, source, grader, **drawn))
    prompts = {p.id: teacher.prompt(p, messages).ids for p, messages in chats}
    room = config.sampling.max_new_tokens
    fitting = [(p, messages) for p, messages in chats if teacher.fits(prompts[p.id], room)]
    own = sample_and_grade(engine, fitting, grader, samples=config.samples, **drawn)
    bare = {item.problem.id: item.rollout.prompt_ids for item in graded}
    own_guided = score([item.rollout.prompt_ids for item in own], own)
    own_bare = score([bare[item.problem.id] for item in own], own)
    traces: dict[str, int] = {}
    asked = {problem.id for problem, _ in fitting}
    for i, item in enumerate(graded):
        problem, length = item.problem.id, len(item.rollout.completion_ids)
        right = item.grade.score > SUCCESS_THRESHOLD and problem in asked - traces.keys()
        if right and teacher.fits(prompts[problem], length):
            traces[problem] = i
    rows = list(traces.values())
    return ContextMeasurement(
        name=name,
        teacher=tuple(guided.get(i) for i in range(len(graded))),
        own=tuple(own),
        own_guided=tuple(own_guided),
        own_bare=tuple(own_bare),
        trace_rows=tuple(rows),
        trace_guided=tuple(score([prompts[p] for p in traces], [graded[i] for i in rows])),
        too_long=teacher.too_long,
        prompt=teacher.example(),
    )


class _Teacher:
    """Renders the teacher's prompts, refuses unlike modes, remembers what was read."""

    def __init__(self, engine: Engine, config: PreflightConfig, context: str) -> None:
        self._engine, self._config, self._context = engine, config, context
        self._known: dict[tuple[Message, ...], RenderedPrompt] = {}
        self._shown: tuple[str, RenderedPrompt, RenderedPrompt] | None = None
        self.too_long = 0

    def prompt(self, problem: Problem, messages: tuple[Message, ...]) -> RenderedPrompt:
        if messages in self._known:
            return self._known[messages]
        config = self._config
        student, teacher = (
            render_prompt(self._engine.tokenizer, chat, thinking=thinking)
            for chat, thinking in (
                (problem.messages, config.sampling.thinking),
                (messages, config.teacher_sampling.thinking),
            )
        )
        modes = thinking_mode(student.text), thinking_mode(teacher.text)
        if modes[0] != modes[1] and not config.allow_mode_mismatch:
            raise EpistillError(
                f"context {self._context!r}: the student's prompt leaves thinking {modes[0]} but "
                f"the teacher's {modes[1]} (problem {problem.id!r}); differences would be those of "
                "the modes; use the same mode for both, or pass --allow-mode-mismatch"
            )
        self._known[messages] = teacher
        self._shown = self._shown or (problem.id, student, teacher)
        return teacher

    def fits(self, prompt: Ids, length: int) -> bool:
        """Whether a response of that length fits behind the prompt; counts those that do not."""
        limit = self._engine.max_positions
        fits = limit is None or len(prompt) + length <= limit
        self.too_long += not fits
        return fits

    def example(self) -> dict[str, str] | None:
        """The first problem's prompts."""
        if self._shown is None:
            return None
        problem_id, *prompts = self._shown
        found = {"problem_id": problem_id}
        for side, prompt in zip(("student", "teacher"), prompts, strict=True):
            found[side], found[f"{side}_sha256"] = prompt.text, prompt.sha256
            found[f"{side}_mode"] = thinking_mode(prompt.text)
        every = "".join(prompt.sha256 for prompt in self._known.values())
        return {**found, "all_sha256": hashlib.sha256(every.encode()).hexdigest()}
