"""Problems from files people already have: JSONL, parquet, Hugging Face datasets.

The known shapes, by their columns:

    prompt + reward_model   what RL trainers use: `prompt` a list of messages or a JSON string of
                            one, `reward_model` a dict or a JSON string with `ground_truth`
    prompt + answer (+ system, kind)    multiple choice as in SciKnowEval
    question + answer       GSM8K (`#### 18` ends the solution), or plain
    problem + answer (+ solution)       plain
    problem or prompt + solution        MATH (an answer in a frame ends it), or TRL's DeepMath-103K
                                        (it is the answer)
    question_content + public_test_cases    LiveCodeBench

Several rows of one problem (a file that repeats it to fill a batch) are one problem.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from epistill.errors import EpistillError, first_line
from epistill.readers.record_files import SUFFIXES, near_file, read_records
from epistill.readers.text_records import Unusable
from epistill.records import GraderName, Message, Problem
from epistill.tasks.linear_patterns import linear_pattern
from epistill.tasks.livecodebench import is_livecodebench, read_livecodebench
from epistill.tasks.math_grading import read_reference, reference_text

QUESTION_FIELDS = ("question", "problem", "prompt", "input", "instruction")
ANSWER_FIELDS = ("answer", "final_answer", "target", "ground_truth", "expected_answer")
SOLUTION_FIELDS = ("solution", "rationale", "reasoning", "explanation")
ID_FIELDS = ("problem_id", "id", "idx", "unique_id")
EXPECTED = (
    "expected `prompt` with `reward_model`, or one of "
    f"{', '.join(QUESTION_FIELDS)} with one of {', '.join(ANSWER_FIELDS)}, "
    "or a `solution` that ends in an answer"
)
HUB_FILE = "hf://datasets/"
GENERATED = "star-search"  # a task that may have been meant
_GSM8K_END = linear_pattern(r"####[ \t]*([^\n]+)\s*$")
_FORMULA = linear_pattern(r"\$+[^$\n]+\$+")
_CHOICE = linear_pattern(r"\(?[A-J]\)?")


@dataclass(frozen=True, slots=True)
class TaskFile:
    """What was read: rows, distinct problems in order, the grader chosen for all of them."""

    source: str
    rows: int
    problems: tuple[Problem, ...]
    grader: GraderName


def load_problems(
    source: str,
    *,
    split: str = "train",
    grader: GraderName | None = None,
    prompt: str | None = None,
    since: str | None = None,
) -> TaskFile:
    """Read problems from a file, a folder or a dataset name.

    Args:
        source: A .jsonl/.json/.parquet file, a local folder that `datasets` can load, or a name on
            the hub (`org/name`, `org/name:config`, or one file `hf://datasets/org/name/file.jsonl`).
        split: Of a dataset; files have none.
        grader: Overrides the grader that the records suggest.
        prompt: What is asked instead of a record's own text, which goes where `{question}` stands.
        since: Leave out records whose `contest_date` is before this day.

    Raises:
        EpistillError: Nothing there, no rows, columns missing, or a record that cannot be read.
    """
    records = [r for r in _read_records(source, split) if not _is_older(source, r, since)]
    if not records:
        raise EpistillError(f"{source}: no rows; expected at least one problem")
    distinct: dict[tuple[Message, ...], Problem] = {}
    used_ids: set[str] = set()
    chosen = grader or _choose_grader(records)
    for number, record in enumerate(records):
        messages, answer, solution, identity = _parse(source, number, record)
        if prompt is not None:
            asked = prompt.replace("{question}", messages[-1].content)
            messages = (*messages[:-1], Message(messages[-1].role, asked))
        if (known := distinct.get(messages)) is not None:
            if known.answer != answer:
                raise EpistillError(
                    f"{source}: row {number} repeats problem {known.id!r} with another answer "
                    f"({answer!r}, before {known.answer!r}); remove one"
                )
            continue
        if identity in used_ids:
            identity = f"{identity}-row{number}"
        used_ids.add(identity)
        meta = MappingProxyType({"source": source, "row": number})
        distinct[messages] = Problem(identity, messages, answer, chosen, solution, meta)
    return TaskFile(source, len(records), tuple(distinct.values()), chosen)


def _read_records(source: str, split: str) -> list[Mapping[str, Any]]:
    if source.startswith(HUB_FILE):
        source = _from_hub(source)
    path = Path(source).expanduser()
    if path.suffix not in SUFFIXES and not path.is_file():
        return _read_dataset(source, path, split)
    if not path.is_file():
        raise EpistillError(
            f"no file {source!r}; expected a .jsonl or .parquet file, a folder, or a dataset "
            f"name; check the path{near_file(Path(source), GENERATED)}"
        )
    records: list[Mapping[str, Any]] = []
    for number, record in read_records(path) if path.stat().st_size else ():
        if isinstance(record, Unusable):
            raise EpistillError(
                f"{path}: line {number} is {record}; expected one JSON object per line, an array "
                "of them, CSV or parquet"
            )
        records.append(record)
    return records


def _from_hub(source: str) -> str:
    """Download one file of a data set on the hub; the path of the copy."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    from epistill.hub import hub_or_cache

    parts = source.removeprefix(HUB_FILE).split("/", 2)
    if len(parts) < 3:
        raise EpistillError(f"{source!r} names no file; expected {HUB_FILE}org/name/file.jsonl")
    try:
        with hub_or_cache():
            return hf_hub_download("/".join(parts[:2]), parts[2], repo_type="dataset")
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise EpistillError(
            f"{source!r} could not be downloaded ({first_line(error)}); check the "
            "name and the network, or download it and give its path"
        ) from error


