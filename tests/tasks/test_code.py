"""Programs graded by execution, and LiveCodeBench's records read from files written here."""

from __future__ import annotations

import base64
import json
import os
import pickle
import zlib

import pytest

from epistill.errors import EpistillError
from epistill.records import GradeStatus
from epistill.tasks.answers import extract_code
from epistill.tasks.code import CodeTest, CodeTests, grade_code, same_output, same_value
from epistill.tasks.files import load_problems
from epistill.tasks.grading import Grader
from epistill.tasks.sandbox import run_python

ADD = CodeTests((CodeTest("1 2\n", "3\n"), CodeTest("5 6\n", "11\n", public=False))).to_json()
CALL = CodeTests((CodeTest("[3, 1, 2]\n2", "[1, 2, 3, 2]"),), "extend").to_json()


@pytest.fixture(scope="module", autouse=True)
def _sandbox():
    try:
        run_python("pass")
    except EpistillError as error:
        pytest.skip(f"tests/tasks/test_sandbox.py holds the refusal: {error}")


def fenced(code: str) -> str:
    return f"Here it is.\n```python\n{code}\n```\n"


@pytest.mark.parametrize(
    ("answer", "code", "status", "reason"),
    [
        (ADD, "print(sum(map(int, input().split())))", "correct", ""),
        (ADD, "print(3)", "wrong", "test 2 of 2: wrong output on a hidden test"),
        (ADD, "print(4)", "wrong", "test 1 of 2: on input '1 2' expected '3', found '4'"),
        (ADD, "print(1/0)", "wrong", "test 1 of 2: ZeroDivisionError: division by zero"),
        (ADD, "print(3", "wrong", "test 1 of 2: SyntaxError: '(' was never closed"),
        (ADD, "while True: print('x' * 9999)", "wrong", "test 1 of 2: stopped for too much output"),
        (CALL, "class Solution:\n    def extend(self, a: List[int], b): return sorted(a) + [b]", "correct", ""),
        (CALL, "def extend(a, b): print(1); return tuple(sorted(a)) + (b,)", "correct", ""),
        (CALL, "def extend(a, b): return a", "wrong", "test 1 of 1: on input '[3, 1, 2]\\n2' expected '[1, 2, 3, 2]', found '[3, 1, 2]'"),
        (CALL, "def other(a, b): return a", "wrong", "test 1 of 1: KeyError: 'extend'"),
    ],
)  # fmt: skip
def test_a_program_is_graded_by_running_it(answer, code, status, reason):
    grade = grade_code(answer, fenced(code))
    assert (grade.status.value, grade.reason) == (status, reason)
    assert grade.extracted is not None
    assert grade.extracted.strip() == code


LENGTH = CodeTests((CodeTest('"a\u2028b\x85"', "4"),), "f").to_json()
DEEP = "[" * 200_000


@pytest.mark.parametrize(
    ("answer", "code", "status"),
    [
        (LENGTH, "def f(x): return len(x)", "correct"),
        (LENGTH, "def f(x):\n    a = []\n    for _ in range(990): a = [a]\n    return a", "wrong"),
        (LENGTH, "def f(x):\n    a = []\n    a.append(a)\n    return a", "wrong"),
        (LENGTH, "import os\ndef f(x):\n    os.write(3, b'[' * 200000)\n    os._exit(0)", "wrong"),
        (LENGTH, "def f(x): return '\\ud800'", "wrong"),
        (LENGTH, "def f(x): return object()", "wrong"),
        (ADD, "print('\ud800')", "wrong"),
        (ADD, "# \udcff\nprint(3)", "wrong"),
        (ADD, "print('\0')", "wrong"),
        (ADD, "import os\nfor _ in range(1500): os.mkdir('d'); os.chdir('d')\nprint(1)", "wrong"),
        (ADD, "import sys; sys.stdout.buffer.write(b'\xff\xfe')", "wrong"),
        (ADD, "print('1E+999999999999999999'); print('sNaN')", "wrong"),
        (ADD, "print('3\u20283')", "wrong"),
        ("{}", "print(3)", "unreadable"),
        ("[1]", "print(3)", "unreadable"),
        ("no JSON", "print(3)", "unreadable"),
        (DEEP, "print(3)", "unreadable"),
        ('{"tests": [{"input": 1, "output": 2}]}', "print(3)", "unreadable"),
        (CodeTests((CodeTest("no JSON", "1"),), "f").to_json(), "def f(x): return 1", "unreadable"),
        (CodeTests((CodeTest(DEEP, "1"),), "f").to_json(), "def f(x): return 1", "unreadable"),
        (CodeTests((CodeTest("1", DEEP),), "f").to_json(), "def f(x): return 1", "wrong"),
        (LENGTH.replace("6.0", "NaN"), "def f(x): return 1", "unreadable"),
        (LENGTH.replace("6.0", "1e300"), "def f(x): return 1", "unreadable"),
    ],
)  # fmt: skip
def test_whatever_a_program_does_and_whatever_its_tests_are_a_grade_comes_out(answer, code, status):
    grade = grade_code(answer, fenced(code))
    assert grade.status.value == status, grade.reason
    assert len(grade.reason.splitlines()) <= 1


