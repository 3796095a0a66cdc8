"""Grading again: whole responses, and what they had said when a budget of tokens was spent.

Enters: a `Side` and reference answers. Leaves: for each response the verdict of the package's one
grader, and for each budget the verdict on its first so many tokens (words where no tokenizer was
given). A prefix is graded as a cut response: in thinking that is open, or in a frame that is not
complete, it earns nothing. The files are walked again; no text stays in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

from epistill.comparison.responses import Response, Side, walk
from epistill.comparison.sources import Source
from epistill.config import EvalSet
from epistill.metrics.words import WORD
from epistill.readers.record_files import check_unchanged, pieces_of
from epistill.records import GraderName
from epistill.tasks.files import grader_of
from epistill.tasks.grading import Grader
from epistill.thinking import begins_inside, blank_tags, split_thinking
from epistill.traces.fields import Trace
from epistill.traces.options import Options
from epistill.traces.references import Lookup, by_problem, is_cut
from epistill.traces.tabulate import split, token_counter_of

MAX_BUDGETS = 8
BATCH = 256
WHOLE = -1


def default_budgets(longest: int) -> tuple[int, ...]:
    """1,000, 2,000, 4,000, ... below the longest response; plain powers of two for short ones.

    Example:
        >>> default_budgets(9_000), default_budgets(40)
        ((1000, 2000, 4000, 8000), (1, 2, 4, 8, 16, 32))
    """
    unit = 1000 if longest > 2000 else 1
    found = [unit << i for i in range(64) if unit << i < longest]
    return tuple(found[-MAX_BUDGETS:])


def cut_points(
    texts: Sequence[str], budgets: Sequence[int], tokenizer: Any = None
) -> tuple[list[int], list[list[int]]]:
    """Lengths of texts, and where each budget cuts them.

    Args:
        texts: Responses, tags kept; a thinking tag is no word, but is tokens.
        budgets: Tokens, or words without a tokenizer.
        tokenizer: Of the `tokenizers` library.

    Returns:
        Lengths, and for each text the number of characters within each budget.

    Example:
        >>> cut_points(["<think>so 3</think> 3 it is"], [1, 3, 9])
        ([5], [[9, 21, 27]])
    """
    if tokenizer is None:
        ends = [[word.end() for word in WORD.finditer(blank_tags(text))] for text in texts]
    else:
        encoded = tokenizer.encode_batch(list(texts), add_special_tokens=False)
        ends = [[stop for _, stop in one.offsets] for one in encoded]
    cuts = [
        [len(text) if len(stops) <= budget else stops[budget - 1] for budget in budgets]
        for text, stops in zip(texts, ends, strict=True)
    ]
    return [len(stops) for stops in ends], cuts


def answer_of_prefix(trace: Trace, stop: int, *, opened: bool = False) -> str:
    """The answer part of a response that was cut after `stop` characters; "" inside thinking.

    A template that opens `<think>` in the prompt leaves only the closing tag in the response; its
    prefixes are thinking even though no tag says so.

    Example:
        >>> trace = Trace("so 3 </think> answer 3", {}, 1)
        >>> answer_of_prefix(trace, 4), answer_of_prefix(trace, 22)
        ('', 'answer 3')
    """
    whole = split(trace, opened=opened)
    inside = begins_inside(trace.text, opened_in_prompt=whole.form == "unclosed")
    return split_thinking(trace.text[:stop], opened_in_prompt=inside).answer


def references_of_run(source: Source, name: str) -> Lookup:
    """Reference answers of a run's evaluation set, from the task in its configuration."""
    from epistill.tasks.coverage import load_eval_problems

    if source.run is None:
        return {}
    for settings in source.run.config.get("evaluations", ()):
        chosen = EvalSet.model_validate(settings)
        if chosen.name == name:
            return by_problem(load_eval_problems(chosen.task, chosen.problems))
    return {}


def regrade(
    side: Side,
    name: str,
    options: Options,
    budgets: Sequence[int],
    references: Lookup,
    grader: Grader,
) -> int:
    """Grade a set of one side, whole and cut; `graded`, `prefixes` and `within` are filled in.

    Args:
        side: Read before.
        name: The set.
        options: As it was read.
        budgets: In tokens where `options.tokenizer` is given, else in words.
        references: By problem, for records that hold none.
        grader: The package's.

    Returns:
        Responses and prefixes whose grading was cut off; they count as wrong.
    """
    fallback = grader_of(r.reference for r in side.sets[name] if r.reference is not None)
    tokenizer = None if options.tokenizer is None else token_counter_of(options.tokenizer)
    files = side.files(name)
    for path in files:
        check_unchanged(side.pieces[path], pieces_of(path))
    walked = (trace for _, batch in walk(files, side.pieces) for _, trace in batch)
    # Without text there is nothing to grade, whether it loops or not.
    texts = (
        pair for pair in zip(side.sets[name], walked, strict=True) if pair[0].looping is not None
    )
    timeouts = 0
    while batch := list(islice(texts, BATCH)):
        lengths, cuts = cut_points([trace.text for _, trace in batch], budgets, tokenizer)
        tasks: list[tuple[GraderName, str, str]] = []
        places: list[tuple[Response, int]] = []
        cut: list[bool] = []
        for (response, trace), length, stops in zip(batch, lengths, cuts, strict=True):
            gold = references.get(response.problem)
            if response.reference is not None:
                gold = response.reference, response.grader or fallback
            if gold is None:
                continue
            response.within = [length <= budget for budget in budgets]
            response.prefixes = [0.0] * len(budgets)
            for column, stop in ((WHOLE, len(trace.text)), *enumerate(stops)):
                answer = answer_of_prefix(trace, stop, opened=options.opened)
                # Grading what is still thinking would only say that there is no answer.
                if column == WHOLE or (answer and not response.within[column]):
                    tasks.append((gold[1], gold[0], answer))
                    places.append((response, column))
                    cut.append(column != WHOLE or is_cut(trace))
        for (response, column), grade in zip(places, grader.grade(tasks, cut=cut), strict=True):
            timeouts += grade.status == "timeout"
            if column == WHOLE:  # comes before its prefixes; one within the budget is the whole
                response.graded, response.answer = grade.score, grade.extracted
                response.prefixes = [grade.score * inside for inside in response.within]
            else:
                response.prefixes[column] = grade.score
    return timeouts
