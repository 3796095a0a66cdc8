"""Every method through the one loop; and the step's weights of each blend against slow references."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from epistill.config import RunConfig
from epistill.methods import METHODS, method
from epistill.objective import clipped_surrogate, distillation_nats, token_log_probs
from epistill.rollouts.load_model import load_model
from epistill.store import RunStore
from epistill.targets import ContrastTarget, PurifiedTarget
from epistill.tasks.grading import Grader
from epistill.teacher.weights import LiveTeacher
from epistill.training.loop import train_student
from epistill.training.pre_step_scores import gather_scores
from epistill.training.step import accumulate_gradients
from epistill.training.token_coefficients import plan_coefficients
from epistill.training_rows import PreStepScores, Progress, TrainingRow
from tests.helpers.known_answers import know_star_answers
from tests.helpers.models import make_tiny_model
from tests.helpers.training_rows import COMPLETIONS, CONTEXTS, PROMPTS, logits, make_rows


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_in_the_lab(name, tmp_path, monkeypatch):
    know_star_answers(monkeypatch)
    changes = {"traces": {"count": 8}} if METHODS[name].traces is not None else {}
    config = RunConfig.model_validate(
        {
            "model": "lab",
            "task": {"type": "star_search", "arms": 4, "depth": 2},
            "method": method(name, **changes).model_dump(),
            "sampling": {"max_new_tokens": 40},
            "steps": 3,
            "problems_per_step": 4,
            "samples_per_problem": 4,
            "updates_per_batch": 2,
            "learning_rate": 1e-3,
        }
    )
    student = load_model("lab")
    before = {n: p.clone() for n, p in student.network.named_parameters()}
    store = RunStore(tmp_path)
    store.begin(config.model_dump(mode="json"), {})
    with Grader() as grader:
        train_student(config, store, student, grader)
    rows = store.metrics()
    assert len(rows) == 3
    assert all(row["gradient_norm"] > 0 for row in rows)
    moved = [n for n, p in student.network.named_parameters() if not torch.equal(p, before[n])]
    assert len(moved) == len(before)
    if METHODS[name].needs_teacher:
        assert all(row["teacher_log_ratio_nats_per_token"] is not None for row in rows)


# ---- slow references


@pytest.fixture
def models():
    student, teacher = make_tiny_model(0), make_tiny_model(1)
    student.network.double()
    teacher.network.double()
    return student, teacher


def gradients(student, teacher, rows, chosen, base=None, progress=None):
    student.network.zero_grad(set_to_none=True)
    result = accumulate_gradients(
        student, LiveTeacher(teacher), rows, chosen, base=base and LiveTeacher(base),
        progress=progress, temperature=1.0, microbatch_tokens=10_000,
    )  # fmt: skip
    return result, {n: p.grad.clone() for n, p in student.network.named_parameters()}


def expect(student, found, loss):
    student.network.zero_grad(set_to_none=True)
    loss.backward()
    for name, parameter in student.network.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, atol=2e-6, rtol=1e-4)


def log_probs(model, prompt, row):
    return token_log_probs(
        logits(model, prompt, row.completion_ids), torch.tensor(row.completion_ids)
    )


def with_verdicts(rows):
    return [replace(row, correct=row.advantage > 0) for row in rows]


def test_routed_rows_share_one_mean(models):
    student, teacher = models
    rows = with_verdicts(make_rows(student))
    chosen = method("srpo", token_weights=(), divergence={"support": {"type": "full"}})
    result, found = gradients(student, teacher, rows, chosen)
    total, tokens = torch.zeros(()).double(), 0
    for row in rows:
        tokens += len(row.completion_ids)
        if row.correct is False and row.teacher_prompt_ids is not None:
            with torch.no_grad():
                aim = logits(teacher, row.teacher_prompt_ids, row.completion_ids)
            mine = logits(student, row.prompt_ids, row.completion_ids)
            total = (
                total
                + distillation_nats(mine, aim, torch.tensor(row.completion_ids), alpha=0.5).sum()
            )
        else:
            new = log_probs(student, row.prompt_ids, row)
            old = torch.tensor(row.old_log_probs).double()
            advantage = torch.full_like(new, row.advantage)
            total = (
                total + clipped_surrogate(new, old, advantage, clip_low=0.2, clip_high=0.2).sum()
            )
    assert (result.distilled_rows, result.reinforced_rows) == (1, 3)
    assert result.loss == pytest.approx((total / tokens).item(), abs=1e-6)
    expect(student, found, total / tokens)


def test_regularised_adds_both_terms_to_the_policy_gradient(models):
    student, teacher = models
    base = make_tiny_model(2)
    base.network.double()
    rows = make_rows(student)
    chosen = method("sdpg", blend={"distillation": 0.5, "reference": 0.25, "warmup_steps": 4})
    result, found = gradients(student, teacher, rows, chosen, base, Progress(step=1, steps=100))
    tokens = sum(len(row.completion_ids) for row in rows)
    kept = sum(len(row.completion_ids) for row in rows if row.teacher_prompt_ids is not None)
    loss = torch.zeros(()).double()
    for row in rows:
        new = log_probs(student, row.prompt_ids, row)
        with torch.no_grad():
            start = log_probs(base, row.prompt_ids, row)
        old = torch.tensor(row.old_log_probs).double()
        advantage = torch.full_like(new, row.advantage)
        loss = (
            loss
            + clipped_surrogate(new, old, advantage, clip_low=0.2, clip_high=0.28).sum() / tokens
        )
        loss = loss + 0.25 * (0.5 * (new - start) ** 2).sum() / tokens
        if row.teacher_prompt_ids is not None:
            with torch.no_grad():
                aim = logits(teacher, row.teacher_prompt_ids, row.completion_ids)
            mine = logits(student, row.prompt_ids, row.completion_ids)
            ids = torch.tensor(row.completion_ids)
            # second of four warm-up steps: half of the weight
            loss = loss + 0.5 * 0.5 * distillation_nats(mine, aim, ids, alpha=1.0).sum() / kept
    assert result.loss == pytest.approx(loss.item(), abs=1e-6)
    expect(student, found, loss)


def test_shaped_advantages_reach_the_surrogate(models):
    student, teacher = models
    rows = make_rows(student)
    chosen = method("antisd", reduction="token_mean")
    result, found = gradients(student, teacher, rows, chosen)
    tokens = sum(len(row.completion_ids) for row in rows)
    loss = torch.zeros(()).double()
    for row in rows:
        new = log_probs(student, row.prompt_ids, row)
        old = torch.tensor(row.old_log_probs).double()
        advantage = torch.full_like(new, row.advantage)
        if row.teacher_prompt_ids is not None:
            with torch.no_grad():
                u = log_probs(teacher, row.teacher_prompt_ids, row) - old
            advantage = advantage - 0.25 * (torch.log1p(u.exp()) - torch.log(torch.tensor(2.0)))
        loss = (
            loss
            + clipped_surrogate(new, old, advantage, clip_low=0.2, clip_high=0.2).sum() / tokens
        )
    assert result.loss == pytest.approx(loss.item(), abs=1e-6)
    expect(student, found, loss)
    closed, _ = gradients(student, teacher, rows, chosen, progress=Progress(memory={"open": False}))
    plain, _ = gradients(student, teacher, rows, method("grpo", policy_gradient={"clip_high": 0.2}))
    assert closed.loss == pytest.approx(plain.loss, abs=1e-7)


def test_contrast_takes_two_paths_each_with_its_own_mean(models):
    """With eta 3 and a gate that some tokens pass: mean of one path plus three times the other's."""
    student, teacher = models
    rows = [
        replace(row, negative_prompt_ids=((50, 51), (52,))) if row.teacher_prompt_ids else row
        for row in make_rows(student)
    ]
    chosen = method("rlcsd", blend={"shape": {"eta": 3.0, "tau": 1.0, "gate": 0.05}})
    scores = gather_scores(
        rows, chosen, student, LiveTeacher(teacher), None, temperature=1.0, microbatch_tokens=99
    )
    signals = plan_coefficients(rows, scores, chosen, Progress())
    assert signals[1].gradient is None  # no context: the row leaves the update
    weights = torch.cat([s.gradient for s in signals if s.gradient is not None])
    values = weights.unique()
    assert len(values) == 2
    counted = sum(
        len(r.completion_ids) for r, s in zip(rows, signals, strict=True) if s.gradient is not None
    )
    # one row (advantage 0) is in the means but has no gradient of its own
    assert counted == len(weights)
    result, _ = gradients(student, teacher, rows, chosen)
    assert result.reinforced_rows == sum(s.gradient is not None for s in signals)


