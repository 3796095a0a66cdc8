"""A whole training step of a real model beside TRL's trainers: generation, teacher, loss, update.

    python benchmarks/real_step.py MODEL [--methods grpo sdpo] [--dtype bfloat16] [--repeats 3]
        [--threads 2] [--prompts 8] [--tokens 128] [--out FILE.json]

4 responses to each prompt, of full length (no end token), with a rank-16 adapter; half of the
advantages are positive, every row has a teacher prompt that is 80 tokens longer. Each side runs in
a process of its own, one after the other, so that its peak memory is its own: what the process
holds at most, less what it held with the model loaded. TRL's side generates with `model.generate`,
by a network that transformers loaded and peft's own layers, as its users do.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from common import report
from peft import LoraConfig, get_peft_model
from real_model import SAMPLES, Endless, prompt_ids
from step import compared_method, optimiser_step, trl_inputs, trl_trainer
from transformers import AutoModelForCausalLM

from epistill.config import Lora, SamplingConfig
from epistill.rollouts.engine import PromptRequest
from epistill.rollouts.load_model import load_model
from epistill.rollouts.model import with_lora
from epistill.rollouts.sampler import sample
from epistill.teacher.weights import make_teacher
from epistill.training.step import accumulate_gradients
from epistill.training_rows import TrainingRow

MORE_TOKENS = 80  # of a teacher's prompt
MICROBATCH = 1600
LORA = {"r": 16, "lora_alpha": 32.0}


def held_mib():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def peak_mib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def rows_of(prompts, completions, log_probs):
    more = tuple(range(1000, 1000 + MORE_TOKENS))
    return [
        TrainingRow(
            prompt_ids=tuple(prompt), completion_ids=tuple(said), old_log_probs=tuple(old),
            advantage=1.0 if i % 2 else -1.0, teacher_prompt_ids=(*more, *prompt), correct=True,
            uniform=False,
        )
        for i, (prompt, said, old) in enumerate(zip(prompts, completions, log_probs, strict=True))
    ]  # fmt: skip


def our_step(kind, student, prompts, limit):
    """Sampling and update, a function of the round."""
    method = compared_method(kind)
    teacher = make_teacher(method.teacher, student) if method.needs_teacher else None
    trained = [p for p in student.network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-9)
    endless = Endless(student.network, student.tokenizer, student.name)
    asked = prompt_ids(prompts).tolist()
    requests = [PromptRequest(str(i), tuple(ids), i) for i, ids in enumerate(asked)]
    drawn = SamplingConfig(max_new_tokens=limit)

    def step(seed):
        student.network.eval()
        said = sample(endless, requests, samples=SAMPLES, sampling=drawn, seed=seed, entropies=True)
        rows = rows_of(
            *zip(*((r.prompt_ids, r.completion_ids, r.logprobs) for r in said), strict=True)
        )
        student.network.train()
        optimiser_step(
            student.network,
            optimizer,
            lambda: accumulate_gradients(
                student, teacher, rows, method, temperature=1.0, microbatch_tokens=MICROBATCH
            ),
        )

    return step


def trl_step(kind, student, prompts, limit):
    """The same by TRL: its loss on what `generate` wrote."""
    folder = tempfile.mkdtemp()
    trainer = trl_trainer(
        kind, folder, student, rows=prompts * SAMPLES, group=SAMPLES, new_tokens=limit
    )
    trainer.current_gradient_accumulation_steps = 1
    trained = [p for p in trainer.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-9)
    ids = prompt_ids(prompts).repeat_interleave(SAMPLES, 0)

    def step(seed):
        torch.manual_seed(seed)
        trainer.model.eval()
        with torch.inference_mode():
            out = trainer.model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=True, temperature=1.0,
                top_k=0, top_p=1.0, max_new_tokens=limit, min_new_tokens=limit, pad_token_id=0,
            )  # fmt: skip
        said = out[:, ids.shape[1] :].tolist()
        rows = rows_of(ids.tolist(), said, [[0.0] * limit] * len(said))
        inputs = trl_inputs(rows, student.pad_id)
        # As its trainer has it with one update per batch: the ratio is 1.
        inputs["old_per_token_logps"] = None
        trainer.model.train()
        optimiser_step(
            trainer.model,
            optimizer,
            lambda: trainer.compute_loss(trainer.model, dict(inputs)).backward(),
        )

    return step


def one_side(options):
    torch.set_num_threads(options.threads)
    model = load_model(options.model, dtype=options.dtype)
    torch.manual_seed(0)
    if options.side == "trl":
        dtype = getattr(torch, options.dtype)
        model = model.with_network(AutoModelForCausalLM.from_pretrained(options.model, dtype=dtype))
        adapter = LoraConfig(**LORA, target_modules="all-linear", task_type="CAUSAL_LM")
        student = model.with_network(get_peft_model(model.network, adapter))
    else:
        student = with_lora(model, Lora(rank=LORA["r"], alpha=LORA["lora_alpha"]))
    before = held_mib()
    step = {"ours": our_step, "trl": trl_step}[options.side](
        options.methods[0], student, options.prompts, options.tokens
    )
    wall, processor = [], []
    for repeat in range(-1, options.repeats):
        starts = time.perf_counter(), time.process_time()
        step(repeat + 1)
        if repeat >= 0:
            wall.append(time.perf_counter() - starts[0])
            processor.append(time.process_time() - starts[1])
    medians = {"s": statistics.median(wall), "processor s": statistics.median(processor)}
    print(json.dumps({**medians, "peak MiB": peak_mib() - before}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--methods", nargs="+", default=["grpo", "sdpo"])
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--side", choices=["ours", "trl"])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.side:
        one_side(options)
        return
    table = []
    for method in options.methods:
        found = {}
        for side in ("ours", "trl"):
            command = [
                sys.executable, __file__, options.model, "--methods", method, "--side", side,
                "--dtype", options.dtype, "--repeats", str(options.repeats),
                "--threads", str(options.threads), "--prompts", str(options.prompts),
                "--tokens", str(options.tokens),
            ]  # fmt: skip
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found[side] = json.loads(done.stdout.splitlines()[-1])
        ratios = {key: found["trl"][key] / found["ours"][key] for key in found["ours"]}
        table += [{"step": method, "side": side, **numbers} for side, numbers in found.items()]
        table.append({"step": method, "side": "TRL / ours", **ratios})
        print(table[-3:], flush=True)
    size = f"{options.prompts} x {SAMPLES} x {options.tokens}"
    title = f"{Path(options.model).name}, {options.dtype}: {size}"
    report(f"{title}, {options.threads} threads, medians of {options.repeats}", table, options.out)


if __name__ == "__main__":
    main()
