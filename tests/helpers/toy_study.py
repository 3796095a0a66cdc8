"""A whole study that is over in seconds."""

from __future__ import annotations

TASK = {"type": "star_search", "arms": 3, "depth": 2}
SPEC = {
    "name": "toy",
    "question": "Does <b>this</b> work?",
    "about": "A test.\n\nOf two paragraphs.",
    "seeds": [0, 1],
    "run": {
        "model": "lab", "steps": 3, "problems_per_step": 2, "samples_per_problem": 4,
        "eval_every": 2, "task": TASK, "sampling": {"max_new_tokens": 24},
    },
    "learning_rates": {"grpo": 1e-3, "sdpo": 1e-3},
    "evaluations": [
        {"name": "held out", "kind": "in_domain", "task": {**TASK, "split": "test"}, "problems": 5, "samples": 2},
        {"name": "deeper", "kind": "ood", "task": {**TASK, "depth": 3, "split": "test"}, "problems": 5, "samples": 2},
    ],
    "arms": [
        {"id": "base", "label": "base <script>alert(1)</script>"},
        {"id": "grpo", "label": "GRPO", "method": "grpo", "series": "GRPO"},
        {"id": "grpo-2", "label": "GRPO, 2 problems", "method": "grpo", "coverage": 2, "series": "GRPO"},
        {"id": "sdpo", "label": "SDPO", "method": "sdpo"},
    ],
    "probes": [
        {"id": "teacher", "label": "Teacher", "model": "lab", "task": TASK, "problems": 6, "samples": 3,
         "contexts": ["none", "sibling", "solution-no-think", "regenerated"], "sampling": {"max_new_tokens": 24}},
    ],
    "claims": [
        {"id": "one", "text": "SDPO differs.", "tests": [
            {"measure": "score", "on": "ood", "arm": "sdpo", "versus": "base", "expect": "below"},
            {"measure": "train_reward", "on": "training", "arm": "sdpo", "versus": "grpo", "expect": "not_below"},
        ]},
    ],
    "controls": [
        {"id": "two", "text": "Shorter.", "tests": [
            {"measure": "length_tokens", "on": "sibling", "arm": "teacher", "versus": "teacher",
             "versus_on": "none", "expect": "below"},
        ]},
    ],
}  # fmt: skip
