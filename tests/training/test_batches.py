"""From graded rollouts to rows: contexts that fit, contrasting views, traces for SFT."""

from __future__ import annotations

import pytest

from epistill.config import RunConfig
from epistill.errors import EpistillError
from epistill.methods import method
from epistill.rollouts.load_model import load_model
from epistill.tasks.coverage import make_curriculum
from epistill.tasks.grading import Grader
from epistill.teacher.weights import make_teacher
from epistill.training.batches import on_policy_batch
from epistill.training.stored_traces import collect_traces, trace_batch


def config(name, **changes):
    method_settings = changes.pop("method_settings", {})
    return RunConfig.model_validate(
        {
            "model": "lab",
            "task": {"type": "star_search", "arms": 4, "depth": 2},
            "method": method(name, **method_settings).model_dump(),
            "sampling": {"max_new_tokens": 40},
            "problems_per_step": 6,
            "samples_per_problem": 4,
            **changes,
        }
    )


@pytest.fixture(scope="module")
def grader():
    with Grader() as grader:
        yield grader


def batch(settings, grader, step=0, model=None):
    student = model or load_model("lab")
    teacher = (
        make_teacher(settings.method.teacher, student) if settings.method.needs_teacher else None
    )
    curriculum = make_curriculum(settings.task, settings.coverage, settings.seed)
    return student, on_policy_batch(student, teacher, settings, curriculum, grader, step)


def test_every_row_of_an_sdpo_batch(grader):
    student, made = batch(config("sdpo"), grader)
    tokenizer = student.tokenizer
    assert len(made.rows) == 24
    for row, item in zip(made.rows, made.graded, strict=True):
        assert row.completion_ids == item.rollout.completion_ids
        assert row.old_log_probs == item.rollout.logprobs
        group = [g for g in made.graded if g.problem.id == item.problem.id and g is not item]
        demonstration = next((g.rollout.text for g in group if g.grade.score), None)
        assert (row.teacher_prompt_ids is None) == (demonstration is None)
        if demonstration is not None:
            shown = tokenizer.decode(list(row.teacher_prompt_ids))
            assert demonstration in shown
            assert item.problem.messages[0].content.split(" from ")[1] in shown


@pytest.mark.filterwarnings("error")
def test_one_response_per_problem_is_enough_where_none_are_compared(grader):
    """Its advantage is 0 and it equals its whole group; no standard deviation of one is taken."""
    _, made = batch(config("opsd", samples_per_problem=1), grader)
    assert [(row.advantage, row.uniform) for row in made.rows] == [(0.0, True)] * 6
    assert all(row.teacher_prompt_ids is not None for row in made.rows)


def test_a_context_that_does_not_fit_is_dropped_whole_and_counted(grader):
    student = load_model("lab")
    roomy, made = batch(config("sdpo"), grader, model=student)
    assert made.too_long == 0
    lengths = [
        len(r.teacher_prompt_ids) + len(r.completion_ids) for r in made.rows if r.teacher_prompt_ids
    ]
    student.network.config.max_position_embeddings = limit = sorted(lengths)[len(lengths) // 2]
    _, tight = batch(config("sdpo", sampling={"max_new_tokens": 20}), grader, model=student)
    assert tight.too_long > 0
    for row, item in zip(tight.rows, tight.graded, strict=True):
        if row.teacher_prompt_ids is not None:
            assert len(row.teacher_prompt_ids) + len(row.completion_ids) <= limit
            shown = student.tokenizer.decode(list(row.teacher_prompt_ids))
            assert item.problem.messages[0].content.split()[1] in shown  # the question is whole
    assert roomy is student


def test_contrasting_views_are_wrong_siblings_first(grader):
    student, made = batch(config("rlcsd"), grader)
    rows = [
        (row, item)
        for row, item in zip(made.rows, made.graded, strict=True)
        if row.negative_prompt_ids
    ]
    assert rows
    for row, item in rows:
        group = [g for g in made.graded if g.problem.id == item.problem.id and g is not item]
        wrong = [g.rollout.text for g in group if not g.grade.score]
        first = student.tokenizer.decode(list(row.negative_prompt_ids[0]))
        assert any(text in first for text in wrong)
        assert len(row.negative_prompt_ids) <= 4


def test_other_inputs_see_the_same_context_under_another_question(grader):
    student, made = batch(config("credit"), grader)
    for row, item in zip(made.rows, made.graded, strict=True):
        shown = student.tokenizer.decode(list(row.negative_prompt_ids[0]))
        assert item.problem.messages[0].content not in shown
        assert "Feedback on an earlier attempt" in shown


def test_the_reference_view_has_no_question(grader):
    student, made = batch(config("purified-opsd"), grader)
    for row in made.rows:
        shown = student.tokenizer.decode(list(row.reference_prompt_ids))
        assert "edges" not in shown
        assert "Solution" in shown


@pytest.mark.parametrize("name", ["sft-unguided", "sft-guided"])
def test_traces_are_correct_and_answer_the_bare_question(name, grader):
    settings = config(name, method_settings={"traces": {"count": 20}})
    student = load_model("lab")
    curriculum = make_curriculum(settings.task, None, 0)
    traces = collect_traces(student, settings, curriculum, grader)
    assert len(traces) == 20
    for item in traces:
        assert item.grade.score == 1.0
        prompt = student.tokenizer.decode(list(item.rollout.prompt_ids))
        assert "Solution" not in prompt
    words = sum(len(item.rollout.text.split()) for item in traces) / 20
    assert words < 9 if name == "sft-guided" else words > 9
    made = trace_batch(traces, settings, 0)
    assert len(made.rows) == 24
    assert {row.advantage for row in made.rows} == {1.0}
    assert {row.old_log_probs for row in made.rows} == {None}


def test_too_few_correct_traces_is_an_error(grader, monkeypatch):
    monkeypatch.setattr("epistill.training.stored_traces.MAX_TRACE_ROUNDS", 1)
    settings = config("sft-unguided", method_settings={"traces": {"count": 10_000}})
    with pytest.raises(EpistillError, match=r"only .* correct traces"):
        collect_traces(load_model("lab"), settings, make_curriculum(settings.task, None, 0), grader)


def test_contrasting_views_are_cut_as_the_context_is(grader):
    student, made = batch(
        config("rlcsd", method_settings={"context": {"thinking": "remove"}}), grader
    )
    shown = [
        student.tokenizer.decode(list(ids))
        for row in made.rows
        for ids in (row.teacher_prompt_ids, *row.negative_prompt_ids)
        if row.negative_prompt_ids
    ]
    assert shown
    assert all("try" not in text for text in shown)


def test_only_contexts_are_counted_as_too_long(grader):
    """Contrasting views that do not fit are no contexts."""
    student, roomy = batch(config("rlcsd"), grader)
    lengths = [
        len(r.teacher_prompt_ids) + len(r.completion_ids)
        for r in roomy.rows
        if r.teacher_prompt_ids
    ]
    limit = sorted(lengths)[len(lengths) // 2]
    student.network.config.max_position_embeddings = limit
    _, tight = batch(config("rlcsd", sampling={"max_new_tokens": 20}), grader, model=student)
    fits = sum(r.teacher_prompt_ids is not None for r in tight.rows)
    assert tight.too_long > 0
    assert fits + tight.too_long <= len(tight.rows)
