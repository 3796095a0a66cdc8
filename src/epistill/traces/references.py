"""What a response is graded against: a field of its record, or a file of problems.

Enters: records, or the name of a file of problems. Leaves: reference answers with the field or file
that has them. It grades nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from ahocorasick_rs import AhoCorasick

from epistill.errors import EpistillError
from epistill.readers.record_files import read_records
from epistill.readers.text_records import Unusable, plain_name
from epistill.records import GraderName, Problem
from epistill.tasks.answers import extract_answer
from epistill.tasks.files import ANSWER_FIELDS, grader_of, load_problems, reference_answer
from epistill.tasks.linear_patterns import utf8
from epistill.thinking import SplitResponse
from epistill.traces import fields
from epistill.traces.fields import OTHER_FILTER, Trace
from epistill.traces.file_counts import Reading
from epistill.traces.problem_keys import ProblemKey, filter_of

REFERENCE_FIELDS, EXTRACTED_FIELDS = fields.NAMES["reference"], fields.NAMES["extracted"]
_LIMITS = ("max_new_tokens", "max_tokens", "max_completion_tokens", "max_gen_toks")
LIMIT_FIELDS = _LIMITS + tuple(
    f"{place}.{name}"
    for place in ("sampling", "sampling_params", "generation_config", "generation_kwargs", "params")
    for name in _LIMITS
)
_VERDICTS = {"", "0", "1", "chosen", "rejected", *fields.VERDICT_WORDS}
PEEKED = 1_000  # records that decide between letters and mathematics
Lookup = Mapping[str, tuple[str, GraderName]]


@dataclass(frozen=True, slots=True)
class GradeOptions:
    """What to grade and against what.

    Attributes:
        response_field, problem_field, opened: As for `measure`.
        answer_field: Of the reference answer; None takes what `tasks.files` knows.
        problems: File of problems to look answers up in, by id, then by question.
        grader: None takes "choice" where the references are letters, else "math".
        label_field: Of an older verdict to compare with; None looks through LABEL_FIELDS.
        time_limit_s, workers: Of the grader; seconds of processor time.
    """

    response_field: str | None = None
    problem_field: str | None = None
    opened: bool = False
    answer_field: str | None = None
    problems: str | None = None
    grader: GraderName | None = None
    label_field: str | None = None
    time_limit_s: float = 5.0
    workers: int = 2


def look_up(source: str) -> Lookup:
    """Answers and graders of a file's problems, by id and by question."""
    return by_problem(load_problems(source).problems)


def by_problem(problems: Sequence[Problem]) -> Lookup:
    """Answers and graders by problem id and by question."""
    found: dict[str, tuple[str, GraderName]] = {}
    for problem in problems:
        question = fields.one_spelling(problem.messages[-1].content)
        found.setdefault(question, (problem.answer, problem.grader))
    for problem in problems:  # an id wins over a question that reads like it
        found[fields.one_spelling(problem.id)] = (problem.answer, problem.grader)
    return found