def test_confidence_weights_average_one_over_the_step(models):
    student, teacher = models
    rows = with_verdicts(make_rows(student))
    chosen = method("sdpo", token_weights=({"type": "teacher_confidence", "beta": 1.0},))
    scores = gather_scores(
        rows, chosen, student, LiveTeacher(teacher), None, temperature=1.0, microbatch_tokens=99
    )
    signals = plan_coefficients(rows, scores, chosen, Progress())
    weights = torch.cat([s.distillation for s in signals if s.distillation is not None])
    assert weights.sum().item() == pytest.approx(1.0)
    assert weights.std() > 0


def test_constant_length_divides_by_the_limit(models):
    student, _ = models
    rows = make_rows(student)
    result, _ = gradients(
        student, student, rows, METHODS["dr-grpo"], progress=Progress(max_new_tokens=50)
    )
    mean, _ = gradients(student, student, rows, method("dr-grpo", reduction="token_mean"))
    tokens = sum(len(c) for c in COMPLETIONS)
    assert result.loss * 50 * len(rows) == pytest.approx(mean.loss * tokens, rel=1e-5)


def test_uniform_groups_leave_the_mean_of_dapo(models):
    student, _ = models
    rows = make_rows(student)
    rows[2] = replace(rows[2], uniform=True)
    with_, _ = gradients(student, student, rows, METHODS["dapo"])
    without, _ = gradients(student, student, [rows[i] for i in (0, 1, 3)], METHODS["dapo"])
    assert with_.loss == pytest.approx(without.loss, abs=1e-7)