def test_a_program_that_does_not_end_is_a_timeout():
    tests = CodeTests((CodeTest("", ""),), time_limit_s=0.5).to_json()
    grade = grade_code(tests, fenced("while True: pass"))
    assert grade.status is GradeStatus.TIMEOUT
    assert grade.reason == "test 1 of 1: ran longer than 0.5 s"


def test_no_program_is_unreadable():
    for text in ("I cannot.", "```python\nprint(1)", "```python\n```"):
        assert grade_code(ADD, text).status is GradeStatus.UNREADABLE


def test_a_program_finds_no_expected_output_wherever_it_looks():
    # It walks everything it can read, its own interpreter's objects included.
    code = """
import gc, os, sys
secret = '9' * 5 + '8' * 4
found = [o for o in gc.get_objects() if isinstance(o, str) and secret in o]
found += [v for v in [*os.environ.values(), *sys.argv] if secret in v]
frame = sys._getframe()
while frame:
    found += [v for v in frame.f_locals.values() if secret in str(v) and v is not secret and v is not found]
    frame = frame.f_back
for folder in ('.', '..', '/proc/%d' % os.getppid()):
    try:
        for name in os.listdir(folder):
            try:
                if secret in open(os.path.join(folder, name), errors='ignore').read():
                    found.append(name)
            except OSError: pass
    except OSError: pass
print(len([f for f in found if 'secret' not in str(f)]))
"""
    tests = CodeTests((CodeTest("x", "999998888"),)).to_json()
    assert grade_code(tests, fenced(code)).reason.endswith("expected '999998888', found '0'")


def test_the_grader_keeps_order_among_other_graders():
    with Grader(workers=2) as grader:
        good = fenced("print(sum(map(int, input().split())))")
        grades = grader.grade(
            [
                ("code", ADD, good),
                ("exact", "yes", "Answer: yes"),
                ("code", ADD, fenced("print(0)")),
                ("code", ADD, "nothing"),
            ]
        )
    assert [g.status.value for g in grades] == ["correct", "correct", "wrong", "unreadable"]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("```python\na\n```\n```python\nb\n```", "b\n"),
        ("```python\na\n```\noutput:\n```\n3\n```", "a\n"),
        ("```\na\n```", "a\n"),
        ("```Py\na\n``` and more", None),
        ("text ```python a```", None),
    ],
)
def test_the_last_block_of_python_is_the_program(text, code):
    assert extract_code(text) == code


@pytest.mark.parametrize(
    ("expected", "found", "same"),
    [
        ("0.30\n", "0.3", True),
        ("1 2\n3", "1  2 \n3\n\n", True),
        ("Yes", "yes", False),
        ("1\n2", "1 2", False),
        ("1", "1\n2", False),
        ("1e3", "1000", True),
        ("", "", True),
        ("nan", "nan", True),
    ],
)
def test_output_is_compared_by_lines_and_numbers(expected, found, same):
    assert same_output(expected, found) is same


@pytest.mark.parametrize(
    ("expected", "found", "same"),
    [("[1, 2]", "[1,2]", True), ("1", "1.0", True), ("true", "1", False), ("[true]", "[1]", False),
     ("{\"a\": 1}", "{\"a\": 1}", True), ("1", "", False), ("[[1]]", "[1]", False), ("[]", "{}", False),
     ("[" * 900 + "]" * 900, "[ " * 900 + "]" * 900, True), ("{\"a\": [1]}", "{\"a\": [true]}", False)],
)  # fmt: skip
def test_results_are_compared_as_json(expected, found, same):
    assert same_value(expected, found) is same


# ---- LiveCodeBench's files ---------------------------------------------------------------------


def packed(tests: list[dict[str, str]], protocol: int = 4) -> str:
    """As the data set packs private tests."""
    data = pickle.dumps(json.dumps(tests), protocol=protocol)
    return base64.b64encode(zlib.compress(data)).decode()


