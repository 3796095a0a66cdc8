"""The teacher reads the question in its own mode of thinking."""

from __future__ import annotations

import copy

import pytest

from epistill.config import RunConfig
from epistill.methods import method
from epistill.rollouts.load_model import load_model
from epistill.tasks.coverage import make_curriculum
from epistill.tasks.grading import Grader
from epistill.teacher.weights import LiveTeacher
from epistill.training.batches import on_policy_batch

TEMPLATE = (
    "{% for m in messages %}{{ m.content }}{% endfor %}"
    "{% if enable_thinking is defined and enable_thinking %} so{% else %} maybe{% endif %}"
)


@pytest.mark.parametrize("student", [True, False])
@pytest.mark.parametrize("teacher", ["same", True, False])
def test_teacher_and_student_have_their_own_mode(student, teacher):
    model = load_model("lab")
    model.tokenizer = copy.deepcopy(model.tokenizer)
    model.tokenizer.chat_template = TEMPLATE
    config = RunConfig.model_validate(
        {
            "model": "lab", "task": {"type": "star_search", "arms": 4, "depth": 2},
            "method": method("sdpo", context={"source": "answer"}), "teacher_thinking": teacher,
            "sampling": {"max_new_tokens": 4, "thinking": student},
            "problems_per_step": 2, "samples_per_problem": 2,
        }
    )  # fmt: skip
    curriculum = make_curriculum(config.task, config.coverage, config.seed)
    with Grader() as grader:
        batch = on_policy_batch(model, LiveTeacher(model), config, curriculum, grader, 0)
    ends = {
        mode: model.tokenizer.encode(word)[-1] for mode, word in ((True, " so"), (False, " maybe"))
    }
    assert ends[True] != ends[False]
    expected = student if teacher == "same" else teacher
    for row in batch.rows:
        assert row.prompt_ids[-1] == ends[student]
        assert row.teacher_prompt_ids[-1] == ends[expected]
    assert config.identity()["teacher_thinking"] == teacher
