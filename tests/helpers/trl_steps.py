"""TRL's trainers on small models: data, a verifier, settings, and one step of self-distillation."""

from __future__ import annotations

import os

import torch
from datasets import Dataset
from transformers import TrainerCallback

from epistill.config import StarSearchTask
from epistill.integrations.trl_loss import SelfDistillationLoss
from epistill.tasks.coverage import load_eval_problems
from epistill.tasks.grading import grade_exact
from epistill.thinking import split_thinking
from epistill.training_rows import TrainingRow
from tests.helpers.models import make_tiny_model

SDPO = {"distillation_mode": "topk_logits", "distillation_topk": 20, "distillation_alpha": 0.5, "distillation_add_tail": True}  # fmt: skip


def dataset(count=8):
    problems = load_eval_problems(StarSearchTask(arms=3, depth=2), count)
    return Dataset.from_list(
        [
            {
                "prompt": [{"role": m.role, "content": m.content} for m in p.messages],
                "answer": p.answer,
            }
            for p in problems
        ]
    )


def solved(completions, answer, **_):
    """The verifier, written for TRL."""
    texts = [completion[0]["content"] for completion in completions]
    answers = [split_thinking(text, opened_in_prompt=True).answer for text in texts]
    return [grade_exact(a, text).score for a, text in zip(answer, answers, strict=True)]


def trl_settings(folder, **changes):
    return {
        "output_dir": str(folder), "use_cpu": True, "bf16": False, "report_to": "none",
        "per_device_train_batch_size": 16, "num_generations": 4, "max_completion_length": 24,
        "logging_steps": 1, "save_strategy": "no", "learning_rate": 1e-3, "max_steps": 3,
        "gradient_checkpointing": False, "disable_tqdm": True, **changes,
    }  # fmt: skip


class Recorder(TrainerCallback):
    """What stands in the gradients before the optimiser takes them."""

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        self.gradients = {n: p.grad.clone() for n, p in model.named_parameters()}


def fixed_draws(self, prompt_ids):
    """Completions of unequal lengths, whatever the model would say."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(5, 60, (len(prompt_ids), 12), generator=generator).tolist()
    return prompt_ids, [row[: 3 + i % 8] for i, row in enumerate(drawn)]


def first_of_group(completions, **_):
    """One success in the first group of the first process: the others' rows have no context."""
    first = os.environ.get("RANK", "0") == "0"
    return [float(first and i == 0) for i in range(len(completions))]


def one_step(base, config, folder, ours=True, **settings):
    """A trainer after its first step, the gradients it took, and the model as it was before."""
    kinds = (SelfDistillationLoss, base) if ours else (base,)
    model, recorder, data = make_tiny_model(), Recorder(), dataset(16)
    if base.__name__ == "SDPOTrainer":
        own = {"reward_funcs": first_of_group}
        settings = {"num_generations": 4, **settings}
    else:
        own = {}
        data = data.add_column("privileged_context", [f"It is {a}." for a in data["answer"]])
    given = trl_settings(folder, max_steps=1, max_grad_norm=0.0, learning_rate=0.0) | {
        "teacher_model_kind": "live",
        "temperature": 1.0, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2,
    }  # fmt: skip
    del given["num_generations"]
    trainer = type("Trainer", kinds, {"_generate": fixed_draws})(
        model=model.network, processing_class=model.tokenizer, train_dataset=data,
        args=config(**given, **settings), callbacks=[recorder], **own,
    )  # fmt: skip
    trainer.train()
    model.network.zero_grad(set_to_none=True)
    model.network.eval()
    return trainer, recorder.gradients, model


def rows_of(trainer):
    """TRL's batch as this package's rows."""
    found = []
    for batch in trainer._buffered_inputs:
        active = batch.get("self_distillation_mask")
        for i in range(len(batch["completion_ids"])):
            ids = batch["completion_ids"][i][batch["completion_mask"][i] > 0].tolist()
            prompt = batch["prompt_ids"][i][batch["prompt_mask"][i] > 0].tolist()
            seen = batch["teacher_input_ids"][i][batch["teacher_attention_mask"][i] > 0].tolist()
            reprompt = tuple(seen[: -len(ids)]) if active is None or active[i] else None
            found.append(TrainingRow(tuple(prompt), tuple(ids), (0.0,) * len(ids), 0.0, reprompt))
    return found
