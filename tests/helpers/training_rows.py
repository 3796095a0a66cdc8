"""Rows made by hand, and the student's logits for them computed one row at a time."""

from __future__ import annotations

import torch

from epistill.objective import token_log_probs
from epistill.training_rows import TrainingRow

PROMPTS = [(5, 6, 7), (8, 9), (10, 11, 12, 13), (5, 6, 7)]
COMPLETIONS = [(20, 21, 22), (23, 24, 25, 26, 27), (28,), (29, 30)]
CONTEXTS = [(5, 6, 7, 40, 41), None, (10, 11, 50), (5, 6, 7, 42)]
ADVANTAGES = [0.5, -0.5, 0.0, 0.25]


def logits(model, prompt, completion):
    out = model.network(torch.tensor([[*prompt, *completion]])).logits[0]
    return out[len(prompt) - 1 : len(prompt) - 1 + len(completion)]


def make_rows(student, shift=0.1):
    rows = []
    for i, (p, c) in enumerate(zip(PROMPTS, COMPLETIONS, strict=True)):
        with torch.no_grad():
            old = token_log_probs(logits(student, p, c), torch.tensor(c)) + shift * (-1) ** i
        rows.append(TrainingRow(p, c, tuple(old.tolist()), ADVANTAGES[i], CONTEXTS[i]))
    return rows
