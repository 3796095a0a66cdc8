"""One SDPO step of a Qwen3-8B-shaped model on a GPU: fused loss beside the dense path.

    python benchmarks/gpu_step.py [--tokens 4096 8192 20480] [--repeats 5]
        [--attention flash_attention_2] [--out FILE.json]
    python benchmarks/gpu_step.py --trl [--responses 4] ...   # Qwen3-1.7B's, beside TRL with Liger
    python benchmarks/gpu_step.py [--trl] --tiny    # two small layers on the CPU: only that it runs

The weights are random and never trained: this measures time and memory, nothing else. One response
of the given length, full-vocabulary JSD, bf16, activation checkpointing on both sides; student,
gradients and a frozen teacher are in memory, optimiser states are not. "dense" keeps the logits of
the whole response, as trainers without a fused loss do, until it runs out of memory. One response
has no padding; what packing several brings, `prefix.py --device cuda --attention ...` says.
With --trl the loss is what both have, over the student's top 50 and the rest, and of several
responses; TRL's trainer has Liger's layer kernels (`use_liger_kernel`; `--tiny` goes without), and
its network and teacher are in memory while ours are not.
"""

from __future__ import annotations

import argparse
import gc
import statistics
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from common import report, timed
from step import compared_method, trl_inputs, trl_trainer
from transformers import Qwen3Config, Qwen3ForCausalLM
from transformers.integrations.liger import apply_liger_kernel
from transformers.utils import is_liger_kernel_available

from epistill.methods import method
from epistill.rollouts.align import align
from epistill.rollouts.load_model import load_model
from epistill.rollouts.model import LanguageModel
from epistill.teacher.weights import CopiedTeacher
from epistill.training.step import accumulate_gradients
from epistill.training_rows import TrainingRow

# Source: config.json of Qwen/Qwen3-8B.
QWEN3_8B = {
    "vocab_size": 151_936, "hidden_size": 4096, "intermediate_size": 12_288,
    "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
    "max_position_embeddings": 40_960, "tie_word_embeddings": False,
}  # fmt: skip
# Source: config.json of Qwen/Qwen3-1.7B.
QWEN3_1_7B = {
    **QWEN3_8B, "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28,
    "num_attention_heads": 16, "tie_word_embeddings": True,
}  # fmt: skip
TINY = {
    **QWEN3_8B, "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
}  # fmt: skip
QUESTION, CONTEXT = 128, 1024  # prompt tokens of student and of teacher (a solution in it)


def build(shape, device, dtype, attention):
    torch.manual_seed(0)
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    with torch.device(device):
        network = Qwen3ForCausalLM(Qwen3Config(**shape, attn_implementation=attention))
    torch.set_default_dtype(previous)
    network.gradient_checkpointing_enable()
    return LanguageModel(network.train(), load_model("lab").tokenizer, "random Qwen3")


def make_row(tokens, vocabulary, number=0):
    draw = torch.Generator().manual_seed(tokens + number)

    def ids(n):
        return tuple(torch.randint(0, vocabulary, (n,), generator=draw).tolist())

    question = ids(QUESTION)
    return TrainingRow(question, ids(tokens), None, 0.0, (*question, *ids(CONTEXT - QUESTION)))


def fused_step(student, teacher, rows, sdpo):
    limit = len(rows[0].completion_ids)
    result = accumulate_gradients(
        student, teacher, rows, sdpo, temperature=1.0, microbatch_tokens=limit
    )
    return result.loss


def dense_step(student, teacher, row, alpha):
    def logits(model, prompt):
        batch = align(model, [prompt], [row.completion_ids])
        return model.head().logits(batch.hidden(model)).float()

    with torch.no_grad():
        aim = logits(teacher, row.teacher_prompt_ids)
    own = logits(student, row.prompt_ids)
    log_p, log_q = own.log_softmax(-1), aim.log_softmax(-1)
    middle = torch.logaddexp(
        log_p + torch.log(torch.tensor(1 - alpha)), log_q + torch.log(torch.tensor(alpha))
    )
    forth = torch.nn.functional.kl_div(middle, log_q, log_target=True, reduction="none").sum(-1)
    back = torch.nn.functional.kl_div(middle, log_p, log_target=True, reduction="none").sum(-1)
    loss = torch.lerp(back, forth, alpha).mean()
    loss.backward()
    return float(loss)


