"""One optimiser step on the lab model beside TRL's trainers, on one identical batch.

    python benchmarks/step.py [--repeats 7] [--threads 2] [--out FILE.json]

16 problems x 8 rollouts of the lab model. Both sides get the same token ids, old log-probs and
advantages and do the rest: forward passes of student and teacher, loss, backward, clipping, AdamW.
Generation is benchmarked in generate.py. "floor" is the student's forward and backward alone, on
the rows that carry a signal, without padding to the whole batch's longest row.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from common import medians_in_turn, report

from epistill.config import RunConfig, SamplingConfig, StarSearchTask
from epistill.methods import METHODS
from epistill.rollouts.align import align, micro_batches
from epistill.rollouts.load_model import load_model
from epistill.tasks.coverage import make_curriculum
from epistill.tasks.grading import Grader
from epistill.teacher.weights import CopiedTeacher
from epistill.training.batches import on_policy_batch
from epistill.training.step import accumulate_gradients

MICROBATCH = 4096


def make_rows(method):
    student = load_model("lab")
    config = RunConfig(
        model="lab", task=StarSearchTask(arms=5, depth=3, split="bench"), method=method,
        sampling=SamplingConfig(max_new_tokens=96), problems_per_step=16,
    )  # fmt: skip
    curriculum = make_curriculum(config.task, None, 0)
    teacher = CopiedTeacher(student) if method.needs_teacher else None
    with Grader() as grader:
        return on_policy_batch(student, teacher, config, curriculum, grader, 0).rows


def with_context_share(rows, share):
    """Keep the context of the first `share` of the rows, evenly spread over the batch."""
    every = round(1 / share)
    return [
        r if i % every == 0 else replace(r, teacher_prompt_ids=None) for i, r in enumerate(rows)
    ]


def padded(sequences, pad, left):
    width = max(len(s) for s in sequences)
    ids = torch.full((len(sequences), width), pad)
    mask = torch.zeros(len(sequences), width, dtype=torch.long)
    for row, sequence in enumerate(sequences):
        place = slice(width - len(sequence), width) if left else slice(0, len(sequence))
        ids[row, place] = torch.tensor(sequence)
        mask[row, place] = 1
    return ids, mask


def trl_inputs(rows, pad):
    prompts, prompt_mask = padded([r.prompt_ids for r in rows], pad, left=True)
    completions, completion_mask = padded([r.completion_ids for r in rows], pad, left=False)
    old = torch.zeros(completions.shape)
    for i, row in enumerate(rows):
        if row.old_log_probs is not None:
            old[i, : len(row.old_log_probs)] = torch.tensor(row.old_log_probs)
    teacher, teacher_mask = padded(
        [r.teacher_prompt_ids or r.prompt_ids for r in rows], pad, left=True
    )
    return {
        "prompt_ids": prompts, "prompt_mask": prompt_mask,
        "completion_ids": completions, "completion_mask": completion_mask,
        "old_per_token_logps": old, "advantages": torch.tensor([r.advantage for r in rows]),
        "teacher_input_ids": torch.cat([teacher, completions], 1),
        "teacher_attention_mask": torch.cat([teacher_mask, completion_mask], 1),
        "self_distillation_mask": torch.tensor(
            [float(r.teacher_prompt_ids is not None) for r in rows]
        ),
        "num_items_in_batch": completion_mask.sum(),
    }  # fmt: skip


def trl_trainer(kind, folder, model, *, rows, group, new_tokens, on_cpu=True):
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer
    from trl.experimental.sdpo import SDPOConfig, SDPOTrainer

    common = {
        "output_dir": folder, "use_cpu": on_cpu, "bf16": False, "per_device_train_batch_size": rows,
        "num_generations": group, "max_completion_length": new_tokens, "report_to": "none",
        "gradient_checkpointing": False,
    }  # fmt: skip
    data = Dataset.from_list([{"prompt": [{"role": "user", "content": "edges"}]}] * 16)
    settings = {
        "model": model.network, "processing_class": model.tokenizer, "train_dataset": data,
        "reward_funcs": lambda completions, **_: [0.0] * len(completions),
    }  # fmt: skip
    if kind == "grpo":
        return GRPOTrainer(args=GRPOConfig(beta=0.0, loss_type="dapo", **common), **settings)
    arguments = SDPOConfig(
        distillation_mode="topk_logits", distillation_topk=50, distillation_alpha=0.5,
        distillation_add_tail=True, distillation_is_clip=2.0, teacher_model_kind="base",
        distillation_weight=1.0, **common,
    )  # fmt: skip
    return SDPOTrainer(args=arguments, **settings)


def optimiser_step(network, optimizer, backward):
    optimizer.zero_grad(set_to_none=True)
    backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimizer.step()


def compared_method(kind):
    """As TRL's settings above have it."""
    method = METHODS[kind]
    if kind == "sdpo":
        support = method.divergence.support.model_copy(update={"k": 50})
        divergence = method.divergence.model_copy(update={"support": support})
        method = method.model_copy(update={"divergence": divergence})
    return method


def compare(kind, rows, repeats):
    method = compared_method(kind)
    student = load_model("lab")
    student.network.train()
    teacher = CopiedTeacher(student)
    ours_optimizer = torch.optim.AdamW(student.network.parameters(), lr=1e-9)

    def ours():
        optimiser_step(
            student.network,
            ours_optimizer,
            lambda: accumulate_gradients(
                student, teacher, rows, method, temperature=1.0, microbatch_tokens=MICROBATCH
            ),
        )

    active = [r for r in rows if (r.teacher_prompt_ids if kind == "sdpo" else r.advantage)]
    bare = copy.deepcopy(student)

    def floor():
        lengths = [len(r.prompt_ids) + len(r.completion_ids) for r in active]
        for members in micro_batches(lengths, max_tokens=MICROBATCH):
            chosen = [active[i] for i in members]
            said = [r.completion_ids for r in chosen]
            batch = align(bare, [r.prompt_ids for r in chosen], said)
            bare.head().logits(batch.hidden(bare)).sum().backward()

    with tempfile.TemporaryDirectory() as folder:
        trainer = trl_trainer(kind, folder, load_model("lab"), rows=128, group=8, new_tokens=96)
        trainer.model.train()
        trainer.current_gradient_accumulation_steps = 1
        inputs = trl_inputs(rows, student.pad_id)
        trl_optimizer = torch.optim.AdamW(trainer.model.parameters(), lr=1e-9)

        def trl():
            optimiser_step(
                trainer.model,
                trl_optimizer,
                lambda: trainer.compute_loss(trainer.model, dict(inputs)).backward(),
            )

        return medians_in_turn({"ours": ours, "trl": trl, "floor": floor}, repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    sdpo_rows = make_rows(METHODS["sdpo"])
    cases = [
        ("SDPO, half of the rows with a context", "sdpo", with_context_share(sdpo_rows, 0.5), 1.3),
        ("SDPO, a tenth of the rows", "sdpo", with_context_share(sdpo_rows, 0.1), 3.0),
        ("GRPO", "grpo", make_rows(METHODS["grpo"]), 1.2),
    ]
    table = []
    for title, kind, rows, bar in cases:
        seconds = compare(kind, rows, options.repeats)
        table.append(
            {
                "step": title,
                "ours s": seconds["ours"],
                "TRL s": seconds["trl"],
                "ratio": seconds["trl"] / seconds["ours"],
                "bar": bar,
                "times floor": seconds["ours"] / seconds["floor"],
            }
        )
    report(f"one optimiser step, lab model, {options.threads} threads", table, options.out)


if __name__ == "__main__":
    main()
