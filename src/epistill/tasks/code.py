"""Programs graded by running them: tests on stdin and stdout, or calls of one function.

Enters: a `CodeTests` as JSON (the problem's reference answer) and a response. Leaves: a `Grade`,
correct only if every test passes. The program runs once per test in the sandbox
(`tasks/sandbox.py`) and never sees an expected output; tests stop at the first failure.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from epistill.records import Grade, GradeStatus
from epistill.tasks.answers import extract_code
from epistill.tasks.sandbox import Execution, Limits, run_python

TIME_LIMIT_S = 6.0  # per test; LiveCodeBench's own
MOST_TIME_LIMIT_S = 3600.0
SHOWN = 200


@dataclass(frozen=True, slots=True)
class CodeTest:
    """One test.

    Attributes:
        input: What the program reads; of a call, one JSON value per line, an argument each.
        output: What it must print; of a call, the result as JSON.
        public: The solver may be told about it; of others, feedback names only the kind of failure.
    """

    input: str
    output: str
    public: bool = True


@dataclass(frozen=True, slots=True)
class CodeTests:
    """All tests of a problem.

    Attributes:
        function: The function (of `class Solution` where there is one) that is called; None where
            programs read stdin.
        time_limit_s: Wall-clock per test; at most an hour.
    """

    tests: tuple[CodeTest, ...]
    function: str | None = None
    time_limit_s: float = TIME_LIMIT_S

    def __post_init__(self) -> None:
        if not self.tests:
            raise ValueError("a program without tests cannot be graded")
        if not 0 < self.time_limit_s <= MOST_TIME_LIMIT_S:
            raise ValueError(f"a time limit of {self.time_limit_s} s; expected at most an hour")

    def to_json(self) -> str:
        """As a problem keeps it in `answer`."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @staticmethod
    def from_json(text: str) -> CodeTests:
        """The inverse of `to_json`; ValueError or RecursionError where the text is none of its."""
        from pydantic import TypeAdapter  # which takes longer than all that graders import

        return TypeAdapter(CodeTests).validate_python(json.loads(text))


def grade_code(answer: str, response: str) -> Grade:
    """Run the response's program against every test, `CodeTests` as JSON.

    Raises:
        EpistillError: No sandbox on this machine.
    """
    code = extract_code(response)
    if code is None:
        return Grade(GradeStatus.UNREADABLE, None, "no closed ``` block with a program was found")
    try:
        tests = CodeTests.from_json(answer)
        inputs = [test.input if tests.function is None else _call(test) for test in tests.tests]
    except (ValueError, RecursionError) as error:
        reason = f"the problem's tests cannot be read: {type(error).__name__}"
        return Grade(GradeStatus.UNREADABLE, code, reason)
    for number, (test, stdin) in enumerate(zip(tests.tests, inputs, strict=True), 1):
        limits = Limits(wall_s=tests.time_limit_s)
        done = run_python(code, stdin=stdin, function=tests.function, prelude=True, limits=limits)
        if reason := _failure(tests, test, done):
            status = GradeStatus.TIMEOUT if done.ended == "time" else GradeStatus.WRONG
            return Grade(status, code, f"test {number} of {len(tests.tests)}: {reason}")
    return Grade(GradeStatus.CORRECT, code)


def _call(test: CodeTest) -> str:
    # Only "\n" ends a line: a JSON string may hold U+2028 and its like.
    return json.dumps([json.loads(line) for line in test.input.split("\n") if line.strip()])


def _failure(tests: CodeTests, test: CodeTest, done: Execution) -> str:
    if done.ended == "time":
        return f"ran longer than {tests.time_limit_s:g} s"
    if done.ended != "exit":
        return f"stopped for too much {done.ended}"
    if not done.succeeded:
        lines = done.stderr.strip().splitlines()
        return lines[-1][:SHOWN] if lines else f"exit status {done.exit_code}"
    same = same_value if tests.function is not None else same_output
    if same(test.output, done.stdout):
        return ""
    if not test.public:
        return "wrong output on a hidden test"
    given, expected, found = (
        repr(text if len(text) <= SHOWN else text[:SHOWN] + "...")
        for text in map(str.strip, (test.input, test.output, done.stdout))
    )
    return f"on input {given} expected {expected}, found {found}"


def same_output(expected: str, found: str) -> bool:
    r"""Equal line by line, white space at the ends aside; numbers are equal as numbers.

    Example:
        >>> same_output("1 2.50\n", "1 2.5 \n\n"), same_output("1\n2", "1 2")
        (True, False)
    """
    left, right = ([line.split() for line in t.strip().split("\n")] for t in (expected, found))
    return len(left) == len(right) and all(
        len(a) == len(b) and all(map(_same_word, a, b)) for a, b in zip(left, right, strict=True)
    )


def _same_word(expected: str, found: str) -> bool:
    if expected == found:
        return True
    try:
        return Decimal(expected) == Decimal(found)
    except InvalidOperation:
        return False


def same_value(expected: str, found: str) -> bool:
    """Equal as JSON; a tuple has become a list, and 1.0 is 1, but true is not 1."""

    def read(text: str) -> Any:
        return json.loads(
            text, parse_int=lambda n: ("number", int(n)), parse_float=lambda n: ("number", float(n))
        )

    try:
        return expected.strip() == found.strip() or read(expected) == read(found)
    except (ValueError, RecursionError):
        return False