CONTRAST = {"support": {"type": "full"}, "target": {"type": "contrast"}}


@pytest.mark.parametrize(
    ("chosen", "target", "read", "view", "by_base"),
    [
        (
            METHODS["purified-opsd"], PurifiedTarget(beta=1.0, bound=10.0),
            {"reference_prompt_ids": (60, 61)}, "context_alone", True,
        ),
        (
            method("sdpo", divergence=CONTRAST, token_weights=()), ContrastTarget(),
            {"negative_prompt_ids": ((60, 61),)}, "wrong_sibling", False,
        ),
    ],
)  # fmt: skip
def test_a_target_is_made_of_its_views(models, chosen, target, read, view, by_base):
    """Purified: start and context alone by the base. Contrast: both contexts by the teacher."""
    student, teacher = models
    base = make_tiny_model(2)
    base.network.double()
    rows = [replace(row, **read) for row in make_rows(student)[:1]]
    result, found = gradients(student, teacher, rows, chosen, base)
    row = rows[0]
    with torch.no_grad():
        seen = {
            "start": logits(base, row.prompt_ids, row.completion_ids),
            "teacher": logits(teacher, row.teacher_prompt_ids, row.completion_ids),
            view: logits(base if by_base else teacher, (60, 61), row.completion_ids),
        }
        aim = target.logits(seen)
    mine = logits(student, row.prompt_ids, row.completion_ids)
    loss = distillation_nats(mine, aim, torch.tensor(row.completion_ids), alpha=0.5).mean()
    assert result.loss == pytest.approx(loss.item(), abs=1e-6)
    expect(student, found, loss)


# ---- gate and schedules


def scored(log_probs, entropies=None):
    """What a teacher said of one response."""
    entropies = [0.0] * len(log_probs) if entropies is None else entropies
    return PreStepScores(torch.tensor(log_probs), torch.tensor(entropies))


def entropies(*values):
    return [scored([0.0], [v]) for v in values]


def test_the_gate_is_a_schmitt_trigger():
    shape, memory = METHODS["antisd"].shape, {}

    def observe(scores):
        shape.remember(memory, scores)
        return memory["open"]

    assert [observe(entropies(1.0)) for _ in range(5)] == [False] * 5  # warm-up
    seen = [observe(entropies(h)) for h in (1.0, 0.95, 0.92, 0.95, 0.99, 1.0, 0.94)]
    assert seen == [True, True, False, False, False, True, True]
    assert observe([PreStepScores()]) is True  # nothing scored: unchanged
    memory = json.loads(json.dumps(memory))  # as a checkpoint holds it
    assert observe(entropies(0.94)) is True
    assert METHODS["grpo"].shape is None


@pytest.mark.parametrize(("step", "left"), [(0, 1.0), (25, 0.5), (50, 0.0), (90, 0.0)])
def test_the_ratio_shape_decays(step, left):
    row = TrainingRow((1,), (2,), (-1.0,), 1.0, (3,))
    (signal,) = plan_coefficients(
        [row], [scored([9.0])], METHODS["rlsd"], Progress(step=step, steps=100)
    )
    assert signal.advantage.item() == pytest.approx(1 + 0.5 * left * 0.2)


def test_contexts_of_the_fixture_cover_both_cases():
    assert None in CONTEXTS
    assert len(PROMPTS) == len(COMPLETIONS) == len(CONTEXTS)


def test_a_row_that_lost_its_context_keeps_the_verifiers_part_alone():
    """The context did not fit, a contrasting view did: no teacher, so nothing to contrast."""
    row = TrainingRow((5,), (20, 21), (-1.0, -1.0), 1.0, None, negative_prompt_ids=((6,),))
    lost = [PreStepScores(negatives=torch.zeros(1, 2))]
    (signal,) = plan_coefficients([row], lost, METHODS["rlcsd"], Progress())
    assert signal.gradient is None
    (signal,) = plan_coefficients([row], lost, METHODS["credit"], Progress())  # verifier 0
    assert signal.gradient is None
    halved = method("credit", blend={"shape": {"verifier": 0.5}})
    alone = [scored([0.0, 0.0])]  # nothing to contrast
    for scores in (lost, alone):
        (signal,) = plan_coefficients([row], scores, halved, Progress())
        assert signal.advantage.tolist() == [0.5, 0.5]


def test_the_pull_to_the_start_is_a_mean_over_all_rows_and_a_reason_to_step():
    rows = [TrainingRow((5,), (20, 21), (-1.0, -1.0), 0.0, None, uniform=True) for _ in range(4)]
    rows[0] = replace(rows[0], advantage=1.0, uniform=False)
    scores = [PreStepScores(start_log_probs=torch.tensor([-1.0, -2.0])) for _ in rows]
    chosen = method("sdpg", policy_gradient={"drop_uniform_groups": True})
    for part in (slice(0, 4), slice(1, 4)):
        signals = plan_coefficients(rows[part], scores[part], chosen, Progress())
        total = sum(float(s.reference.sum()) for s in signals)
        assert total == pytest.approx(chosen.blend.reference)
        assert all(s.active for s in signals)