def records_of(
    path: Path, reading: Reading, key: ProblemKey
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Records with their row in the file; what else stands there is counted as skipped."""
    for number, record in read_records(path):
        reading.rows, reading.records = number, reading.records + 1
        if not isinstance(record, Unusable) and filter_of(record) == key.filter:
            yield number, record
            continue
        reading.read += 1
        reading.skip(str(record) if isinstance(record, Unusable) else OTHER_FILTER, number)


def choose_grader(path: Path, options: GradeOptions, key: ProblemKey) -> GraderName:
    """The grader "choice" where the references of the first records are such, else "math"."""
    first = islice(records_of(path, Reading(), key), PEEKED)
    records = (Trace("", record, row) for row, record in first)
    answers = [a for r in records if (a := reference_in(r, options.answer_field)[0]) is not None]
    return grader_of(answers) if answers else "math"


def is_evaluation(record: Mapping[str, Any]) -> bool:
    """This package's own evaluation record: its `answer` is what the model answered."""
    return "n_markers" in record and "status" in record


def reference_in(trace: Trace, answer_field: str | None = None) -> tuple[str | None, str | None]:
    """The reference answer beside a response and its field; None and why there is none."""
    try:
        return _reference_in(trace, answer_field)
    except EpistillError as error:
        return None, str(error)


def _reference_in(trace: Trace, answer_field: str | None) -> tuple[str | None, str | None]:
    record, shape = trace.record, trace.shape or fields.shape_of(trace.record)
    metrics = record.get("metrics")  # whose values stand beside it under their names
    metrics = metrics if isinstance(metrics, dict | list) else ()
    sure = (n for n in fields.present(shape, REFERENCE_FIELDS) if n not in metrics)
    for name in sure if answer_field is None else (answer_field,):
        if (value := _one(trace.first((name,))[0])) is not None:
            # A worked solution that ends in GSM8K's `#### 18` is read as such.
            return reference_answer({"question": "", "answer": value})[0], name
    if answer_field is not None or is_evaluation(record):
        return None, None
    named = {name: trace.first((name,))[0] for name in fields.present(shape, ANSWER_FIELDS)}
    named = {name: value for name, value in named.items() if value is not None}
    answer, _ = reference_answer({**record, **{plain_name(n): v for n, v in named.items()}})
    if answer is not None:
        return answer, "reward_model" if "reward_model" in record else next(iter(named))
    options, right = fields.get(record, "doc.choices"), _one(fields.get(record, "doc.gold_index"))
    if isinstance(options, list) and isinstance(right, int) and 0 <= right < len(options):
        return str(options[right]), "doc.choices"
    mapping = record.get("output_mapping")  # HELM: of letters to texts
    letters = {str(v): k for k, v in mapping.items()} if isinstance(mapping, dict) else {}
    for name in fields.present(shape, fields.NAMES["last_reference"]):
        value = _one(trace.first((name,))[0])
        value = letters.get(value, value) if isinstance(value, str) else value
        if value is None or isinstance(value, bool) or (name == "label" and not _is_answer(value)):
            continue
        return reference_answer({"question": "", "answer": value})[0], name
    return None, None


def _one(value: Any) -> Any:
    """The only entry of a list, as a numpy array or a list of right answers is written."""
    if isinstance(value, list) and value and all(isinstance(v, Mapping) for v in value):  # HELM
        right = [v for v in value if "correct" in (v.get("tags") or ())]
        value = [fields.get(v, "output.text") for v in right] or None
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _is_answer(label: Any) -> bool:
    """Whether a label is a reference answer, not a verdict."""
    return isinstance(label, str) and label.strip().lower() not in _VERDICTS


def final_answer(trace: Trace, part: SplitResponse) -> str | None:
    """The answer that was read from a response, as its record says, else as a grader reads it."""
    value, _ = trace.first(EXTRACTED_FIELDS)
    if value is None and is_evaluation(trace.record):
        value = trace.record.get("answer")
        return None if value is None else str(value)
    return str(value) if isinstance(value, str | int | float) else extract_answer(part.answer)


def is_graded(trace: Trace) -> bool:
    """Whether the record says which final answer was read, be it none."""
    shape = trace.shape or fields.shape_of(trace.record)
    return bool(fields.present(shape, EXTRACTED_FIELDS)) or is_evaluation(trace.record)


def grader_in(trace: Trace, names: Sequence[str] = ("grader",)) -> GraderName | None:
    """The grader that a record names; None where it names none that there is."""
    named, _ = trace.first(names)
    return named if named in ("math", "choice", "exact") else None


def reference_of(
    trace: Trace, options: GradeOptions, lookup: Lookup | None
) -> tuple[str | None, GraderName | None, str]:
    """The reference answer, the grader that comes with it, and where it is from (or is missing)."""
    if lookup is None:
        reference, name = reference_in(trace, options.answer_field)
        missing = "reference answer" if options.answer_field is None else options.answer_field
        return reference, grader_in(trace), name or f"no {missing}"
    question = fields.question_of(trace)[0]
    known = (
        fields.problem_of(trace, options.problem_field)[0],
        fields.problem_of(trace)[0] if options.problem_field == fields.BY_STEM else None,
        question and fields.one_spelling(question),
    )
    key = next((key for key in known if key and key in lookup), None) or _asked(known[2], lookup)
    reference, grader = lookup[key] if key is not None else (None, None)
    source = str(options.problems)
    return reference, grader, source if reference is not None else f"problem not in {source}"


def _asked(prompt: str | None, lookup: Lookup) -> str | None:
    """The question that ends last in a rendered prompt, the longest of several that do."""
    questions = tuple(key for key in lookup if " " in key)
    if not prompt or not questions:
        return None
    found = _finder(questions).find_matches_as_indexes(utf8(prompt), overlapping=True)
    last = max(found, key=lambda hit: (hit[2], hit[2] - hit[1]), default=None)
    return None if last is None else questions[last[0]]


@lru_cache(maxsize=2)
def _finder(questions: tuple[str, ...]) -> AhoCorasick:
    """One pass over a prompt for all questions: one after another they take 170 times as long."""
    return AhoCorasick([utf8(question) for question in questions])


def is_cut(trace: Trace) -> bool:
    """Whether a response ended at a limit: it is said, or it has as many tokens as were allowed."""
    said, _ = fields.cut_of(trace)
    if said is not None:
        return said
    tokens, limit = fields.tokens_of(trace)[0], trace.first(LIMIT_FIELDS)[0]
    return tokens is not None and isinstance(limit, int) and 0 < limit <= tokens