def measure(step, student, repeats):
    """Median seconds, peak GiB and loss, or None where memory does not suffice."""
    cuda = student.device.type == "cuda"

    def once():
        student.network.zero_grad(set_to_none=True)
        loss = step()
        if cuda:
            torch.cuda.synchronize()
        return loss

    try:
        loss = once()
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        seconds = statistics.median(timed(once) for _ in range(repeats))
        return seconds, torch.cuda.max_memory_allocated() / 2**30 if cuda else None, loss
    except torch.OutOfMemoryError:
        student.network.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        return None


def trl_step(trainer, rows, pad):
    inputs = {name: value.to(trainer.model.device) for name, value in trl_inputs(rows, pad).items()}
    inputs["old_per_token_logps"] = None  # as its trainer has it with one update per batch
    loss = trainer.compute_loss(trainer.model, inputs)
    loss.backward()
    return loss.item()


def our_side(student, options):
    sdpo, teacher = compared_method("sdpo"), CopiedTeacher(student)
    return lambda rows: fused_step(student, teacher, rows, sdpo)


def trl_side(student, options):
    with TemporaryDirectory() as folder:  # TRL reads its teacher from where the student is
        student.network.save_pretrained(folder)
        student.network.config._name_or_path = folder
        trainer = trl_trainer(
            "sdpo", folder, student, rows=2, group=2,
            new_tokens=max(options.tokens), on_cpu=options.tiny,
        )  # fmt: skip
    trainer.current_gradient_accumulation_steps = 1
    if not options.tiny:  # as `Trainer.train` does, but for the loss, which SDPO does not use
        apply_liger_kernel(trainer.model, {"fused_linear_cross_entropy": False})
    trainer.model.train()
    return lambda rows: trl_step(trainer, rows, student.pad_id)


def beside_trl(options, shape, device, dtype):
    """Lines of the table. Ours comes first: Liger changes transformers' own functions too."""
    found = {}
    for name, side in (("ours", our_side), ("TRL", trl_side)):
        student = build(shape, device, dtype, options.attention)
        step, words = side(student, options), student.head().weight.shape[0]
        for tokens in options.tokens:
            rows = [make_row(tokens, words, i) for i in range(options.responses)]
            found[name, tokens] = measure(lambda s=step, r=rows: s(r), student, options.repeats)
        del step, student
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()
    return [
        line(tokens, options.responses, {name: found[name, tokens] for name in ("ours", "TRL")})
        for tokens in options.tokens
    ]


def line(tokens, responses, found):
    cells = {"response tokens": tokens}
    for name, result in found.items():
        cells[f"{name} tokens/s"] = responses * tokens / result[0] if result else "out of memory"
        cells[f"{name} peak GiB"] = result[1] if result else "out of memory"
    if all(found.values()):
        (seconds, _, loss), (others, _, other) = found.values()
        cells |= {"times as fast": others / seconds, "loss": loss, "loss gap": abs(loss - other)}
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, nargs="+", default=[4096, 8192, 20_480])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--attention")
    parser.add_argument("--trl", action="store_true")
    parser.add_argument("--responses", type=int, default=4)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if not options.tiny and not torch.cuda.is_available():
        raise SystemExit("no CUDA device found; expected one, or --tiny to try the script on a CPU")
    if options.trl and not options.tiny and not is_liger_kernel_available():
        raise SystemExit("no liger-kernel; expected it (pip install liger-kernel), or --tiny")
    device, dtype = ("cpu", torch.float32) if options.tiny else ("cuda", torch.bfloat16)
    machine = torch.cuda.get_device_name() if device == "cuda" else "CPU, tiny shape"
    if options.trl:
        table = beside_trl(options, TINY if options.tiny else QWEN3_1_7B, device, dtype)
        peer = "TRL without Liger" if options.tiny else "TRL with Liger"
        title = f"an SDPO step of {options.responses} responses, top 50, random weights, {machine}"
        report(f"{title}, beside {peer}", table, options.out)
        return
    student = build(TINY if options.tiny else QWEN3_8B, device, dtype, options.attention)
    teacher = CopiedTeacher(student)
    sdpo = method("sdpo", divergence={"alpha": 0.5, "support": {"type": "full"}})
    table = []
    for tokens in options.tokens:
        row = make_row(tokens, student.head().weight.shape[0])
        with teacher.scoring() as guided:
            paths = {
                "fused": lambda row=row: fused_step(student, teacher, [row], sdpo),
                "dense": lambda row=row, guided=guided: dense_step(student, guided, row, 0.5),
            }
            found = {name: measure(step, student, options.repeats) for name, step in paths.items()}
        table.append(line(tokens, 1, found))
    attention = student.network.config._attn_implementation
    title = f"one SDPO step, full-vocabulary JSD, random weights, {attention}, {machine}"
    report(title, table, options.out)


if __name__ == "__main__":
    main()
