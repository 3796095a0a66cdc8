"""Reading problems: the real files, every known shape, and what is said of broken ones."""

from __future__ import annotations

import json

import polars as pl
import pytest

from epistill.errors import EpistillError
from epistill.tasks.files import load_problems

REAL = [
    ("math/aime24.parquet", 30, 30, "math", "540"),
    ("math/math500.parquet", 500, 500, "math", "\\left( 3, \\frac{\\pi}{2} \\right)"),
    ("math/seen_1x64.parquet", 64, 1, "math", "640"),
    ("math/seen_64.parquet", 64, 64, "math", "52"),
    ("math/seen_128.parquet", 128, 128, "math", "6"),
    ("gsm8k/test.jsonl", 1319, 1319, "math", "18"),
    ("gsm8k/train.jsonl", 7473, 7473, "math", "72"),
    ("science/chemistry_test.jsonl", 210, 210, "choice", "A"),
    ("science/chemistry_train.jsonl", 1890, 1890, "choice", "A"),
]


@pytest.mark.parametrize(("name", "rows", "problems", "grader", "answer"), REAL)
def test_real_files(shared_data, name, rows, problems, grader, answer):
    read = load_problems(str(shared_data / name))
    assert (read.rows, len(read.problems), read.grader) == (rows, problems, grader)
    assert read.problems[0].answer == answer
    assert len({problem.id for problem in read.problems}) == problems
    assert all(problem.messages[-1].role == "user" for problem in read.problems)


def test_gsm8k_keeps_its_solutions_and_chemistry_its_system_turn(shared_data):
    gsm8k = load_problems(str(shared_data / "gsm8k/test.jsonl")).problems[0]
    assert gsm8k.solution is not None
    assert gsm8k.solution.endswith("#### 18")
    chemistry = load_problems(str(shared_data / "science/chemistry_test.jsonl")).problems[0]
    assert [m.role for m in chemistry.messages] == ["system", "user"]


def jsonl(folder, *records):
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


MESSAGES = [{"role": "user", "content": "1+1?"}]
SHAPES = [
    {"question": "1+1?", "answer": "It is <<1+1=2>>2.\n#### 2"},
    {"problem": "1+1?", "answer": "2", "solution": "count"},
    {"prompt": MESSAGES, "reward_model": {"ground_truth": "2"}},
    {"prompt": json.dumps(MESSAGES), "reward_model": json.dumps({"ground_truth": "2"})},
    {"prompt": "1+1?", "ground_truth": 2},
    {"problem": "1+1?", "solution": "Count: \\boxed{2}."},  # MATH
    {"prompt": MESSAGES, "solution": "$2$"},  # trl-lib/DeepMath-103K, which TRL's examples train on
]


@pytest.mark.parametrize("record", SHAPES)
def test_shapes(record, tmp_path):
    (problem,) = load_problems(jsonl(tmp_path, record)).problems
    assert problem.messages[0].content == "1+1?"
    assert problem.answer.strip("$") == "2"


def test_parquet_with_dicts_and_with_json_strings_read_alike(tmp_path):
    rows = [
        SHAPES[2],
        {"prompt": [{"role": "user", "content": "2+2?"}], "reward_model": {"ground_truth": "4"}},
    ]
    pl.DataFrame(rows).write_parquet(tmp_path / "dicts.parquet")
    strings = [{k: json.dumps(v) for k, v in row.items()} for row in rows]
    pl.DataFrame(strings).write_parquet(tmp_path / "strings.parquet")
    read = [load_problems(str(tmp_path / n)) for n in ("dicts.parquet", "strings.parquet")]
    one, other = ([(p.messages, p.answer) for p in r.problems] for r in read)
    assert one == other


def test_repeated_rows_are_one_problem_and_contradictions_an_error(tmp_path):
    read = load_problems(jsonl(tmp_path, SHAPES[1], SHAPES[1]))
    assert (read.rows, len(read.problems)) == (2, 1)
    with pytest.raises(EpistillError, match="row 1 repeats problem"):
        load_problems(jsonl(tmp_path, SHAPES[1], {**SHAPES[1], "answer": "3"}))


def test_letters_make_it_multiple_choice_and_the_choice_can_be_overridden(tmp_path):
    path = jsonl(tmp_path, {"question": "Which?", "answer": "B"})
    assert load_problems(path).grader == "choice"
    assert load_problems(path, grader="exact").problems[0].grader == "exact"


def test_datasets_loading_code_on_local_folders(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    jsonl(folder, *SHAPES[1:2])
    read = load_problems(str(folder), split="train")
    assert read.problems[0].answer == "2"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "no rows"),
        ("{not json\n", "line 1 is not JSON"),
        ("[1]\n", "line 1 is not an object"),
        ('{"question": "x"}\n', "row 0 has no answer"),
        ('{"answer": "x"}\n', "row 0 has no question"),
        ('{"question": "x", "answer": null}\n', "row 0 has no answer"),
        ('{"prompt": [{"text": 1}], "answer": "1"}\n', "expected text, a list"),
    ],
)
def test_broken_files_get_one_line(content, words, tmp_path):
    path = tmp_path / "broken.jsonl"
    path.write_text(content)
    with pytest.raises(EpistillError, match=words) as caught:
        load_problems(str(path))
    assert "\n" not in str(caught.value)


def test_not_utf8_not_parquet_not_there(tmp_path):
    (tmp_path / "latin.jsonl").write_bytes(b'{"question": "\xe9"}\n')
    (tmp_path / "fake.parquet").write_bytes(b"no")
    pl.DataFrame({"other": [1]}).write_parquet(tmp_path / "columns.parquet")
    for name, words in (
        ("latin.jsonl", "not UTF-8"),
        ("fake.parquet", "not a readable parquet"),
        ("columns.parquet", "columns found: other"),
        ("absent.parquet", "no file"),
        ("absent", "expected a .jsonl or .parquet file"),
    ):
        with pytest.raises(EpistillError, match=words):
            load_problems(str(tmp_path / name))