def record(**changes):
    stdin = {"testtype": "stdin"}
    return {
        "question_title": "Sum",
        "question_content": "Print the sum of two integers.",
        "platform": "atcoder",
        "question_id": "abc400_a",
        "contest_date": "2025-02-08T00:00:00",
        "starter_code": "",
        "difficulty": "easy",
        "public_test_cases": json.dumps([{"input": "1 2", "output": "3", **stdin}]),
        "private_test_cases": packed([{"input": "4 5", "output": "9", **stdin}]),
        "metadata": "{}",
        **changes,
    }


def write(path, *records):
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return str(path)


CALLED = record(
    question_id="3779",
    question_content="Return the largest number.",
    platform="leetcode",
    contest_date="2025-01-04T00:00:00",
    starter_code="class Solution:\n    def largest(self, nums: List[int]) -> int:\n        ",
    public_test_cases=json.dumps([{"input": "[1, 7]", "output": "7", "testtype": "functional"}]),
    private_test_cases=packed([{"input": "[-1]", "output": "-1", "testtype": "functional"}]),
    metadata=json.dumps({"func_name": "largest"}),
)


@pytest.mark.parametrize("protocol", range(2, 6))
def test_records_of_both_kinds_are_read(tmp_path, protocol):
    first = record(private_test_cases=packed([{"input": "4 5", "output": "9"}], protocol))
    read = load_problems(write(tmp_path / "test6.jsonl", first, CALLED))
    assert (read.grader, [p.id for p in read.problems]) == ("code", ["abc400_a", "3779"])
    on_stdin, called = (CodeTests.from_json(p.answer) for p in read.problems)
    assert on_stdin.tests == (CodeTest("1 2", "3"), CodeTest("4 5", "9", public=False))
    assert (on_stdin.function, called.function) == (None, "largest")
    assert "stdin" in read.problems[0].messages[0].content
    assert "def largest(self, nums" in read.problems[1].messages[0].content
    assert "9" not in read.problems[0].messages[0].content
    good = fenced("class Solution:\n    def largest(self, nums): return max(nums)")
    assert grade_code(read.problems[1].answer, good).status is GradeStatus.CORRECT


def test_since_leaves_older_problems_out(tmp_path):
    path = write(tmp_path / "test6.jsonl", record(), CALLED)
    assert [p.id for p in load_problems(path, since="2025-02-01").problems] == ["abc400_a"]
    plain = write(tmp_path / "plain.jsonl", {"question": "1+1", "answer": "2"})
    with pytest.raises(EpistillError, match="no `contest_date`"):
        load_problems(plain, since="2025-02-01")


class Evil:
    def __reduce__(self):
        return os.system, ("touch /tmp/epistill-unpickled",)


def test_a_pickle_that_does_something_is_refused_and_does_nothing(tmp_path):
    evil = base64.b64encode(zlib.compress(pickle.dumps(Evil()))).decode()
    path = write(tmp_path / "test6.jsonl", record(private_test_cases=evil))
    with pytest.raises(
        EpistillError, match=r"row 0: its tests cannot be read .*more than a string"
    ):
        load_problems(path)
    assert not os.path.exists("/tmp/epistill-unpickled")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"private_test_cases": "!!"}, "neither JSON nor packed"),
        ({"public_test_cases": "[]", "private_test_cases": "[]"}, "without tests"),
        ({"public_test_cases": "[{}]"}, "input"),
        ({"starter_code": "class Solution: ..."}, "no `func_name`"),
    ],
)
def test_unreadable_tests_are_one_line(tmp_path, changes, reason):
    with pytest.raises(EpistillError, match=reason) as failure:
        load_problems(write(tmp_path / "test6.jsonl", record(**changes)))
    assert "\n" not in str(failure.value)


def test_a_file_on_the_hub_that_cannot_be_reached_is_one_line():
    with pytest.raises(EpistillError, match="could not be downloaded"):
        load_problems("hf://datasets/livecodebench/code_generation_lite/test6.jsonl")
    with pytest.raises(EpistillError, match="names no file"):
        load_problems("hf://datasets/livecodebench")


def test_a_prompt_frames_the_question(tmp_path):
    path = write(tmp_path / "a.jsonl", {"prompt": "1+1?", "solution": "2", "answer": "2"})
    (problem,) = load_problems(path, prompt="{question}\nThink.").problems
    assert problem.messages[0].content == "1+1?\nThink."
    assert problem.solution is None  # the answer alone is no solution
