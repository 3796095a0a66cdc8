"""SFT on traces of a file, and on edited ones: the counterfactuals of `epistill edit` as a method.

Enters: a method's `TraceSource`, and traces that were sampled or the name of a file. Leaves: graded
rollouts as the loop learns them. Their log-probs are the student's own at the start, since nobody
sampled these words; only responses whose answer is right are kept, as among sampled traces.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from epistill.axes import TraceSource
from epistill.config import RunConfig
from epistill.errors import EpistillError
from epistill.json_files import read_jsonl
from epistill.metrics.text_edits import TextEdits
from epistill.records import GradedRollout, Message, Problem, Rollout
from epistill.rollouts.model import LanguageModel
from epistill.rollouts.prompts import render_prompt
from epistill.rollouts.scoring import score_completions
from epistill.seeds import named_random
from epistill.tasks.answers import framed_answer
from epistill.tasks.grading import Grader
from epistill.thinking import OPEN, split_thinking


def traces_of_file(
    student: LanguageModel, config: RunConfig, wanted: TraceSource, grader: Grader
) -> list[GradedRollout]:
    """The first `wanted.count` right responses of a file that `epistill edit` or `eval` wrote.

    Raises:
        EpistillError: A record without what is needed, words in it that a rule forced, or too few
            right responses that fit the model.
    """
    path = Path(wanted.file or "")
    if not path.is_file():
        raise EpistillError(f"method.traces.file: no file {path}; expected traces (JSONL)")
    found = [
        _trace(row, f"{path} row {number}", student, config)
        for number, row in enumerate(read_jsonl(path), 1)
        if not row.get("truncated")
    ]
    grades = grader.grade(
        [
            (problem.grader, problem.answer, split_thinking(r.text, opened_in_prompt=opened).answer)
            for problem, r, opened in found
        ],
        cut=[False] * len(found),
    )
    limit = student.max_positions
    kept = [
        GradedRollout(problem, rollout, grade, opened)
        for (problem, rollout, opened), grade in zip(found, grades, strict=True)
        if grade.score == 1.0
        and (limit is None or len(rollout.prompt_ids) + len(rollout.completion_ids) <= limit)
    ][: wanted.count]
    if len(kept) < wanted.count:
        raise EpistillError(
            f"{path}: {len(kept)} right responses that fit the model; expected "
            f"method.traces.count = {wanted.count}; lower it or add traces"
        )
    return _scored(kept, student, config)


def _trace(
    row: dict[str, Any], where: str, student: LanguageModel, config: RunConfig
) -> tuple[Problem, Rollout, bool]:
    text = row.get("response") or row.get("text")
    question, reference = row.get("question"), row.get("reference")
    if not all(isinstance(value, str) for value in (text, question, reference)):
        raise EpistillError(
            f"{where} has no question, response or reference; expected the plain form that "
            "`epistill edit` writes"
        )
    if row.get("n_forced"):
        raise EpistillError(
            f"{where} has {row['n_forced']} tokens that a rule decided, and nobody sampled them; "
            "to learn them all the same, write the file anew with `epistill edit`"
        )
    problem = Problem(
        id=str(row.get("problem_id") or question),
        messages=(Message("user", str(question)),),
        answer=str(reference),
        grader=row.get("grader") or "math",
    )
    prompt = render_prompt(student.tokenizer, problem.messages, thinking=config.sampling.thinking)
    text = str(text)
    if prompt.opens_thinking:  # the tag is the prompt's
        text = text.lstrip().removeprefix(OPEN)
    elif row.get("opened_thinking") and OPEN not in text:
        text = OPEN + text
    blank = Rollout(problem.id, int(row.get("sample") or 0), prompt.ids, (0,), (0.0,), "eos", text)
    return problem, said(text, student, blank), prompt.opens_thinking


def edited_traces(
    traces: Sequence[GradedRollout], rules: Sequence[str], student: LanguageModel, config: RunConfig
) -> list[GradedRollout]:
    """The same traces with their reasoning edited by `metrics.text_edits`."""
    edits = TextEdits(rules, framed_answer)
    changed = []
    for i, item in enumerate(traces):
        text, _ = edits.apply(
            item.rollout.text,
            item.grade.extracted,
            named_random("edited_traces", config.seed, i),
            opened_in_prompt=item.opened_thinking,
        )
        changed.append(replace(item, rollout=said(text, student, item.rollout)))
    return _scored(changed, student, config)


def said(text: str, student: LanguageModel, rollout: Rollout) -> Rollout:
    """The rollout, saying this text to its end; nobody sampled it, so its log-probs are NaN."""
    end = student.tokenizer.eos_token_id
    ends = [end if end in student.eos_ids else min(student.eos_ids)]
    ids = (*student.tokenizer.encode(text, add_special_tokens=False), *ends)
    return replace(
        rollout, completion_ids=ids, logprobs=(math.nan,) * len(ids), entropies=None, text=text
    )


def _scored(
    traces: Sequence[GradedRollout], student: LanguageModel, config: RunConfig
) -> list[GradedRollout]:
    scores = score_completions(
        student,
        [item.rollout.prompt_ids for item in traces],
        [item.rollout.completion_ids for item in traces],
        temperature=config.sampling.temperature or 1.0,
        microbatch_tokens=config.most_microbatch_tokens,
    )
    return [
        replace(item, rollout=replace(item.rollout, logprobs=tuple(one.log_probs.tolist())))
        for item, one in zip(traces, scores, strict=True)
    ]
