"""Programs graded by running them: tests on stdin and stdout, or calls of one function.

Enters: a `CodeTests` as JSON (the problem's reference answer) and a response. Leaves: a `Grade`,
correct only if every test passes. The program runs once per test in the sandbox
(`tasks/sandbox.py`) and never sees an expected output; tests stop at the first failure.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from decimal import Decimal, InvalidOperation

from pydantic import TypeAdapter

from epistill.records import Grade, GradeStatus
from epistill.tasks.answers import extract_code
from epistill.tasks.sandbox import Execution, Limits, run_python

TIME_LIMIT_S = 6.0  # per test; LiveCodeBench's own
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
        time_limit_s: Wall-clock per test.
    """

    tests: tuple[CodeTest, ...]
    function: str | None = None
    time_limit_s: float = TIME_LIMIT_S

    def __post_init__(self) -> None:
        if not self.tests:
            raise ValueError("a program without tests cannot be graded")
        if not 0 < self.time_limit_s < math.inf:
            raise ValueError(f"time_limit_s is {self.time_limit_s}; expected seconds")

    def to_json(self) -> str:
        """As a problem keeps it in `answer`."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @staticmethod
    def from_json(text: str) -> CodeTests:
        """The inverse of `to_json`; ValueError or RecursionError where the text is none of its."""
        return TypeAdapter(CodeTests).validate_python(json.loads(text))


def grade_code(answer: str, response: str) -> Grade:
    """Run the response's program against every test.

    Args:
        answer: `CodeTests` as JSON.
        response: After its thinking.

    Raises:
        EpistillError: No sandbox on this machine.
    """
    code = extract_code(response)
    if code is None:
        return Grade(GradeStatus.UNREADABLE, None, "no closed ``` block with a program was found")
    try:
        tests = CodeTests.from_json(answer)
        inputs = [_stdin(tests, test) for test in tests.tests]
    except (ValueError, RecursionError) as error:
        reason = f"the problem's tests cannot be read: {type(error).__name__}"
        return Grade(GradeStatus.UNREADABLE, code, reason)
    for number, (test, stdin) in enumerate(zip(tests.tests, inputs, strict=True), 1):
        failure = _failure(code, tests, test, stdin)
        if failure is not None:
            status, reason = failure
            return Grade(status, code, f"test {number} of {len(tests.tests)}: {reason}")
    return Grade(GradeStatus.CORRECT, code)


def _stdin(tests: CodeTests, test: CodeTest) -> str:
    if tests.function is None:
        return test.input
    # Only "\n" ends a line: a JSON string may hold U+2028 and its like.
    return json.dumps([json.loads(line) for line in test.input.split("\n") if line.strip()])


def _failure(
    code: str, tests: CodeTests, test: CodeTest, stdin: str
) -> tuple[GradeStatus, str] | None:
    done = run_python(
        code,
        stdin=stdin,
        function=tests.function,
        prelude=True,
        limits=Limits(wall_s=tests.time_limit_s),
    )
    if done.ended == "time":
        return GradeStatus.TIMEOUT, f"ran longer than {tests.time_limit_s:g} s"
    if not done.succeeded:
        return GradeStatus.WRONG, _error(done)
    same = same_value if tests.function is not None else same_output
    if same(test.output, done.stdout):
        return None
    if not test.public:
        return GradeStatus.WRONG, "wrong output on a hidden test"
    return GradeStatus.WRONG, (
        f"on input {_short(test.input)} expected {_short(test.output)}, found {_short(done.stdout)}"
    )


def _error(done: Execution) -> str:
    if done.ended != "exit":
        return f"stopped for too much {done.ended}"
    lines = done.stderr.strip().splitlines()
    return lines[-1][:SHOWN] if lines else f"exit status {done.exit_code}"


def _short(text: str) -> str:
    text = text.strip()
    return repr(text if len(text) <= SHOWN else text[:SHOWN] + "...")


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
    if expected.strip() == found.strip():
        return True
    try:
        pairs = [(json.loads(expected), json.loads(found))]
    except (ValueError, RecursionError):
        return False
    while pairs:  # no recursion: both may be nested as deep as JSON can be read
        left, right = pairs.pop()
        if isinstance(left, list) and isinstance(right, list):
            if len(left) != len(right):
                return False
            pairs += zip(left, right, strict=True)
        elif isinstance(left, dict) and isinstance(right, dict):
            if left.keys() != right.keys():
                return False
            pairs += [(left[key], right[key]) for key in left]
        elif (
            isinstance(left, list | dict)
            or isinstance(right, list | dict)
            or left != right
            or isinstance(left, bool) != isinstance(right, bool)
        ):
            return False
    return True