def _is_older(source: str, record: Mapping[str, Any], since: str | None) -> bool:
    if since is None:
        return False
    date = record.get("contest_date")
    if date is None:
        raise EpistillError(
            f"{source}: problems since {since} are asked for, but a record has no `contest_date`; "
            "leave `since` out"
        )
    return str(date)[:10] < since


def _read_dataset(source: str, path: Path, split: str) -> list[Mapping[str, Any]]:
    import datasets

    from epistill.hub import hub_or_cache

    name, _, config = source.partition(":")
    named = (str(path), None) if path.is_dir() else (name, config or None)
    try:
        with hub_or_cache(wanted=not path.is_dir()):
            return [dict(row) for row in datasets.load_dataset(*named, split=split)]
    except (ValueError, OSError, RuntimeError) as error:  # RuntimeError: it has a script
        raise EpistillError(
            f"no file or folder {source!r}, and as a dataset name with split {split!r} it could "
            f"not be loaded: {first_line(error)}; expected a .jsonl or .parquet file, a folder, or "
            f"such a name{near_file(Path(source), GENERATED)}"
        ) from error


def _parse(
    source: str, number: int, record: Mapping[str, Any]
) -> tuple[tuple[Message, ...], str, str | None, str]:
    """(messages, answer, solution, id) of one record."""
    if is_livecodebench(record):
        question, answer = read_livecodebench(f"{source}: row {number}", record)
        return (Message("user", question),), answer, None, str(record.get("question_id", number))
    extra = _as_mapping(record.get("extra_info")) or {}
    try:
        answer, worked = reference_answer(record)
    except EpistillError as error:
        raise EpistillError(f"{source}: row {number}: {error}; give one answer") from error
    solution = worked or _first(record, SOLUTION_FIELDS) or _first(extra, SOLUTION_FIELDS)
    if answer is None and isinstance(solution, str):
        answer = answer_of_solution(solution)
    question = _first(record, QUESTION_FIELDS)
    missing = [n for n, v in (("question", question), ("answer", answer)) if v in (None, "")]
    if missing:
        raise EpistillError(
            f"{source}: row {number} has no {' and no '.join(missing)} (columns found: "
            f"{', '.join(sorted(record)) or 'none'}); {EXPECTED}"
        )
    assert answer is not None
    if solution is not None and str(solution).strip() == answer.strip():
        solution = None  # DAPO-Math-17k-Processed keeps the answer there
    messages = _messages(source, number, question)
    if isinstance(record.get("system"), str) and record["system"].strip():
        messages = (Message("system", record["system"].strip()), *messages)
    given = _first(record, ID_FIELDS) or extra.get("index")
    return messages, answer, solution, str(number if given is None else given)


def reference_answer(record: Mapping[str, Any]) -> tuple[str | None, str | None]:
    r"""The answer a record is graded against; where GSM8K's solution ends in it, that solution too.

    Example:
        >>> reference_answer({"question": "2 + 2?", "answer": "Two more than 2.\n#### 4"})[0]
        '4'
        >>> reference_answer({"reward_model": {"ground_truth": "7"}})
        ('7', None)
    """
    if "reward_model" in record:
        reward = _as_mapping(record["reward_model"])
        answer = None if reward is None else reward.get("ground_truth")
    else:
        answer = _first(record, ANSWER_FIELDS)
    if answer in (None, ""):
        return None, None
    answer = reference_text(answer)
    if "question" in record and (end := _GSM8K_END.search(answer)):
        return end[1].strip(), answer
    return answer, None


def answer_of_solution(solution: str) -> str | None:
    r"""The answer that a worked solution ends in, or that stands there alone; None if neither.

    Example:
        >>> answer_of_solution(r"Two and two: \boxed{4}."), answer_of_solution(r"$\frac{1}{2}$")
        ('4', '$\\frac{1}{2}$')
        >>> answer_of_solution("Add them up.") is None
        True
    """
    framed = read_reference(solution)
    return framed if framed != solution or _FORMULA.fullmatch(solution.strip()) else None


def _messages(source: str, number: int, question: Any) -> tuple[Message, ...]:
    """A list of messages, a JSON string of one, or a plain question."""
    turns = question
    if isinstance(question, str):
        turns = _json_or_none(question) if question.lstrip().startswith("[") else None
        if not isinstance(turns, list) or not all(isinstance(t, dict) for t in turns) or not turns:
            return (Message("user", question),)
    try:
        return tuple(Message(str(turn["role"]), str(turn["content"])) for turn in turns)
    except (KeyError, TypeError) as error:
        raise EpistillError(
            f"{source}: row {number}: `prompt` is {str(question)[:80]!r}; expected text, a list of "
            "{role, content} messages, or a JSON string of one"
        ) from error


def _choose_grader(records: list[Mapping[str, Any]]) -> GraderName:
    if all(map(is_livecodebench, records)):
        return "code"
    if any(record.get("kind") == "mcq" for record in records):
        return "choice"
    return grader_of(str(_first(record, ANSWER_FIELDS) or "") for record in records)


def grader_of(answers: Iterable[str]) -> GraderName:
    """The grader that reference answers suggest: choice where all are single letters, else math.

    Example:
        >>> grader_of(["A", "(C)"]), grader_of(["A", "3"])
        ('choice', 'math')
    """
    letters = (_CHOICE.fullmatch(read_reference(answer).strip(" .")) for answer in answers)
    return "choice" if all(letters) else "math"


def _first(record: Mapping[str, Any], names: Iterable[str]) -> Any:
    return next((record[name] for name in names if record.get(name) is not None), None)


def _as_mapping(value: Any) -> Mapping[str, Any] | None:
    if isinstance(value, str):
        value = _json_or_none(value)
    return value if isinstance(value, Mapping) else None


def _json_or_none(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return None
