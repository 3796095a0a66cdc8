"""Distillation losses with a 152k vocabulary, from hidden states: ours beside TRL's paths.

    python benchmarks/losses.py [--tokens 2048] [--repeats 5] [--threads 2] [--out FILE.json]

Both get hidden states [N, H], the student's head (with gradient) and the teacher's; both return the
mean loss and the gradients of hidden states and head. Each runs in a process of its own, in turn,
so that its peak memory is its own: what it needs beyond the inputs, the two gradients included.
"floor" is the time of the head's four matrix products alone.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
from pathlib import Path

import torch
from common import report, timed

H, V = 1024, 151_936


def inputs(tokens: int):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    hidden = draw(tokens, H).requires_grad_()
    weight = (draw(V, H) * H**-0.5).requires_grad_()
    teacher_hidden = hidden.detach() + 0.3 * draw(tokens, H)
    return hidden, weight, teacher_hidden, weight.detach().clone()


def ours(options):
    from epistill.objective import distillation_nats
    from epistill.objective.fused import head_loss
    from epistill.objective.products import linear

    def loss(hidden, weight, teacher_hidden, teacher_weight):
        ids = torch.zeros(len(hidden), dtype=torch.long)

        def of_chunk(logits, part):
            teacher = linear(teacher_hidden[part], teacher_weight)
            return distillation_nats(logits, teacher, ids[part], **options).sum() / len(ids)

        return head_loss(hidden, weight, None, of_chunk)

    return loss


def trl(options):
    from trl.experimental.sdft import loss_utils

    def loss(hidden, weight, teacher_hidden, teacher_weight):
        student = hidden @ weight.T
        with torch.no_grad():
            teacher = teacher_hidden @ teacher_weight.T
        if "top_k" in options:
            per_token = loss_utils.compute_topk_self_distillation_loss(
                student,
                teacher,
                distillation_topk=options["top_k"],
                distillation_alpha=options["alpha"],
                distillation_add_tail=True,
            )
        else:
            per_token = loss_utils.compute_full_logit_self_distillation_loss(
                student, teacher, distillation_alpha=options["alpha"]
            )
        return per_token.mean()

    return loss


CASES = {
    "JSD, full vocabulary": {"alpha": 0.5},
    "forward KL, full vocabulary": {"alpha": 0.0},
    "JSD, top 100 + tail": {"alpha": 0.5, "top_k": 100, "add_tail": True},
}
BARS = {"JSD, full vocabulary": (2, 10), "JSD, top 100 + tail": (1, 5)}


def child(case: str, who: str, tokens: int, threads: int) -> None:
    """One measurement: seconds, loss and peak memory, as JSON on stdout."""
    torch.set_num_threads(threads)
    given = inputs(tokens)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    loss = {"ours": ours, "trl": trl}[who](CASES[case])
    value = 0.0

    def step():
        nonlocal value
        result = loss(*given)
        result.backward()
        value = result.item()

    seconds = timed(step)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"seconds": seconds, "mib": (peak - before) / 1024, "loss": value}))


def floor(tokens: int, threads: int) -> float:
    """Seconds of the products that no implementation can avoid."""
    torch.set_num_threads(threads)
    hidden, weight, teacher_hidden, teacher_weight = (t.detach() for t in inputs(tokens))
    rows, buffer = 256, torch.empty(256, V)

    def products():
        for start in range(0, tokens, rows):
            part = slice(start, start + rows)
            torch.mm(hidden[part], weight.T, out=buffer[: len(hidden[part])])
            torch.mm(teacher_hidden[part], teacher_weight.T, out=buffer[: len(hidden[part])])
            d = buffer[: len(hidden[part])]
            torch.mm(d, weight)
            torch.mm(d.T, hidden[part])

    products()
    return statistics.median(timed(products) for _ in range(3))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", nargs=2)
    options = parser.parse_args()
    if options.child:
        child(*options.child, options.tokens, options.threads)
        return
    least = floor(options.tokens, options.threads)
    rows = []
    for case in CASES:
        found = {"ours": [], "trl": []}
        for _ in range(options.repeats):
            for who in found:
                command = [sys.executable, __file__, "--child", case, who]
                command += ["--tokens", str(options.tokens), "--threads", str(options.threads)]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                found[who].append(json.loads(done.stdout.splitlines()[-1]))
        median = {
            who: {k: statistics.median(run[k] for run in runs) for k in ("seconds", "mib", "loss")}
            for who, runs in found.items()
        }
        ours_, trl_ = median["ours"], median["trl"]
        rows.append(
            {
                "what": case,
                "ours s": ours_["seconds"],
                "TRL s": trl_["seconds"],
                "faster": trl_["seconds"] / ours_["seconds"],
                "ours MiB": ours_["mib"],
                "TRL MiB": trl_["mib"],
                "smaller": trl_["mib"] / ours_["mib"],
                "bars": "/".join(map(str, BARS.get(case, ("-", "-")))),
                "times floor": ours_["seconds"] / least,
                "loss gap": abs(ours_["loss"] - trl_["loss"]),
            }
        )
    title = f"losses, N={options.tokens}, H={H}, V={V}, fp32, {options.threads} threads"
    report(title, rows, options.out)


if __name__ == "__main__":
    main()
