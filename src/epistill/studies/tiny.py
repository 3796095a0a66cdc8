"""A recipe at toy size: the same file, with models and data small enough for a laptop, offline.

    epistill study recipes/math-ds-7b --tiny --out DIR

Enters: a `StudySpec` with architectures. Leaves: the same study with two-layer models of the same
family, three generated problems of the same kind and two steps; arms, methods, prompts, sampling
and graders stay as they are. The models are random, then shown a right and a wrong response to each
problem, and the right one again under a context, until they give both: of only wrong responses no
method would learn anything. The numbers of such a run mean nothing; that it runs does.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from epistill.axes import Context
from epistill.config import FileTask, SamplingConfig, TaskConfig
from epistill.errors import EpistillError
from epistill.records import GraderName, Problem
from epistill.rollouts.engine_settings import IN_PROCESS
from epistill.seeds import derive_seed, named_random
from epistill.store import write_jsonl
from epistill.studies.hardware import Architecture
from epistill.studies.spec import StudySpec
from epistill.thinking import CLOSE, OPEN, split_thinking

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PROBLEMS = 3
STEPS = 2
SAMPLES = 4
MAX_NEW_TOKENS = 24
TRACES = 6
MOST_LESSONS = 400
NEAR = 1.2  # of the loss that cannot be learned away
LESSON_RATE = 1e-2
VOCABULARY = 400
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
)
# How the families' templates treat thinking; `Architecture.thinking` names them.
_THINKING = {
    "optional": "{% if enable_thinking is defined and enable_thinking is false %}"
    "<think>\n\n</think>\n\n{% endif %}",
    "opened": "<think>\n",
    "none": "",
}
_SIZES = {
    "steps": STEPS,
    "problems_per_step": PROBLEMS,
    "samples_per_problem": SAMPLES,
    "updates_per_batch": 1,
    "warmup_steps": 1,
    "microbatch_tokens": 4096,
    "checkpoint_every": 1,
    "device": "cpu",
    "dtype": "float32",
    "attention": None,
}


def tiny_study(spec: StudySpec, out: Path) -> StudySpec:
    """Make the models and files of a toy-sized study and point its settings at them.

    Args:
        spec: The study.
        out: Its folder; models and data lie in `tiny/` there.

    Raises:
        EpistillError: A model without an architecture, or a task this has no small version of.
    """
    folder = out.resolve() / "tiny"
    folder.mkdir(parents=True, exist_ok=True)
    task = _task(spec.run["task"], folder)
    thinking = SamplingConfig.model_validate(spec.run.get("sampling", {})).thinking
    models = {
        name: _model(name, shape, task, thinking, folder)
        for name, shape in spec.architectures.items()
    }

    def small(settings: dict[str, Any], **changes: Any) -> dict[str, Any]:
        """Settings of a run, an evaluation or a probe."""
        found = {**settings, **changes}
        if (name := found.get("model")) is not None:
            if name not in models:
                raise EpistillError(
                    f"--tiny has no shape for model {name!r}; expected [architectures.{name!r}] in "
                    "the study"
                )
            found["model"] = models[name]
        if "task" in found:
            found["task"] = _task(found["task"], folder).model_dump()
        for name in ("sampling", "eval_sampling"):
            if found.get(name) is not None:
                found[name] = {**found[name], "max_new_tokens": MAX_NEW_TOKENS}
        return found

    def sets(evaluations: Any) -> Any:
        size = {"problems": PROBLEMS, "samples": 2, "curve_problems": PROBLEMS}
        return None if evaluations is None else [small(e, **size) for e in evaluations]

    def arm(settings: dict[str, Any]) -> dict[str, Any]:
        changes = {k: v for k, v in settings["changes"].items() if k not in _SIZES}
        own, chosen = settings["method_settings"], spec.config_of(by_id[settings["id"]], 0).method
        if chosen.traces is not None:
            own = {**own, "traces": {**own.get("traces", {}), "count": TRACES}}
        coverage = settings["coverage"] and min(settings["coverage"], PROBLEMS)
        found = {"changes": small(changes), "method_settings": own, "coverage": coverage}
        return {**settings, **found, "evaluations": sets(settings["evaluations"])}

    def probe(settings: dict[str, Any]) -> dict[str, Any]:
        size = {"problems": PROBLEMS, "samples": SAMPLES, "accuracy": (0.0, 1.0)}
        candidates = settings["candidates"] and PROBLEMS
        there = {name: _SIZES[name] for name in ("device", "dtype", "attention")}
        return small(settings, **there, engine=IN_PROCESS, candidates=candidates, **size)

    by_id = {one.id: one for one in spec.arms}
    whole = spec.model_dump()
    return StudySpec.model_validate(
        {
            **whole,
            "name": f"{spec.name}-tiny",
            "seeds": spec.seeds[:1],
            "run": {**small(spec.run), **_SIZES},
            "evaluations": sets(whole["evaluations"]),
            "arms": [arm(one) for one in whole["arms"]],
            "probes": [probe(one) for one in whole["probes"]],
            "resources": {},
            "note": "Toy size: random two-layer models, three generated problems, two steps. "
            "It shows that the recipe runs; its numbers mean nothing.",
        }
    )


def _task(settings: Any, folder: Path) -> FileTask:
    """The same task with a small file of the same kind."""
    task = TypeAdapter[TaskConfig](TaskConfig).validate_python(settings)
    if not isinstance(task, FileTask) or task.grader is None or task.grader == "exact":
        raise EpistillError(
            f"--tiny has no small version of task {settings!r}; expected a file with grader math, "
            "choice or code"
        )
    path = folder / f"{task.grader}.jsonl"
    if not path.is_file():
        write_jsonl(path, [_record(task.grader, i) for i in range(PROBLEMS)])
    return task.model_copy(update={"path": str(path)})


def _record(grader: GraderName, index: int) -> dict[str, Any]:
    """One record with the columns of the real data."""
    rng = named_random("tiny", grader, index)
    left, right = rng.randrange(1, 5), 5 * index + rng.randrange(1, 5)
    match grader:
        case "choice":
            a, b = (left + right, right) if index % 2 else (left, left + right)
            return {
                "idx": index,
                "kind": "mcq",
                "prompt": f"Which is {left + right}?\n\nA: {a}\nB: {b}\n",
                "answer": "A" if index % 2 else "B",
                "system": "Answer with the letter in <answer> tags.",
            }
        case "code":
            test = {"input": "", "output": str(left + right), "testtype": "stdin"}
            return {
                "question_id": f"tiny_{index}",
                "question_content": f"Print {left} plus {right}.",
                "contest_date": "2025-03-01T00:00:00",
                "starter_code": "",
                "public_test_cases": json.dumps([test]),
                "private_test_cases": json.dumps([test]),
                "metadata": "{}",
            }
        case _:
            return {"id": index, "prompt": f"{left} plus {right}?", "answer": str(left + right)}


def _responses(problem: Problem, shape: Architecture, thinking: bool | None) -> tuple[str, str]:
    """A right and a wrong response, in the family's form."""
    right, wrong, frame = problem.answer, "0", r"\boxed{{{}}}"
    if problem.grader == "choice":
        wrong, frame = "B" if right == "A" else "A", "<answer>\n{}\n</answer>"
    elif problem.grader == "code":
        right, frame = json.loads(right)["tests"][0]["output"], "```python\nprint({})\n```"
    thoughts = {"opened": "wait, maybe\n</think>\n\n", "none": ""}.get(
        shape.thinking, "" if thinking is False else "<think>\nwait, maybe\n</think>\n\n"
    )
    return thoughts + frame.format(right), thoughts + frame.format(wrong)


