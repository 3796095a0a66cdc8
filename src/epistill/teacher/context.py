"""What the teacher additionally sees: from a group of graded rollouts to a context per row.

Enters: a `Context` setting, problems, rollouts and grades of one step. Leaves: the context's text
per rollout, or None where there is none (that row then costs no teacher), and the teacher's
messages. Rendering is left to `rollouts.prompts`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from epistill.axes import Context
from epistill.errors import EpistillError
from epistill.records import GradedRollout, Message, Problem
from epistill.seeds import named_random
from epistill.thinking import OPEN, split_thinking

# {question} and {context} are filled in; the closing sentence is SDPO's (2601.20802).
SUCCESS_THRESHOLD = 0.5  # a rollout above it may be shown; the paper's success threshold
_CLOSING = "Correctly solve the original question."
TEMPLATES: Mapping[str, str] = {
    "solution": "{question}\n\nSolution:\n{context}\n\n" + _CLOSING,
    "answer": "{question}\n\nAnswer: {context}\n\n" + _CLOSING,
    "feedback": "{question}\n\nFeedback on an earlier attempt:\n{context}\n\n" + _CLOSING,
}

NAMED_CONTEXTS: Mapping[str, Context] = {
    "none": Context(source="none"),
    "answer": Context(source="answer"),
    "solution": Context(source="solution"),
    "solution-no-think": Context(source="solution", thinking="remove"),
    "regenerated": Context(source="regenerated"),
    "sibling": Context(source="sibling"),
    "sibling-no-think": Context(source="sibling", thinking="remove"),
    "feedback": Context(source="feedback"),
    "wrong-answer": Context(source="wrong_answer"),
    "other-solution": Context(source="solution", problem="other"),
    "other-sibling": Context(source="sibling", problem="other"),
    "half-solution": Context(source="solution", fraction=0.5),
    "shuffled-solution": Context(source="solution", shuffled=True),
    "shuffled-sibling": Context(source="sibling", shuffled=True),
}


def template_of(context: Context) -> str:
    """Which template presents this context."""
    if context.source in ("answer", "wrong_answer"):
        return "answer"
    return "feedback" if context.source == "feedback" else "solution"


def insert_context(question: str, context: str, template: str) -> str:
    """The question with a context after it."""
    return TEMPLATES[template].format(question=question, context=context)


def teacher_messages(problem: Problem, text: str | None, context: Context) -> tuple[Message, ...]:
    """The chat the teacher sees: the student's, with the context in its last user turn.

    Args:
        problem: The question.
        text: The context's text; None leaves the chat as the student sees it.
        context: Chooses the template.
    """
    if text is None:
        return problem.messages
    last = max(i for i, message in enumerate(problem.messages) if message.role == "user")
    turn = problem.messages[last]
    changed = replace(turn, content=insert_context(turn.content, text, template_of(context)))
    return (*problem.messages[:last], changed, *problem.messages[last + 1 :])


def context_texts(
    context: Context,
    graded: Sequence[GradedRollout],
    *,
    regenerated: Mapping[str, str] | None = None,
    seed: int = 0,
) -> list[str | None]:
    """The context of every rollout, aligned with `graded`.

    Args:
        context: What to show.
        graded: All rollouts of a step, groups together.
        regenerated: For source "regenerated": a correct text per problem id.
        seed: Names the draws of the controls.

    Returns:
        Text, or None where this row has no context.

    Raises:
        EpistillError: The source needs something no problem here has.
    """
    texts = _of_source(context, graded, regenerated or {}, seed)
    if context.fallback == "solution":
        texts = [
            item.problem.solution if text is None else text
            for item, text in zip(graded, texts, strict=True)
        ]
    if context.problem == "other":
        texts = _of_another_problem(graded, texts)
    texts = [
        None if text is None else _edited(context, text, (seed, index))
        for index, text in enumerate(texts)
    ]
    if context.assessment:
        texts = [
            None if text is None else f"{text}\n\n{assessment(item)}"
            for item, text in zip(graded, texts, strict=True)
        ]
    return texts


def negative_texts(
    context: Context, graded: Sequence[GradedRollout], *, count: int, seed: int
) -> list[tuple[str, ...]]:
    """Contrasting contexts of every rollout: one wrong sibling, filled up with other siblings.

    RLCSD's choice: the first is a random wrong sibling whose answer could be read, up to count - 1
    further random siblings follow, never the rollout itself. Without a usable wrong sibling there
    are none. What the context cuts out of its own text is cut out of these too.
    """
    found: list[tuple[str, ...]] = []
    for index, group in enumerate(_groups(graded)):
        rng = named_random("negatives", seed, index)
        others = [i for i in group if i != index]
        grades = {i: graded[i].grade for i in others}
        wrong = [
            i
            for i, grade in grades.items()
            if grade.score <= SUCCESS_THRESHOLD and grade.extracted is not None
        ]
        chosen: list[int] = []
        if wrong:
            first = rng.choice(wrong)
            rest = [i for i in others if i != first]
            chosen = [first, *rng.sample(rest, min(count - 1, len(rest)))]
        edited = (_edited(context, rollout_as_context(graded[i]), (seed, i)) for i in chosen)
        found.append(tuple(text for text in edited if text is not None))
    return found


def assessment(item: GradedRollout) -> str:
    """The grader's words on a rollout, without the right answer."""
    grade = item.grade
    said = "gave no readable answer" if grade.extracted is None else f"gave {grade.extracted}"
    right = grade.score > SUCCESS_THRESHOLD
    return (
        f"The attempt {said}, {'which is correct' if right else grade.reason or 'which is wrong'}."
    )


def context_alone(text: str, context: Context) -> tuple[Message, ...]:
    """The context without the question, for targets that take out what it says by itself."""
    return (Message("user", insert_context("", text, template_of(context)).strip()),)


def _edited(context: Context, text: str, key: tuple[int, int]) -> str | None:
    if context.thinking == "remove":
        text = split_thinking(text).answer
    if context.fraction < 1.0 or context.shuffled:
        words = text.split(" ")
        if context.shuffled:
            named_random("shuffled_context", *key).shuffle(words)
        text = " ".join(words[: max(1, round(len(words) * context.fraction))])
    return text if text.strip() else None


def _of_source(
    context: Context, graded: Sequence[GradedRollout], regenerated: Mapping[str, str], seed: int
) -> list[str | None]:
    """The text of every rollout that the source names, as it is."""
    problems = [item.problem for item in graded]
    match context.source:
        case "none":
            return [None] * len(graded)
        case "answer":
            return [problem.answer for problem in problems]
        case "regenerated":
            return [regenerated.get(problem.id) for problem in problems]
        case "feedback":
            return [assessment(item) for item in graded]
        case "sibling":
            return _siblings(context, graded, seed)
        case "wrong_answer":
            return _wrong_answers(graded, seed)
        case "solution":
            if problems and all(problem.solution is None for problem in problems):
                raise EpistillError(
                    "context 'solution' needs worked solutions, and no problem here has one; use "
                    "'sibling' (a successful rollout), 'answer', or data with a solution column"
                )
            return [problem.solution for problem in problems]


def _siblings(context: Context, graded: Sequence[GradedRollout], seed: int) -> list[str | None]:
    """A success of the group that is not the row itself.

    The first as in SDPO, with the paper's setting `dont_reprompt_on_self_success`.
    """
    texts: list[str | None] = []
    for index, group in enumerate(_groups(graded)):
        right = [i for i in group if i != index and graded[i].grade.score > SUCCESS_THRESHOLD]
        if not right:
            texts.append(None)
            continue
        rng = named_random("sibling", seed, index)
        chosen = right[0] if context.pick == "first" else rng.choice(right)
        texts.append(rollout_as_context(graded[chosen]))
    return texts


def _wrong_answers(graded: Sequence[GradedRollout], seed: int) -> list[str | None]:
    """A wrong answer the group itself gave, else another problem's answer."""
    all_answers = sorted({item.problem.answer for item in graded})
    texts: list[str | None] = []
    for index, (item, group) in enumerate(zip(graded, _groups(graded), strict=True)):
        given = [graded[i].grade for i in group]
        wrong = sorted({g.extracted for g in given if g.extracted is not None and g.score == 0.0})
        wrong = wrong or [answer for answer in all_answers if answer != item.problem.answer]
        rng = named_random("wrong_answer", seed, index)
        texts.append(rng.choice(wrong) if wrong else None)
    return texts


def rollout_as_context(item: GradedRollout) -> str:
    """A rollout as a context: its text, with the opening tag if the template had written it."""
    return f"{OPEN}\n{item.rollout.text}" if item.opened_thinking else item.rollout.text


def _groups(graded: Sequence[GradedRollout]) -> list[list[int]]:
    """For every rollout, which ones answer the same prompt of the same problem."""
    keys = [(item.problem.id, item.rollout.prompt_ids) for item in graded]
    groups: dict[object, list[int]] = {}
    for index, key in enumerate(keys):
        groups.setdefault(key, []).append(index)
    return [groups[key] for key in keys]


def _of_another_problem(
    graded: Sequence[GradedRollout], texts: Sequence[str | None]
) -> list[str | None]:
    """Give each row the first context of the next problem (cyclically) that has one."""
    first: dict[str, str | None] = {}
    for item, text in zip(graded, texts, strict=True):
        if first.get(item.problem.id) is None:
            first[item.problem.id] = text
    names = list(first)
    after = {name: [*names[here + 1 :], *names[:here]] for here, name in enumerate(names)}
    return [
        next((first[name] for name in after[item.problem.id] if first[name] is not None), None)
        for item in graded
    ]