def _model(
    name: str, shape: Architecture, task: FileTask, thinking: bool | None, folder: Path
) -> str:
    """A directory with a two-layer model of the family; made once."""
    target = folder / name.replace("/", "--")
    if (target / "model.safetensors").is_file():  # written last
        return str(target)
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    from epistill.rollouts.load_model import load_tokenizer
    from epistill.rollouts.prompts import render_prompt
    from epistill.tasks.coverage import load_eval_problems
    from epistill.teacher.context import teacher_messages

    if not sys.stderr.isatty():
        disable_progress_bar()
    problems = load_eval_problems(task, PROBLEMS)
    lessons = [(p, _responses(p, shape, thinking)) for p in problems]
    texts = [text for p, both in lessons for text in (p.messages[-1].content, *both)]
    tokenizer = _tokenizer(texts, shape)
    grouped = shape.num_key_value_heads < shape.num_attention_heads
    small = {
        **shape.for_transformers(),
        "num_attention_heads": 4,
        "num_key_value_heads": 2 if grouped else 4,
        "head_dim": 8,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 2048,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if shape.sliding_window is not None:
        small["sliding_window"] = 64
    torch.manual_seed(derive_seed("tiny_model", name))
    network = AutoModelForCausalLM.from_config(AutoConfig.for_model(**small))
    # Read back, a family's tokenizer may cut texts in its own way: the lessons are cut so too.
    tokenizer.save_pretrained(target)
    network.config.save_pretrained(target)
    tokenizer = load_tokenizer(str(target), name, False)
    rows: list[tuple[list[int], list[int]]] = []
    end = tokenizer.eos_token_id
    assert isinstance(end, int)
    for problem, (right, wrong) in lessons:
        shown = f"{OPEN}\n{right}" if shape.thinking == "opened" else right
        guided = [
            (teacher_messages(problem, text, Context(source="sibling")), right)
            for text in (shown, split_thinking(shown).answer)
        ]
        for messages, response in ((problem.messages, right), (problem.messages, wrong), *guided):
            prompt = render_prompt(tokenizer, messages, thinking=thinking).ids
            answer = tokenizer.encode(response, add_special_tokens=False)
            rows.append((list(prompt), [*answer, end]))
    _teach(network, rows)
    network.save_pretrained(target)
    return str(target)


def _teach(network: Any, rows: list[tuple[list[int], list[int]]]) -> None:
    """Cross-entropy on (prompt, response) pairs, all at once, until little is left to learn.

    Half of the rows share their prompt with one of another response, which leaves log 2 nats each.
    """
    import torch

    longest = max(len(p) + len(r) for p, r in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    labels = torch.full((len(rows), longest), -100)
    for i, (prompt, response) in enumerate(rows):
        end = len(prompt) + len(response)
        ids[i, :end] = torch.tensor([*prompt, *response])
        labels[i, len(prompt) : end] = torch.tensor(response)
    floor = len(rows) / 2 * math.log(2) / sum(len(r) for _, r in rows)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LESSON_RATE)
    network.train()
    for _ in range(MOST_LESSONS):
        optimizer.zero_grad()
        loss = network(input_ids=ids, labels=labels, use_cache=False).loss
        if loss.item() < NEAR * floor:
            break
        loss.backward()
        optimizer.step()
    network.eval()


def _tokenizer(texts: list[str], shape: Architecture) -> PreTrainedTokenizerFast:
    """Byte-level BPE of the problems' own words, with the family's way of opening a response."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(  # pyright: ignore[reportAttributeAccessIssue]
        add_prefix_space=False
    )
    core.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    core.add_tokens([AddedToken(tag, special=False) for tag in (OPEN, CLOSE)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=f"{_CHAT}{_THINKING[shape.thinking]}{{% endif %}}",
    )
